//! Login by client certificate: the chain from the TLS session is checked against the authority of each role, then the
//! common name. Renewal asks for the same certificate again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use serde_json::{Map, Value, json};
use x509_parser::prelude::{FromDer, ParsedExtension, X509Certificate};

use super::fields::{Fields, Kind, Schema};
use super::mounts::Engine;
use super::reply::{Reply, Success};
use super::route::{Place, unsupported_operation, unsupported_path};
use super::state::{Inner, State};
use super::tokens::{Origin, RoleTokens};

const ROLE: Schema = &[
    ("certificate", Kind::Text),
    ("allowed_names", Kind::List),
    ("allowed_common_names", Kind::List),
    ("display_name", Kind::Text),
    ("token_policies", Kind::List),
    ("token_ttl", Kind::Duration),
    ("token_max_ttl", Kind::Duration),
    ("token_explicit_max_ttl", Kind::Duration),
    ("token_period", Kind::Duration),
    ("token_type", Kind::Text),
    ("token_no_default_policy", Kind::Bool),
    ("token_bound_cidrs", Kind::List),
    ("token_num_uses", Kind::Int),
    ("token_strictly_bind_ip", Kind::Bool),
];

const NO_CERTIFICATE: &str = "client certificate must be supplied";
const NO_CONSTRAINT: &str = "no chain matching all constraints could be found for this login certificate";
const NO_CHAIN: &str =
    "invalid certificate or no client certificate supplied; additionally got errors during verification: <nil>";

/// A mounted login method.
#[derive(Default)]
pub struct CertAuth {
    roles: BTreeMap<String, Role>,
}

struct Role {
    pem: String,
    authorities: Vec<CertificateDer<'static>>,
    names: Vec<String>,
    tokens: RoleTokens,
}

/// Answers the paths that an operator uses: `certs` and `certs/<name>`.
pub fn configure(auth: &mut CertAuth, place: &Place<'_>, rest: &str) -> Reply {
    match (rest.split_once('/'), rest, place.operation) {
        (None, "certs", "list") | (Some(("certs", "")), _, "list") => {
            if auth.roles.is_empty() {
                return Reply::blank(404);
            }
            let names: Vec<Value> = auth.roles.keys().cloned().map(Value::from).collect();
            Reply::data(Map::from_iter([("keys".into(), names.into())]))
        }
        (Some(("certs", name)), _, operation) if !name.is_empty() => {
            let name = name.to_lowercase();
            match operation {
                "update" => auth.write(name, place).unwrap_or_else(|refusal| refusal),
                "read" => match auth.roles.get(&name) {
                    Some(role) => Reply::data(role.describe(&name)),
                    None => Reply::blank(404),
                },
                "delete" => {
                    auth.roles.remove(&name);
                    Reply::empty()
                }
                _ => unsupported_operation(),
            }
        }
        (None, "certs", _) => unsupported_operation(),
        _ => unsupported_path(),
    }
}

/// `login`: a token for the certificate of this connection.
pub fn login(inner: &mut Inner, state: &State, place: &Place<'_>, at: &str) -> Reply {
    let schema: Schema = &[("name", Kind::Text)];
    let fields = match Fields::check(&place.body, schema, &[], false) {
        Ok(fields) => fields,
        Err(reply) => return reply,
    };
    let Some(namespace) = inner.namespaces.get(&place.namespace) else { return unsupported_path() };
    let Some(mount) = namespace.mounts.get(at) else { return unsupported_path() };
    let Engine::Cert(auth) = &mount.engine else { return unsupported_path() };
    let (name, role, meta) = match auth.admit(fields.text_or_empty("name"), place.peer, state) {
        Ok(admitted) => admitted,
        Err(why) => return Reply::bad(why),
    };
    let origin = Origin::Cert { mount: at.to_owned(), role: name.clone() };
    let common_name = meta.get("common_name").cloned().unwrap_or_default();
    let mut mint = role.tokens.mint((place.namespace.clone(), namespace.id.clone()), format!("{at}login"), origin);
    let method = at.trim_start_matches("auth/").trim_end_matches('/');
    mint.display_name = format!("{method}-{name}");
    mint.alias = format!("{}/{common_name}", mount.accessor);
    mint.meta = Some(meta);
    let (token, lease, capped) = inner.tokens.mint(mint, state.clock.now());
    let warnings = [fields.warnings, capped].concat();
    Success { auth: Some(token.auth(lease)), warnings, ..Success::default() }.reply()
}

