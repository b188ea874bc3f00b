//! JWTs for the quick start and the tests: a fresh ES256 key, claims in, compact JWT out. OpenBao is given the public key
//! as PEM and needs no issuer to ask.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

/// Why a signer could not be made or a JWT not be signed.
#[derive(Debug, thiserror::Error)]
#[error("the signing key is unusable")]
pub struct SignError;

/// A signing key.
pub struct Signer {
    pair: EcdsaKeyPair,
    public_pem: String,
}

impl Signer {
    /// Makes a fresh key.
    ///
    /// # Errors
    /// When the crypto library cannot make one.
    pub fn generate() -> Result<Signer, SignError> {
        let key = rcgen::KeyPair::generate().map_err(|_| SignError)?;
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.serialized_der());
        Ok(Signer { pair: pair.map_err(|_| SignError)?, public_pem: key.public_key_pem() })
    }

    /// The public key as PEM, as `jwt_validation_pubkeys` takes it.
    pub fn public_key_pem(&self) -> &str {
        &self.public_pem
    }

    /// A compact JWT of these claims, as they are.
    ///
    /// # Errors
    /// When the crypto library cannot sign.
    pub fn sign(&self, claims: &Value) -> Result<String, SignError> {
        let header = json!({ "alg": "ES256", "typ": "JWT" });
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", part(&header), part(claims));
        let signature = self.pair.sign(&SystemRandom::new(), message.as_bytes()).map_err(|_| SignError)?;
        Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// A JWT for `subject` and `audience` from `issuer`, valid from a minute ago for `seconds` from now on.
    ///
    /// # Errors
    /// When the crypto library cannot sign.
    pub fn token(&self, issuer: &str, audience: &str, subject: &str, seconds: i64) -> Result<String, SignError> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        self.sign(&json!({
            "iss": issuer, "aud": audience, "sub": subject, "iat": now - 60, "nbf": now - 60, "exp": now + seconds,
        }))
    }
}
