//! Login with a client certificate: the TLS connection proves who we are, the call names the role.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use x509_parser::pem::Pem;

use super::jwt::LOGIN_WITHIN;
use super::{Attempt, Login, Method, upcoming};
use crate::error::{Class, Error};
use crate::files::{self, Secrecy};
use crate::request::{BaoCall, Credential, Method as HttpMethod, Purpose};

/// Remaining validity below which a finding is made.
const SOON: u64 = 24 * 3_600;

/// `auth.cert`: a client certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(rename = "CertLogin")]
pub struct Config {
    /// The path of the auth mount, without `auth/`.
    #[serde(default = "default_mount")]
    #[schemars(regex(pattern = "^[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$"))]
    pub mount: String,
    /// The role to log in with; OpenBao tries all roles when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub role: Option<String>,
    /// PEM file with the client certificate, leaf first, then its chain.
    #[schemars(length(min = 1))]
    pub cert_file: PathBuf,
    /// PEM file with its private key; readable by nobody else.
    #[schemars(length(min = 1))]
    pub key_file: PathBuf,
}

fn default_mount() -> String {
    "cert".to_owned()
}

/// The method.
#[derive(Debug)]
pub struct Cert {
    config: Config,
}

// === impl Config ===

impl Login for Config {
    fn method(&self) -> Arc<dyn Method> {
        Arc::new(Cert::new(self.clone()))
    }

    fn files(&self) -> Vec<(&'static str, &Path)> {
        vec![("certFile", &self.cert_file), ("keyFile", &self.key_file)]
    }

    fn client_identity(&self) -> Option<(PathBuf, PathBuf)> {
        Some((self.cert_file.clone(), self.key_file.clone()))
    }
}

// === impl Cert ===

impl Cert {
    /// The method of this configuration.
    pub fn new(config: Config) -> Self {
        Self { config }
    }
}

impl Method for Cert {
    fn binds_connection(&self) -> bool {
        true
    }

    fn login(&self) -> Result<Attempt, Error> {
        // The pipe shows the certificate, and may still hold a good one after the file went bad: here it is only looked at.
        let now = SystemTime::now();
        let looked = files::read(&self.config.cert_file, Secrecy::Public, files::MAX_PEM);
        let (validity, findings) = match looked {
            Err(error) => (None, vec![error.to_string()]),
            Ok(content) => {
                let validity = validity(&content);
                (validity, findings(validity, now))
            }
        };
        let mut body = serde_json::Map::new();
        if let Some(role) = &self.config.role {
            body.insert("name".to_owned(), role.as_str().into());
        }
        let body = serde_json::to_vec(&body).map_err(|_| Error::from(Class::Internal))?;
        let login = format!("auth/{}/login", self.config.mount);
        Ok(Attempt {
            call: BaoCall::own(Purpose::Login, HttpMethod::Post, login, LOGIN_WITHIN)
                .with_body(body)
                .with_credential(Credential::Anonymous),
            expires_unix: validity.map(|(_, until)| until),
            changes_unix: changes(validity, now),
            findings,
        })
    }
}

/// `notBefore` and `notAfter` of the first certificate, Unix seconds.
fn validity(pem: &[u8]) -> Option<(u64, u64)> {
    let first = Pem::iter_from_buffer(pem).next()?.ok()?;
    let certificate = first.parse_x509().ok()?;
    let seconds = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
    let validity = certificate.validity();
    Some((seconds(validity.not_before), seconds(validity.not_after)))
}

/// When the findings change by themselves.
fn changes(validity: Option<(u64, u64)>, now: SystemTime) -> Option<u64> {
    let (from, until) = validity?;
    upcoming(now, [from, until.saturating_sub(SOON).saturating_add(1), until])
}

fn findings(validity: Option<(u64, u64)>, now: SystemTime) -> Vec<String> {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let finding = match validity {
        None => "the client certificate cannot be parsed",
        Some((from, _)) if from > now => "the client certificate is not valid yet by this node's clock",
        Some((_, until)) if until <= now => "the client certificate has expired by this node's clock",
        Some((_, until)) if until - now < SOON => "the client certificate expires within a day by this node's clock",
        Some(_) => return Vec::new(),
    };
    vec![finding.to_owned()]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn validity_makes_findings() {
        let key = rcgen::KeyPair::generate().expect("key");
        let params = rcgen::CertificateParams::new(vec!["node".to_owned()]).expect("params");
        let pem = params.self_signed(&key).expect("certificate").pem();
        let (from, until) = validity(pem.as_bytes()).expect("validity");
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(findings(Some((from, until)), at(from + 1)), Vec::<String>::new());
        for seconds in [from - 1, until - 10, until] {
            assert_eq!(findings(Some((from, until)), at(seconds)).len(), 1, "{seconds}");
        }
        assert_eq!(validity(b"nonsense"), None);
    }

    #[test]
    fn what_changes_next_is_looked_at_then() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let validity = Some((100, 200_000));
        for (now, next) in
            [(0, Some(100)), (100, Some(200_001 - SOON)), (200_001 - SOON, Some(200_000)), (200_000, None)]
        {
            assert_eq!(changes(validity, at(now)), next, "{now}");
            if let Some(next) = next {
                assert_eq!(findings(validity, at(next - 1)), findings(validity, at(now)), "{now}");
                assert_ne!(findings(validity, at(next)), findings(validity, at(now)), "{now}");
            }
        }
    }
}
