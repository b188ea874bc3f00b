//! One Transit key with its versions, and the two operations on it: seal and open. Every refusal is one of OpenBao's
//! sentences, in OpenBao's order of checks.

use std::collections::BTreeMap;
use std::time::SystemTime;

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType as HkdfLength, Salt};
use aws_lc_rs::hmac;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::super::clock::{rfc3339, unix};
use super::super::reply::fill;
use super::go_base64;

/// The type of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyType {
    Aes256,
    Aes128,
    ChaCha20,
    /// Signs only; here so that a key of a wrong type can be shown.
    Ed25519,
}

/// A refusal: the caller's fault or the server's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    User(String),
    Internal(String),
}

impl Refusal {
    fn user<T>(text: impl Into<String>) -> Result<T, Refusal> {
        Err(Refusal::User(text.into()))
    }
}

/// A key.
#[derive(Debug, Clone)]
pub struct Key {
    pub kind: KeyType,
    pub derived: bool,
    pub convergent: bool,
    pub exportable: bool,
    pub allow_plaintext_backup: bool,
    pub deletion_allowed: bool,
    pub soft_deleted: bool,
    pub auto_rotate_period: u64,
    pub min_available: u64,
    pub min_decryption: u64,
    pub min_encryption: u64,
    pub versions: BTreeMap<u64, Version>,
}

/// One version of a key.
#[derive(Debug, Clone)]
pub struct Version {
    secret: Vec<u8>,
    public: String,
    created: SystemTime,
}

impl KeyType {
    /// The type of this name, when the server has it.
    pub fn of(name: &str) -> Option<KeyType> {
        Some(match name {
            "aes256-gcm96" => KeyType::Aes256,
            "aes128-gcm96" => KeyType::Aes128,
            "chacha20-poly1305" => KeyType::ChaCha20,
            "ed25519" => KeyType::Ed25519,
            _ => return None,
        })
    }

    /// The name of this type.
    pub fn name(self) -> &'static str {
        match self {
            KeyType::Aes256 => "aes256-gcm96",
            KeyType::Aes128 => "aes128-gcm96",
            KeyType::ChaCha20 => "chacha20-poly1305",
            KeyType::Ed25519 => "ed25519",
        }
    }

    fn cipher(self) -> Option<&'static Algorithm> {
        match self {
            KeyType::Aes256 => Some(&AES_256_GCM),
            KeyType::Aes128 => Some(&AES_128_GCM),
            KeyType::ChaCha20 => Some(&CHACHA20_POLY1305),
            KeyType::Ed25519 => None,
        }
    }
}

impl Key {
    /// A key with its first version.
    pub fn new(kind: KeyType, now: SystemTime) -> Key {
        let mut key = Key {
            kind,
            derived: false,
            convergent: false,
            exportable: false,
            allow_plaintext_backup: false,
            deletion_allowed: false,
            soft_deleted: false,
            auto_rotate_period: 0,
            min_available: 0,
            min_decryption: 1,
            min_encryption: 0,
            versions: BTreeMap::new(),
        };
        key.rotate(now);
        key
    }

    /// Adds a version.
    pub fn rotate(&mut self, now: SystemTime) {
        let mut secret = vec![0u8; self.kind.cipher().map_or(32, Algorithm::key_len)];
        fill(&mut secret);
        let public = match self.kind {
            KeyType::Ed25519 => Ed25519KeyPair::from_seed_unchecked(&secret)
                .map(|pair| STANDARD.encode(pair.public_key().as_ref()))
                .unwrap_or_default(),
            _ => String::new(),
        };
        self.versions.insert(self.latest() + 1, Version { secret, public, created: now });
    }

    /// The newest version.
    pub fn latest(&self) -> u64 {
        self.versions.last_key_value().map_or(0, |(version, _)| *version)
    }

    /// The key as every path that shows it does.
    pub fn describe(&self, name: &str) -> Map<String, Value> {
        let encrypts = self.kind.cipher().is_some();
        let shown = self.versions.iter().filter(|(version, _)| **version >= self.min_decryption);
        let keys: BTreeMap<String, Value> = shown
            .map(|(version, at)| {
                let value = match self.kind {
                    KeyType::Ed25519 => json!({
                        "certificate_chain": "", "creation_time": rfc3339(at.created), "name": "ed25519",
                        "public_key": at.public,
                    }),
                    _ => unix(at.created).into(),
                };
                (version.to_string(), value)
            })
            .collect();
        let mut data = json!({
            "allow_plaintext_backup": self.allow_plaintext_backup, "auto_rotate_period": self.auto_rotate_period,
            "deletion_allowed": self.deletion_allowed, "derived": self.derived, "exportable": self.exportable,
            "imported_key": false, "keys": keys, "latest_version": self.latest(),
            "min_available_version": self.min_available, "min_decryption_version": self.min_decryption,
            "min_encryption_version": self.min_encryption, "name": name, "soft_deleted": self.soft_deleted,
            "supports_decryption": encrypts, "supports_derivation": true, "supports_encryption": encrypts,
            "supports_signing": !encrypts, "type": self.kind.name(),
        });
        if self.derived {
            data["kdf"] = "hkdf_sha256".into();
            data["convergent_encryption"] = self.convergent.into();
        }
        if self.convergent {
            data["convergent_encryption_version"] = (-1).into();
        }
        data.as_object().cloned().unwrap_or_default()
    }

