//! Login with a JWT from a file. Its claims are looked at for findings and schedules only; whether it is good is for
//! OpenBao to say.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{Attempt, Login, Method, upcoming};
use crate::error::{Class, Error};
use crate::files::{self, Secrecy};
use crate::request::{BaoCall, Credential, Method as HttpMethod, Purpose};

/// How long a login may take.
pub(super) const LOGIN_WITHIN: Duration = Duration::from_secs(5);
/// The share of a JWT's life that is left when a finding is made: whoever renews the file was to have done it by then.
const SOON_SHARE: f64 = 0.1;
/// The same in seconds, for a JWT that does not say when its life began.
const SOON: f64 = 300.0;
/// The most that it is, in seconds: a month's JWT is not spoken of for days.
const SOON_AT_MOST: f64 = 3_600.0;
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
    /// What the JWT should say. A claim that says something else is told in the log and never stops a login: OpenBao decides.
    #[serde(default)]
    pub expect: Expect,
}

/// `auth.jwt.expect`: what the claims should be, so that a file that somebody put in the wrong place is found by its name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[schemars(rename = "JwtExpectations")]
pub struct Expect {
    /// The issuer (`iss`); not compared when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub issuer: Option<String>,
    /// One of the audiences (`aud`); not compared when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub audience: Option<String>,
    /// The subject (`sub`); not compared when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub subject: Option<String>,
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
        let now = SystemTime::now();
        let login = format!("auth/{}/login", self.config.mount);
        Ok(Attempt {
            call: BaoCall::own(Purpose::Login, HttpMethod::Post, login, LOGIN_WITHIN)
                .with_body(body)
                .with_credential(Credential::Anonymous),
            expires_unix: time(&claims, "exp").map(|exp| exp.max(0.0) as u64),
            changes_unix: changes(&claims, now),
            findings: findings(&claims, &self.config.expect, now),
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
    let decoded = |part: &str| URL_SAFE_NO_PAD.decode(part).ok().map(Zeroizing::new);
    decoded(header)?;
    decoded(signature)?;
    serde_json::from_slice(&decoded(body)?).ok()
}

/// A claim that is a time, Unix seconds.
fn time(claims: &Claims, name: &str) -> Option<f64> {
    claims.get(name).and_then(serde_json::Value::as_f64)
}

/// From when on, by `exp`, the JWT is about to expire.
fn soon(claims: &Claims, exp: f64) -> f64 {
    let life = time(claims, "iat").or_else(|| time(claims, "nbf")).map(|began| (exp - began) * SOON_SHARE);
    exp - life.unwrap_or(SOON).clamp(0.0, SOON_AT_MOST)
}

/// When the findings change by themselves.
fn changes(claims: &Claims, now: SystemTime) -> Option<u64> {
    let exp = time(claims, "exp");
    let begins = ["nbf", "iat"].map(|name| time(claims, name).map(|at| at - LEEWAY));
    let moments = [exp.map(|exp| soon(claims, exp)), exp].into_iter().chain(begins).flatten();
    upcoming(now, moments.map(|moment| moment.ceil().max(0.0) as u64))
}

fn findings(claims: &Claims, expect: &Expect, now: SystemTime) -> Vec<String> {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let mut found = Vec::new();
    match time(claims, "exp") {
        None => found.push("the JWT has no exp: it never expires by itself".to_owned()),
        Some(exp) if exp <= now => found.push("the JWT has expired by this node's clock".to_owned()),
        Some(exp) if soon(claims, exp) <= now => {
            found.push("the JWT is about to expire by this node's clock: look at what renews its file".to_owned());
        }
        Some(_) => {}
    }
    if time(claims, "nbf").is_some_and(|nbf| nbf > now + LEEWAY) {
        found.push("the JWT is not valid yet by this node's clock".to_owned());
    }
    if time(claims, "iat").is_some_and(|iat| iat > now + LEEWAY) {
        found.push("the JWT was issued in the future by this node's clock".to_owned());
    }
    for (name, key, expected) in
        [("iss", "issuer", &expect.issuer), ("aud", "audience", &expect.audience), ("sub", "subject", &expect.subject)]
    {
        match (claims.get(name).filter(|claim| !claim.is_null()), expected) {
            (None, _) => found.push(format!("the JWT has no {name}")),
            (Some(claim), Some(expected)) if !says(claim, expected) => {
                // The claim itself stays out of the log: it may name people and systems.
                found.push(format!("the JWT's {name} is not what auth.jwt.expect.{key} says: it may be another's JWT"));
            }
            (Some(_), _) => {}
        }
    }
    found
}

/// Whether a claim is this text, or a list with it.
fn says(claim: &serde_json::Value, expected: &str) -> bool {
    match claim {
        serde_json::Value::Array(list) => list.iter().any(|one| one.as_str() == Some(expected)),
        one => one.as_str() == Some(expected),
    }
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

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn parsed(value: &serde_json::Value) -> Claims {
        claims(&jwt(value)).expect("jwt")
    }

    #[test]
    fn claims_make_findings_and_never_a_refusal() {
        let found = |value: &serde_json::Value, now| findings(&parsed(value), &Expect::default(), at(now));
        let good = serde_json::json!({"exp": 2_000, "iss": "i", "aud": "a", "sub": "s"});
        assert_eq!(found(&good, 1_000), Vec::<String>::new());
        assert_eq!(found(&good, 3_000), ["the JWT has expired by this node's clock"]);
        assert_eq!(found(&serde_json::json!({"nbf": 9_000, "iat": 9_000}), 0).len(), 6);
        let odd = serde_json::json!({"exp": "soon", "nbf": [], "iss": 1, "aud": ["a"], "sub": {}});
        assert_eq!(found(&odd, 0), ["the JWT has no exp: it never expires by itself"]);
    }

    #[test]
    fn claims_that_are_not_as_expected_are_named_without_what_they_say() {
        let text = |text: &str| Some(text.to_owned());
        let all = Expect { issuer: text("i"), audience: text("a"), subject: text("s") };
        let claims = |iss: &str, aud: serde_json::Value, sub: &str| {
            parsed(&serde_json::json!({"exp": 2_000, "iss": iss, "aud": aud, "sub": sub}))
        };
        for aud in [serde_json::json!("a"), serde_json::json!(["b", "a"])] {
            assert_eq!(findings(&claims("i", aud, "s"), &all, at(0)), Vec::<String>::new());
        }
        for (claims, name, key) in [
            (claims("other-1", "a".into(), "s"), "iss", "issuer"),
            (claims("i", "other-1".into(), "s"), "aud", "audience"),
            (claims("i", serde_json::json!(["other-1"]), "s"), "aud", "audience"),
            (claims("i", "a".into(), "other-1"), "sub", "subject"),
        ] {
            let found = findings(&claims, &all, at(0));
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].contains(name) && found[0].contains(key) && !found[0].contains("other-1"), "{found:?}");
            assert_eq!(findings(&claims, &Expect::default(), at(0)), Vec::<String>::new(), "nothing is expected");
        }
    }

