//! Login by JWT: signatures are really verified (RS256 and ES256, public keys as PEM) and claims compared as OpenBao
//! compares them, with its leeways and in its order.

use std::collections::BTreeMap;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Map, Value, json};

use super::fields::{Fields, Kind, Schema};
use super::mounts::Engine;
use super::reply::{Reply, Success};
use super::route::{Place, unsupported_operation, unsupported_path};
use super::state::{Inner, State};
use super::tokens::{Origin, RoleTokens};

/// Clock skew that is forgiven, in seconds.
const SKEW: i64 = 60;
/// The life of a JWT that names no end, in seconds after its start; and before its end when it names no start.
const LEEWAY: i64 = 150;

const CONFIG: Schema = &[
    ("jwt_validation_pubkeys", Kind::List),
    ("bound_issuer", Kind::Text),
    ("default_role", Kind::Text),
    ("jwks_url", Kind::Text),
    ("jwks_ca_pem", Kind::Text),
    ("oidc_discovery_url", Kind::Text),
    ("jwt_supported_algs", Kind::List),
    ("provider_config", Kind::Any),
];

const ROLE: Schema = &[
    ("role_type", Kind::Text),
    ("user_claim", Kind::Text),
    ("bound_audiences", Kind::List),
    ("bound_subject", Kind::Text),
    ("bound_claims", Kind::Any),
    ("bound_claims_type", Kind::Text),
    ("clock_skew_leeway", Kind::Duration),
    ("expiration_leeway", Kind::Duration),
    ("not_before_leeway", Kind::Duration),
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

/// A mounted login method.
#[derive(Default)]
pub struct JwtAuth {
    config: Option<Config>,
    roles: BTreeMap<String, Role>,
}

struct Config {
    pems: Vec<String>,
    keys: Vec<Vec<u8>>,
    issuer: String,
    default_role: String,
}

struct Role {
    user_claim: String,
    audiences: Vec<String>,
    subject: String,
    claims: Map<String, Value>,
    tokens: RoleTokens,
}

/// Answers the paths that an operator uses: `config`, `role` and `role/<name>`.
pub fn configure(auth: &mut JwtAuth, place: &Place<'_>, rest: &str) -> Reply {
    match (rest.split_once('/'), rest, place.operation) {
        (None, "config", "update") => auth.write_config(place).unwrap_or_else(|refusal| refusal),
        (None, "config", "read") => auth.read_config(),
        (None, "role", "list") | (Some(("role", "")), _, "list") => auth.list(),
        (Some(("role", name)), _, operation) if !name.is_empty() => {
            let name = name.to_lowercase();
            match operation {
                "update" => auth.write_role(name, place).unwrap_or_else(|refusal| refusal),
                "read" => auth.roles.get(&name).map_or_else(|| Reply::blank(404), |role| Reply::data(role.describe())),
                "delete" => {
                    auth.roles.remove(&name);
                    Reply::empty()
                }
                _ => unsupported_operation(),
            }
        }
        (None, "config" | "role", _) => unsupported_operation(),
        _ => unsupported_path(),
    }
}

/// `login`: a token for a JWT.
pub fn login(inner: &mut Inner, state: &State, place: &Place<'_>, at: &str) -> Reply {
    let schema: Schema = &[("role", Kind::Text), ("jwt", Kind::Text)];
    let fields = match Fields::check(&place.body, schema, &[], false) {
        Ok(fields) => fields,
        Err(reply) => return reply,
    };
    let Some(namespace) = inner.namespaces.get(&place.namespace) else { return unsupported_path() };
    let Some(mount) = namespace.mounts.get(at) else { return unsupported_path() };
    let Engine::Jwt(auth) = &mount.engine else { return unsupported_path() };
    let now = i64::try_from(state.clock.unix()).unwrap_or(i64::MAX);
    let (name, role, claims) = match auth.admit(&fields, now) {
        Ok(admitted) => admitted,
        Err(why) => return Reply::bad(why),
    };
    let user = claims.get(&role.user_claim).and_then(Value::as_str).unwrap_or_default();
    let origin = Origin::Jwt { mount: at.to_owned(), role: name.clone() };
    let method = at.trim_start_matches("auth/").trim_end_matches('/');
    let mut mint = role.tokens.mint((place.namespace.clone(), namespace.id.clone()), format!("{at}login"), origin);
    mint.display_name = format!("{method}-{user}");
    mint.alias = format!("{}/{user}", mount.accessor);
    mint.meta = Some(BTreeMap::from([("role".to_owned(), name)]));
    let (token, lease, capped) = inner.tokens.mint(mint, state.clock.now());
    let warnings = [fields.warnings, capped].concat();
    Success { auth: Some(token.auth(lease)), warnings, ..Success::default() }.reply()
}

/// Whether the role that made a token is still there, as renewal asks.
pub fn still_there(inner: &Inner, place: &Place<'_>, at: &str, role: &str) -> Result<(), Reply> {
    let mount = inner.namespaces.get(&place.namespace).and_then(|namespace| namespace.mounts.get(at));
    match mount.map(|mount| &mount.engine) {
        Some(Engine::Jwt(auth)) if auth.roles.contains_key(role) => Ok(()),
        _ => Err(Reply::multi(500, format!("role {role} does not exist during renewal"))),
    }
}

impl JwtAuth {
    fn write_config(&mut self, place: &Place<'_>) -> Result<Reply, Reply> {
        let fields = Fields::check(&place.body, CONFIG, &[], false)?;
        let pems = fields.list("jwt_validation_pubkeys");
        if pems.is_empty() {
            let text = "exactly one of 'jwt_validation_pubkeys', 'jwks_url' or 'oidc_discovery_url' must be set";
            return Err(Reply::bad(text));
        }
        let mut keys = Vec::new();
        for pem in &pems {
            let key = SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes())
                .map_err(|_| Reply::bad("error parsing public key: data does not contain any valid public keys"))?;
            keys.push(key.as_ref().to_vec());
        }
        self.config = Some(Config {
            pems: pems.iter().map(|pem| pem.trim().to_owned()).collect(),
            keys,
            issuer: fields.text_or_empty("bound_issuer").to_owned(),
            default_role: fields.text_or_empty("default_role").to_lowercase(),
        });
        Ok(Reply::empty())
    }

    fn read_config(&self) -> Reply {
        let Some(config) = &self.config else { return Reply::blank(404) };
        let data = json!({
            "bound_issuer": config.issuer, "default_role": config.default_role, "jwks_ca_pem": "", "jwks_url": "",
            "jwt_supported_algs": [], "jwt_validation_pubkeys": config.pems, "namespace_in_state": true,
            "oidc_client_id": "", "oidc_discovery_ca_pem": "", "oidc_discovery_url": "", "oidc_response_mode": "",
            "oidc_response_types": [], "override_allowed_server_names": [], "provider_config": {}, "status": "valid",
        });
        Reply::data(data.as_object().cloned().unwrap_or_default())
    }

    fn list(&self) -> Reply {
        if self.roles.is_empty() {
            return Reply::blank(404);
        }
        let names: Vec<Value> = self.roles.keys().cloned().map(Value::from).collect();
        Reply::data(Map::from_iter([("keys".into(), names.into())]))
    }

    fn write_role(&mut self, name: String, place: &Place<'_>) -> Result<Reply, Reply> {
        let fields = Fields::check(&place.body, ROLE, &["name"], false)?;
        let role = Role {
            user_claim: fields.text_or_empty("user_claim").to_owned(),
            audiences: fields.list("bound_audiences"),
            subject: fields.text_or_empty("bound_subject").to_owned(),
            claims: fields.get("bound_claims").and_then(Value::as_object).cloned().unwrap_or_default(),
            tokens: RoleTokens::read(&fields),
        };
        if role.user_claim.is_empty() {
            return Err(Reply::bad("a user claim must be defined on the role"));
        }
        if role.audiences.is_empty() && role.subject.is_empty() && role.claims.is_empty() {
            return Err(Reply::bad("must have at least one bound constraint when creating/updating a role"));
        }
        self.roles.insert(name, role);
        Ok(Reply::empty())
    }

    /// The role and the verified claims, or the sentence that OpenBao refuses with.
    fn admit(&self, fields: &Fields, now: i64) -> Result<(String, &Role, Map<String, Value>), String> {
        let config = self.config.as_ref().ok_or("could not load configuration")?;
        let asked = fields.text_or_empty("role").to_lowercase();
        let name = if asked.is_empty() { config.default_role.clone() } else { asked };
        if name.is_empty() {
            return Err("missing role".into());
        }
        let role = self.roles.get(&name).ok_or_else(|| format!("role \"{name}\" could not be found"))?;
        let jwt = fields.text_or_empty("jwt");
        if jwt.is_empty() {
            return Err("missing token".into());
        }
        let claims = verify(jwt, &config.keys)
            .map_err(|why| format!("error validating token: error verifying token signature: {why}"))?;
        role.validate(&claims, &config.issuer, now).map_err(|why| format!("error validating token: {why}"))?;
        if !audiences(&claims).is_empty() && role.audiences.is_empty() {
            return Err("audience claim found in JWT but no audiences bound to the role".into());
        }
        if !claims.contains_key(&role.user_claim) {
            return Err(format!("claim \"{}\" not found in token", role.user_claim));
        }
        role.compare(&claims).map_err(|why| format!("error validating claims: {why}"))?;
        Ok((name, role, claims))
    }
}