/// Whether this connection's certificate would still be let in by the role that made a token, as renewal asks.
pub fn still_matches(inner: &Inner, state: &State, place: &Place<'_>, at: &str, role: &str) -> Result<(), Reply> {
    let mount = inner.namespaces.get(&place.namespace).and_then(|namespace| namespace.mounts.get(at));
    match mount.map(|mount| &mount.engine) {
        Some(Engine::Cert(auth)) => auth.admit(role, place.peer, state).map(drop).map_err(Reply::bad),
        _ => Err(Reply::bad(NO_CHAIN)),
    }
}

impl CertAuth {
    fn write(&mut self, name: String, place: &Place<'_>) -> Result<Reply, Reply> {
        let fields = Fields::check(&place.body, ROLE, &["name"], false)?;
        let pem = fields.text_or_empty("certificate").to_owned();
        let authorities: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(pem.as_bytes()).filter_map(Result::ok).collect();
        if authorities.is_empty() {
            return Err(Reply::bad("failed to parse certificate"));
        }
        let names = fields.list("allowed_common_names");
        self.roles.insert(name, Role { pem, authorities, names, tokens: RoleTokens::read(&fields) });
        Ok(Reply::empty())
    }

    fn admit(
        &self,
        asked: &str,
        peer: &[CertificateDer<'static>],
        state: &State,
    ) -> Result<(String, &Role, BTreeMap<String, String>), &'static str> {
        let (leaf, chain) = peer.split_first().ok_or(NO_CERTIFICATE)?;
        let seconds = state.clock.now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = UnixTime::since_unix_epoch(seconds);
        let trusted: Vec<_> = self
            .roles
            .iter()
            .filter(|(name, _)| asked.is_empty() || asked.to_lowercase() == **name)
            .filter(|(_, role)| role.trusts(leaf, chain, now))
            .collect();
        if trusted.is_empty() {
            return Err(NO_CHAIN);
        }
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| NO_CHAIN)?;
        let common_name =
            parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok()).unwrap_or_default();
        let (name, role) = trusted
            .into_iter()
            .find(|(_, role)| role.names.is_empty() || role.names.iter().any(|glob| fits(glob, common_name)))
            .ok_or(NO_CONSTRAINT)?;
        let meta = BTreeMap::from([
            ("authority_key_id".to_owned(), key_id(&parsed, true)),
            ("cert_name".to_owned(), name.clone()),
            ("common_name".to_owned(), common_name.to_owned()),
            ("serial_number".to_owned(), parsed.serial.to_string()),
            ("subject_key_id".to_owned(), key_id(&parsed, false)),
        ]);
        Ok((name.clone(), role, meta))
    }
}

impl Role {
    fn trusts(&self, leaf: &CertificateDer<'_>, chain: &[CertificateDer<'_>], now: UnixTime) -> bool {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(self.authorities.iter().cloned());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .is_ok_and(|verifier| verifier.verify_client_cert(leaf, chain, now).is_ok())
    }

    fn describe(&self, name: &str) -> Map<String, Value> {
        let names = if self.names.is_empty() { Value::Null } else { self.names.clone().into() };
        let data = json!({
            "allowed_common_names": names, "allowed_dns_sans": null, "allowed_email_sans": null,
            "allowed_metadata_extensions": null, "allowed_names": null, "allowed_organizational_units": null,
            "allowed_uri_sans": null, "certificate": self.pem, "display_name": name, "ocsp_ca_certificates": "",
            "ocsp_enabled": false, "ocsp_fail_open": false, "ocsp_query_all_servers": false,
            "ocsp_servers_override": null, "required_extensions": null,
        });
        let mut data = data.as_object().cloned().unwrap_or_default();
        self.tokens.describe(&mut data);
        data
    }
}

/// A glob of at most one `*` at either end, which is how common names are allowed in practice.
fn fits(glob: &str, name: &str) -> bool {
    match (glob.strip_prefix('*'), glob.strip_suffix('*')) {
        (Some(end), _) => name.ends_with(end),
        (_, Some(start)) => name.starts_with(start),
        _ => glob == name,
    }
}

fn key_id(certificate: &X509Certificate<'_>, authority: bool) -> String {
    let id = certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) if authority => id.key_identifier.as_ref().map(|id| id.0),
        ParsedExtension::SubjectKeyIdentifier(id) if !authority => Some(id.0),
        _ => None,
    });
    let bytes: Vec<String> = id.unwrap_or_default().iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(":")
}
