//! Runs the table against one OpenBao and says which rows it does not keep.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use super::super::certificate::{ClientAuthority, ClientIdentity};
use super::super::client::{Answer, Client, ClientError, Endpoint};
use super::super::jwt::{SignError, Signer};
use super::row::{Row, Who, fits};
use super::{login, rows};

/// An OpenBao that nobody has used yet.
pub struct Target {
    /// Where it is.
    pub endpoint: Endpoint,
    /// Its root token.
    pub root_token: String,
    /// Its one unseal key (base64 or hex); without it the rows about sealing are left out.
    pub unseal_key: Option<String>,
}

/// How a run went.
#[derive(Debug, Default)]
pub struct Report {
    /// Rows that were kept.
    pub passed: usize,
    /// Rows that were not.
    pub failed: Vec<Failure>,
}

/// A row that was not kept.
#[derive(Debug)]
pub struct Failure {
    /// The row's name.
    pub name: &'static str,
    /// What was wanted and what came.
    pub why: String,
}

/// Why a run could not be made at all.
#[derive(Debug, thiserror::Error)]
pub enum ContractError {
    /// A caller could not be made.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A credential could not be made.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// A certificate could not be made.
    #[error(transparent)]
    Certificate(#[from] rcgen::Error),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}", self.name, self.why)
    }
}

/// Runs every row.
///
/// # Errors
/// When the credentials cannot be made; a row that is not kept, or has no answer, is in the report instead.
pub async fn run(target: &Target) -> Result<Report, ContractError> {
    let mut runner = Runner::new(target)?;
    let mut report = Report::default();
    for row in rows() {
        if row.seals && target.unseal_key.is_none() {
            continue;
        }
        match runner.row(&row).await {
            Ok(()) => report.passed += 1,
            Err(why) => report.failed.push(Failure { name: row.name, why }),
        }
    }
    Ok(report)
}

struct Runner {
    plain: Client,
    identities: BTreeMap<&'static str, Client>,
    root_token: String,
    values: BTreeMap<String, String>,
}

impl Runner {
    fn new(target: &Target) -> Result<Runner, ContractError> {
        let clients = ClientAuthority::generate()?;
        let strangers = ClientAuthority::generate()?;
        let with = |identity: ClientIdentity| Client::new(&target.endpoint, "", Some(&identity));
        let identities = BTreeMap::from([
            ("good", with(clients.issue("kms")?)?),
            ("other", with(clients.issue("nobody")?)?),
            ("foreign", with(strangers.issue("kms")?)?),
        ]);
        let mut values = login::values(&Signer::generate()?, &Signer::generate_rsa()?)?;
        values.insert("client.ca".into(), escaped(&clients.pem()));
        values.insert("unseal".into(), target.unseal_key.clone().unwrap_or_default());
        let plain = Client::new(&target.endpoint, "", None)?;
        Ok(Runner { plain, identities, root_token: target.root_token.clone(), values })
    }

    async fn row(&mut self, row: &Row) -> Result<(), String> {
        tokio::time::sleep(row.wait).await;
        let client = match &row.who {
            Who::Nobody => self.plain.clone(),
            Who::Root => self.plain.with_token(&self.root_token),
            Who::Token(token) => self.plain.with_token(&self.filled(token)),
            Who::Certificate(name) => self.identity(name),
            Who::TokenAndCertificate(token, name) => self.identity(name).with_token(&self.filled(token)),
        };
        let path = match row.path.strip_prefix('/') {
            Some(path) => path.to_owned(),
            None => format!("v1/{}", self.filled(&row.path)),
        };
        let sent = client.in_namespace(row.namespace).send(row.method, &path, self.filled(&row.body)).await;
        let answer = sent.map_err(|error| format!("  no answer: {error}"))?;
        let wanted = self.filled(&row.want.pattern());
        if answer.status != row.status || !fits(&wanted, &answer.text) {
            return Err(format!(
                "  wanted {} {}\n  got    {} {}",
                row.status,
                wanted.escape_debug(),
                answer.status,
                answer.text.escape_debug()
            ));
        }
        headers(row, &answer)?;
        for (name, pointer) in &row.keep {
            let value = answer.body.pointer(pointer).ok_or_else(|| format!("  nothing at {pointer}"))?;
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            self.values.insert((*name).to_owned(), text);
        }
        Ok(())
    }

    fn identity(&self, name: &str) -> Client {
        self.identities.get(name).unwrap_or(&self.plain).clone()
    }

    fn filled(&self, text: &str) -> String {
        let mut out = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            let (name, after) = after.split_once('}').unwrap_or((after, ""));
            out += before;
            out += self.values.get(name).map_or("", String::as_str);
            rest = after;
        }
        out + rest
    }
}

/// What every answer carries.
fn headers(row: &Row, answer: &Answer) -> Result<(), String> {
    let header = |name: &str| answer.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    for (name, wanted) in
        [("cache-control", "no-store"), ("content-type", "application/json"), ("x-vault-namespace", row.namespace)]
    {
        if header(name) != wanted {
            return Err(format!("  header {name}: wanted {wanted:?}, got {:?}", header(name)));
        }
    }
    if httpdate::parse_http_date(header("date")).is_err() {
        return Err(format!("  header date: {:?}", header("date")));
    }
    Ok(())
}

/// `text` as it stands inside a JSON string.
pub(super) fn escaped(text: &str) -> String {
    let quoted = Value::from(text).to_string();
    quoted.trim_matches('"').to_owned()
}