impl Role {
    fn validate(&self, claims: &Map<String, Value>, issuer: &str, now: i64) -> Result<(), &'static str> {
        let text = |name: &str| claims.get(name).and_then(Value::as_str).unwrap_or_default();
        // Fractions of a second in a JWT's times are dropped, as OpenBao drops them.
        let time = |name: &str| claims.get(name).and_then(Value::as_f64).map_or(0, |seconds| seconds as i64);
        if !issuer.is_empty() && text("iss") != issuer {
            return Err("invalid issuer (iss) claim");
        }
        if !self.subject.is_empty() && text("sub") != self.subject {
            return Err("invalid subject (sub) claim");
        }
        if !self.audiences.is_empty() && !audiences(claims).iter().any(|aud| self.audiences.contains(aud)) {
            return Err("invalid audience (aud) claim: audience claim does not match any expected audience");
        }
        let (issued, mut begins, mut ends) = (time("iat"), time("nbf"), time("exp"));
        if (issued, begins, ends) == (0, 0, 0) {
            return Err("no issued at (iat), not before (nbf), or expiration time (exp) claims in token");
        }
        if ends == 0 {
            ends = issued.max(begins).saturating_add(LEEWAY);
        }
        if begins == 0 {
            begins = if issued != 0 { issued } else { ends.saturating_sub(LEEWAY) };
        }
        if now.saturating_add(SKEW) < begins {
            return Err("invalid not before (nbf) claim: token not yet valid");
        }
        if now.saturating_sub(SKEW) > ends {
            return Err("invalid expiration time (exp) claim: token is expired");
        }
        if now.saturating_add(SKEW) < issued {
            return Err("invalid issued at (iat) claim: token issued in the future");
        }
        Ok(())
    }

    fn compare(&self, claims: &Map<String, Value>) -> Result<(), String> {
        for (name, bound) in &self.claims {
            let actual = claims.get(name).ok_or_else(|| format!("claim \"{name}\" is missing"))?;
            let wanted = bound.as_array().map_or_else(|| std::slice::from_ref(bound), Vec::as_slice);
            let given = actual.as_array().map_or_else(|| std::slice::from_ref(actual), Vec::as_slice);
            if !given.iter().any(|value| wanted.contains(value)) {
                return Err(format!("claim \"{name}\" does not match any associated bound claim values"));
            }
        }
        Ok(())
    }

    fn describe(&self) -> Map<String, Value> {
        let claims = if self.claims.is_empty() { Value::Null } else { Value::Object(self.claims.clone()) };
        let audiences = if self.audiences.is_empty() { Value::Null } else { self.audiences.clone().into() };
        let data = json!({
            "allowed_redirect_uris": null, "bound_audiences": audiences, "bound_claims": claims,
            "bound_claims_type": "string", "bound_subject": self.subject, "callback_mode": "client",
            "claim_mappings": null, "clock_skew_leeway": 0, "expiration_leeway": 0, "groups_claim": "", "max_age": 0,
            "not_before_leeway": 0, "oauth2_metadata": null, "oidc_scopes": null, "role_type": "jwt",
            "token_policies_template_claims": false, "user_claim": self.user_claim,
            "user_claim_json_pointer": false, "verbose_oidc_logging": false,
        });
        let mut data = data.as_object().cloned().unwrap_or_default();
        self.tokens.describe(&mut data);
        data
    }
}

