//! JWTs for the quick start and the tests: a fresh ES256 or RS256 key, claims in, compact JWT out. OpenBao is given the public key
//! as PEM and needs no issuer to ask.

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

/// Why a signer could not be made or a JWT not be signed.
#[derive(Debug, thiserror::Error)]
#[error("the signing key is unusable")]
pub struct SignError;

/// A signing key.
pub struct Signer {
    pair: Pair,
    public_pem: String,
}

enum Pair {
    Elliptic(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

impl Signer {
    /// Makes a fresh P-256 key; its JWTs are ES256.
    ///
    /// # Errors
    /// When the crypto library cannot make one.
    pub fn generate() -> Result<Signer, SignError> {
        let key = rcgen::KeyPair::generate().map_err(|_| SignError)?;
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.serialized_der());
        Ok(Signer { pair: Pair::Elliptic(pair.map_err(|_| SignError)?), public_pem: key.public_key_pem() })
    }

    /// Makes a fresh RSA key of 2048 bits; its JWTs are RS256.
    ///
    /// # Errors
    /// When the crypto library cannot make one.
    pub fn generate_rsa() -> Result<Signer, SignError> {
        let pair = RsaKeyPair::generate(KeySize::Rsa2048).map_err(|_| SignError)?;
        let der = pair.public_key().as_der().map_err(|_| SignError)?;
        let text = STANDARD.encode(der.as_ref());
        let mut public_pem = String::from("-----BEGIN PUBLIC KEY-----\n");
        for line in text.as_bytes().chunks(64) {
            public_pem.extend(line.iter().copied().map(char::from));
            public_pem.push('\n');
        }
        public_pem += "-----END PUBLIC KEY-----\n";
        Ok(Signer { pair: Pair::Rsa(pair), public_pem })
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
        let alg = match self.pair {
            Pair::Elliptic(_) => "ES256",
            Pair::Rsa(_) => "RS256",
        };
        let header = json!({ "alg": alg, "typ": "JWT" });
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", part(&header), part(claims));
        let random = SystemRandom::new();
        let signature = match &self.pair {
            Pair::Elliptic(pair) => pair.sign(&random, message.as_bytes()).map_err(|_| SignError)?.as_ref().to_vec(),
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message.as_bytes(), &mut signature).map_err(|_| SignError)?;
                signature
            }
        };
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
