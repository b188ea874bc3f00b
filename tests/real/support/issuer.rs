//! Issues the JWTs that log the program in, as an issuer outside the cluster would.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{KeyPair, PublicKeyData};
use serde_json::json;

pub const ISSUER: &str = "https://issuer.test";
pub const AUDIENCE: &str = "openbao";
pub const SUBJECT: &str = "node-1";

/// An ES256 key that signs tokens.
pub struct Issuer {
    key: EcdsaKeyPair,
    public: String,
}

impl Issuer {
    pub fn new() -> Self {
        let pair = KeyPair::generate().expect("a key");
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pair.serialize_der()).expect("P-256");
        let body = base64::engine::general_purpose::STANDARD.encode(pair.subject_public_key_info());
        let public = format!("-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n");
        Self { key, public }
    }

    /// What OpenBao verifies signatures with, as PEM.
    pub fn public_pem(&self) -> &str {
        &self.public
    }

    /// A token that expires `seconds` from now; a negative number makes one that has expired.
    pub fn token(&self, seconds: i64) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs() as i64;
        let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let header = part(json!({ "alg": "ES256", "typ": "JWT" }));
        let issued = now.min(now + seconds) - 60;
        let claims = part(json!({
            "iss": ISSUER, "aud": AUDIENCE, "sub": SUBJECT, "iat": issued, "nbf": issued, "exp": now + seconds,
        }));
        let signed = format!("{header}.{claims}");
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes()).expect("a signature");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}