fn audiences(claims: &Map<String, Value>) -> Vec<String> {
    match claims.get("aud") {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

/// The claims of a compact JWT that one of `keys` signed.
fn verify(jwt: &str, keys: &[Vec<u8>]) -> Result<Map<String, Value>, String> {
    let parts: Vec<&str> = jwt.split('.').collect();
    let [header, claims, signature] = parts.as_slice() else {
        return Err("go-jose/go-jose: compact JWS format must have three parts".into());
    };
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|error| illegal(&error));
    let (header_json, claims_json, signature) = (decode(header)?, decode(claims)?, decode(signature)?);
    let header_json: Value =
        serde_json::from_slice(&header_json).map_err(|_| "invalid character looking for beginning of value")?;
    let message = &jwt[..header.len() + 1 + claims.len()];
    let verified = keys.iter().any(|key| match header_json["alg"].as_str() {
        Some("ES256") => {
            UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key).verify(message.as_bytes(), &signature).is_ok()
        }
        Some("RS256") => {
            UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key).verify(message.as_bytes(), &signature).is_ok()
        }
        _ => false,
    });
    if !verified {
        return Err("no known key successfully validated the token signature".into());
    }
    serde_json::from_slice(&claims_json).map_err(|_| "claims are not an object".into())
}

fn illegal(error: &base64::DecodeError) -> String {
    let at = match error {
        base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => *at,
        // Go counts from the start of the last, incomplete group of four.
        base64::DecodeError::InvalidLength(len) => len / 4 * 4,
        base64::DecodeError::InvalidPadding => 0,
    };
    format!("illegal base64 data at input byte {at}")
}