    #[test]
    fn an_expiry_is_near_in_the_last_tenth_of_a_life_and_its_moments_are_looked_at() {
        for (claims, soon) in [
            (serde_json::json!({"iat": 10_000, "exp": 10_600}), 10_540),
            (serde_json::json!({"nbf": 10_000, "exp": 10_600}), 10_540),
            (serde_json::json!({"iat": 10_000, "exp": 10_000 + 7 * 86_400}), 10_000 + 7 * 86_400 - 3_600),
            (serde_json::json!({"exp": 10_600}), 10_300),
        ] {
            let claims = parsed(&claims);
            let exp = claims["exp"].as_u64().expect("a time");
            let near =
                |now| findings(&claims, &Expect::default(), at(now)).iter().any(|found| found.contains("about to"));
            assert_eq!(
                [near(soon - 1), near(soon), near(exp - 1), near(exp)],
                [false, true, true, false],
                "{claims:?}"
            );
            let looks = [soon - 1, soon, exp].map(|now| changes(&claims, at(now)));
            assert_eq!(looks, [Some(soon), Some(exp), None], "{claims:?}");
        }
        assert_eq!(changes(&parsed(&serde_json::json!({"exp": 1e300, "nbf": -1e300})), at(0)), Some(u64::MAX));
    }

    #[test]
    fn a_jwt_above_16_kib_is_refused_and_one_of_16_kib_is_not() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("identity.jwt");
        let method = Jwt::new(Config {
            mount: "jwt".to_owned(),
            role: "r".to_owned(),
            file: file.clone(),
            expect: Expect::default(),
        });
        let longest = usize::try_from(files::MAX_JWT).expect("a size");
        let text = jwt(&serde_json::json!({"exp": 2_000, "pad": "x".repeat(longest * 3 / 4 - 200)}));
        for (length, good) in [(longest, true), (longest + 1, false)] {
            std::fs::write(&file, format!("{text:<length$}")).expect("written");
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("mode");
            let outcome = method.login();
            assert_eq!(outcome.is_ok(), good, "{length}");
            if let Err(error) = outcome {
                assert_eq!(error.class(), Class::CredentialUnavailable);
                assert!(error.detail().contains("identity.jwt: larger than 16384 bytes"), "{error}");
            }
        }
        assert!(text.len() > longest - 400, "the JWT itself is nearly as long as the file");
    }
}