    /// Seals `plaintext`; returns the version used and the ciphertext.
    pub fn encrypt(
        &self,
        version: i64,
        context: &[u8],
        plaintext: &[u8],
        associated: &str,
    ) -> Result<(u64, String), Refusal> {
        if self.soft_deleted {
            return Refusal::user("refusing to use soft-deleted key");
        }
        let Some(cipher) = self.kind.cipher() else {
            return Refusal::user(format!("message encryption not supported for key type {}", self.kind.name()));
        };
        let Ok(asked) = u64::try_from(version) else {
            return Refusal::user("requested version for encryption is negative");
        };
        if asked > self.latest() {
            return Refusal::user("requested version for encryption is higher than the latest key version");
        }
        if asked != 0 && asked < self.min_encryption {
            return Refusal::user("requested version for encryption is less than the minimum encryption key version");
        }
        let used = if asked == 0 { self.latest() } else { asked };
        let (secret, mac) = self.secret(used, context)?;
        let associated = associated_data(associated)?;
        let mut nonce = [0u8; 12];
        match &mac {
            Some(mac) => {
                let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, mac), plaintext);
                nonce.copy_from_slice(&tag.as_ref()[..12]);
            }
            None => fill(&mut nonce),
        }
        let sealing = aead(cipher, &secret)?;
        let mut body = plaintext.to_vec();
        sealing
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(associated), &mut body)
            .map_err(|_| Refusal::Internal("seal".into()))?;
        let whole = [nonce.as_slice(), &body].concat();
        Ok((used, format!("vault:v{used}:{}", STANDARD.encode(whole))))
    }

    /// Opens `ciphertext`.
    pub fn decrypt(&self, context: &[u8], ciphertext: &str, associated: &str) -> Result<Vec<u8>, Refusal> {
        if self.soft_deleted {
            return Refusal::user("refusing to use soft-deleted key");
        }
        let Some(cipher) = self.kind.cipher() else {
            return Refusal::user(format!("message decryption not supported for key type {}", self.kind.name()));
        };
        let Some(rest) = ciphertext.strip_prefix("vault:v") else {
            return Refusal::user("invalid ciphertext: no prefix");
        };
        let Some((version, body)) = rest.split_once(':') else {
            return Refusal::user("invalid ciphertext: wrong number of fields");
        };
        let Ok(version) = version.parse::<i64>() else {
            return Refusal::user("invalid ciphertext: version number could not be decoded");
        };
        let version = if version == 0 { 1 } else { version };
        if u64::try_from(version).is_ok_and(|version| version > self.latest()) {
            return Refusal::user("invalid ciphertext: version is too new");
        }
        let Some(version) = u64::try_from(version).ok().filter(|version| *version >= self.min_decryption) else {
            return Refusal::user("ciphertext or signature version is disallowed by policy (too old)");
        };
        let Ok(mut whole) = go_base64::decode(body) else {
            return Refusal::user("invalid ciphertext: could not decode base64");
        };
        let (secret, _) = self.secret(version, context)?;
        let associated = associated_data(associated)?;
        let Some((nonce, sealed)) = whole.split_at_mut_checked(12) else {
            return Refusal::user("invalid ciphertext length");
        };
        let mut fixed = [0u8; 12];
        fixed.copy_from_slice(nonce);
        let opening = aead(cipher, &secret)?;
        match opening.open_in_place(Nonce::assume_unique_for_key(fixed), Aad::from(associated), sealed) {
            Ok(plaintext) => Ok(plaintext.to_vec()),
            Err(_) => {
                let who = if self.kind == KeyType::ChaCha20 { "chacha20poly1305" } else { "cipher" };
                Refusal::user(format!("{who}: message authentication failed"))
            }
        }
    }

    /// The secret of a version, derived when the key says so, with a second one for convergent nonces.
    fn secret(&self, version: u64, context: &[u8]) -> Result<(Vec<u8>, Option<Vec<u8>>), Refusal> {
        let usable = version >= self.min_decryption;
        let Some(found) = self.versions.get(&version).filter(|_| usable) else {
            return Refusal::user("no such key version");
        };
        if !self.derived {
            return Ok((found.secret.clone(), None));
        }
        if context.is_empty() {
            return Refusal::user(
                "missing 'context' for key derivation; the key was created using a derived key, which means additional, per-request information must be included in order to perform operations with the key",
            );
        }
        let wanted = if self.convergent { 64 } else { found.secret.len() };
        let mut out = vec![0u8; wanted];
        Salt::new(HKDF_SHA256, &[])
            .extract(&found.secret)
            .expand(&[context], Length(wanted))
            .and_then(|okm| okm.fill(&mut out))
            .map_err(|_| Refusal::Internal("derive".into()))?;
        let mac = self.convergent.then(|| out.split_off(32));
        Ok((out, mac))
    }
}

struct Length(usize);

impl HkdfLength for Length {
    fn len(&self) -> usize {
        self.0
    }
}

fn aead(cipher: &'static Algorithm, secret: &[u8]) -> Result<LessSafeKey, Refusal> {
    let secret = secret.get(..cipher.key_len()).unwrap_or(secret);
    UnboundKey::new(cipher, secret).map(LessSafeKey::new).map_err(|_| Refusal::Internal("key length".into()))
}

fn associated_data(text: &str) -> Result<Vec<u8>, Refusal> {
    go_base64::decode(text).map_err(|why| {
        Refusal::Internal(format!("unable to get associated_data/additional_data from factory[0]: {why}"))
    })
}
