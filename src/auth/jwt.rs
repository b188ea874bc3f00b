//! Login with a JWT from a file. Its claims are looked at for findings and schedules only; whether it is good is for
//! OpenBao to say.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Attempt, Login, Method};
use crate::error::{Class, Error};
use crate::files::{self, Secrecy};
use crate::request::{BaoCall, Credential, Method as HttpMethod, Purpose};

/// How long a login may take.
pub(super) const LOGIN_WITHIN: Duration = Duration::from_secs(5);
/// Remaining validity, in seconds, below which a finding is made.
const SOON: f64 = 300.0;
/// Seconds by which clocks may differ before that is a finding.
const LEEWAY: f64 = 60.0;

/// `auth.jwt`: a JWT from a file, which somebody outside the protected cluster issues and renews.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(rename = "JwtLogin")]
pub struct Config {
    /// The path of the auth mount, without `auth/`.
    #[serde(default = "default_mount")]
    #[schemars(regex(pattern = "^[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$"))]
    pub mount: String,
    /// The role to log in with.
    #[schemars(length(min = 1, max = 256))]
    pub role: String,
    /// The file with the JWT, at most 16 KiB, readable by nobody else; read again at each login.
    #[schemars(length(min = 1))]
    pub file: PathBuf,
}

fn default_mount() -> String {
    "jwt".to_owned()
}

/// The method.
#[derive(Debug)]
pub struct Jwt {
    config: Config,
}

/// The claims as they are: a claim of an unexpected type is a finding, not an obstacle.
type Claims = serde_json::Map<String, serde_json::Value>;

// === impl Config ===

impl Login for Config {
    fn method(&self) -> Arc<dyn Method> {
        Arc::new(Jwt::new(self.clone()))
    }

    fn files(&self) -> Vec<(&'static str, &Path)> {
        vec![("file", &self.file)]
    }
}

// === impl Jwt ===

impl Jwt {
    /// The method of this configuration.
    pub fn new(config: Config) -> Self {
        Self { config }
    }
}

impl Method for Jwt {
    fn login(&self) -> Result<Attempt, Error> {
        let unavailable = |detail: String| Error::new(Class::CredentialUnavailable, detail);
        let path = &self.config.file;
        let content =
            files::read(path, Secrecy::Private, files::MAX_JWT).map_err(|error| unavailable(error.to_string()))?;
        let text = std::str::from_utf8(&content).unwrap_or_default().trim();
        let claims = claims(text)
            .ok_or_else(|| unavailable(format!("{}: not a JWT; it must hold one and nothing else", path.display())))?;
        let body = body(&self.config.role, text)?;
        let login = format!("auth/{}/login", self.config.mount);
        Ok(Attempt {
            call: BaoCall::own(Purpose::Login, HttpMethod::Post, login, LOGIN_WITHIN)
                .with_body(body)
                .with_credential(Credential::Anonymous),
            expires_unix: time(&claims, "exp").map(|exp| exp.max(0.0) as u64),
            findings: findings(&claims, SystemTime::now()),
        })
    }
}

/// The login's body, in one buffer of exactly its size: growing or shrinking it would leave copies of the JWT behind.
fn body(role: &str, jwt: &str) -> Result<Vec<u8>, Error> {
    let role = serde_json::to_string(role).map_err(|_| Error::from(Class::Internal))?;
    // Base64url and dots, as `claims` has seen to: nothing of a JWT needs escaping.
    let parts = ["{\"role\":", &role, ",\"jwt\":\"", jwt, "\"}"];
    let mut body = Vec::with_capacity(parts.iter().map(|part| part.len()).sum());
    parts.iter().for_each(|part| body.extend_from_slice(part.as_bytes()));
    Ok(body)
}

/// The claims of a text with the shape of a JWT: three base64url parts, the middle one a JSON object.
fn claims(text: &str) -> Option<Claims> {
    let parts: Vec<&str> = text.split('.').collect();
    let [header, body, signature] = parts[..] else {
        return None;
    };
    URL_SAFE_NO_PAD.decode(header).ok()?;
    URL_SAFE_NO_PAD.decode(signature).ok()?;
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(body).ok()?).ok()
}

/// A claim that is a time, Unix seconds.
fn time(claims: &Claims, name: &str) -> Option<f64> {
    claims.get(name).and_then(serde_json::Value::as_f64)
}

fn findings(claims: &Claims, now: SystemTime) -> Vec<String> {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let mut found = Vec::new();
    match time(claims, "exp") {
        None => found.push("the JWT has no exp: it never expires by itself".to_owned()),
        Some(exp) if exp <= now => found.push("the JWT has expired by this node's clock".to_owned()),
        Some(exp) if exp - now < SOON => found.push("the JWT expires within 5 minutes by this node's clock".to_owned()),
        Some(_) => {}
    }
    if time(claims, "nbf").is_some_and(|nbf| nbf > now + LEEWAY) {
        found.push("the JWT is not valid yet by this node's clock".to_owned());
    }
    if time(claims, "iat").is_some_and(|iat| iat > now + LEEWAY) {
        found.push("the JWT was issued in the future by this node's clock".to_owned());
    }
    for name in ["iss", "aud", "sub"] {
        if claims.get(name).is_none_or(serde_json::Value::is_null) {
            found.push(format!("the JWT has no {name}"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jwt(claims: &serde_json::Value) -> String {
        format!("{}.{}.c2ln", URL_SAFE_NO_PAD.encode("{\"alg\":\"ES256\"}"), URL_SAFE_NO_PAD.encode(claims.to_string()))
    }

    #[test]
    fn what_is_no_jwt_is_refused() {
        for text in ["", "a.b", "a.b.c.d", "!.e30.x", "e30.!.x", "e30.bm8.x"] {
            assert!(claims(text).is_none(), "{text}");
        }
        assert!(claims(&jwt(&serde_json::json!({}))).is_some());
    }

    #[test]
    fn the_body_is_json_in_a_buffer_of_its_size() {
        let jwt = jwt(&serde_json::json!({}));
        let body = body("a \"role\"", &jwt).expect("body");
        assert_eq!(body.capacity(), body.len());
        let json: serde_json::Value = serde_json::from_slice(&body).expect("json");
        assert_eq!(json, serde_json::json!({"role": "a \"role\"", "jwt": jwt}));
    }

    #[test]
    fn claims_make_findings_and_never_a_refusal() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let good = serde_json::json!({"exp": 2_000, "iss": "i", "aud": "a", "sub": "s"});
        let parsed = |value| claims(&jwt(&value)).expect("jwt");
        assert_eq!(findings(&parsed(good.clone()), at(1_000)), Vec::<String>::new());
        assert_eq!(findings(&parsed(good), at(3_000)), ["the JWT has expired by this node's clock"]);
        assert_eq!(findings(&parsed(serde_json::json!({"nbf": 9_000, "iat": 9_000})), at(0)).len(), 6);
        let odd = parsed(serde_json::json!({"exp": "soon", "nbf": [], "iss": 1, "aud": ["a"], "sub": {}}));
        assert_eq!(findings(&odd, at(0)), ["the JWT has no exp: it never expires by itself"]);
    }
}
