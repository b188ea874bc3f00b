//! The JSON that Transit reads and writes. Bodies that hold plaintext are made in buffers that are wiped; replies are
//! believed only as far as they are checked.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use secrecy::ExposeSecret;
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::error::{Class, Error};
use crate::key::{Metadata, check};
use crate::request::{Secret, secret};

#[derive(Deserialize)]
struct Envelope<T> {
    data: T,
}

#[derive(Deserialize)]
struct Encrypted<'a> {
    #[serde(borrow)]
    ciphertext: &'a str,
    key_version: u32,
}

#[derive(Deserialize)]
struct Decrypted<'a> {
    #[serde(borrow)]
    plaintext: &'a str,
}

#[derive(Deserialize)]
struct KeysConfig {
    disable_upsert: bool,
}

pub(super) fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// `plaintext`, `associated_data` (already base64) and `key_version`.
pub(super) fn encrypt_body(seed: &Secret, associated_data: &str, version: u32) -> Vec<u8> {
    let seed = seed.expose_secret();
    let mut body = String::with_capacity(seed.len() * 4 / 3 + associated_data.len() + 80);
    body.push_str("{\"plaintext\":\"");
    STANDARD.encode_string(seed, &mut body);
    body.push_str("\",\"associated_data\":\"");
    body.push_str(associated_data);
    body.push_str("\",\"key_version\":");
    body.push_str(&version.to_string());
    body.push('}');
    body.into_bytes()
}

/// `ciphertext` and `associated_data`. The prefix was checked; what follows must not leave its JSON string.
pub(super) fn decrypt_body(text: &[u8], associated_data: &str) -> Result<Vec<u8>, Error> {
    let printable = text.iter().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\'));
    if !printable {
        return Err(Error::new(Class::CiphertextInvalid, "the ciphertext holds characters that Transit never writes"));
    }
    let mut body = Vec::with_capacity(text.len() + associated_data.len() + 48);
    body.extend_from_slice(b"{\"ciphertext\":\"");
    body.extend_from_slice(text);
    body.extend_from_slice(b"\",\"associated_data\":\"");
    body.extend_from_slice(associated_data.as_bytes());
    body.extend_from_slice(b"\"}");
    Ok(body)
}

/// The sealed text, after a check that it was sealed under the version that was asked for.
pub(super) fn encrypted(body: &Bytes, version: u32) -> Result<Bytes, Error> {
    let Envelope { data } = parse::<Encrypted<'_>>(body)?;
    if data.key_version != version || check::check_prefix(version, data.ciphertext.as_bytes()).is_err() {
        let detail = format!("asked for version {version}, got version {}", data.key_version);
        return Err(Error::new(Class::WrongVersion, detail).with_version(version));
    }
    Ok(body.slice_ref(data.ciphertext.as_bytes()))
}

/// The opened seed, in a buffer that is wiped.
pub(super) fn decrypted(body: &Bytes) -> Result<Secret, Error> {
    let Envelope { data } = parse::<Decrypted<'_>>(body)?;
    let mut seed = Zeroizing::new(Vec::with_capacity(data.plaintext.len()));
    STANDARD
        .decode_vec(data.plaintext, &mut seed)
        .map_err(|_| Error::new(Class::BadReply, "the plaintext in the answer is not base64"))?;
    Ok(secret(std::mem::take(&mut *seed)))
}

pub(super) fn metadata(body: &Bytes) -> Result<Metadata, Error> {
    let data: serde_json::Value = parse::<serde_json::Value>(body)?.data;
    // Asymmetric keys list objects instead of times; the type is what the findings are about.
    let asymmetric =
        data.get("keys").and_then(|keys| keys.as_object()).is_some_and(|keys| keys.values().any(|v| !v.is_u64()));
    let data = if asymmetric { without_keys(data) } else { data };
    serde_json::from_value(data).map_err(|_| Error::new(Class::BadReply, "the metadata is not that of a Transit key"))
}

fn without_keys(mut data: serde_json::Value) -> serde_json::Value {
    if let Some(object) = data.as_object_mut() {
        object.remove("keys");
    }
    data
}

pub(super) fn disable_upsert(body: &Bytes) -> Result<bool, Error> {
    Ok(parse::<KeysConfig>(body)?.data.disable_upsert)
}

fn parse<'a, T: Deserialize<'a>>(body: &'a Bytes) -> Result<Envelope<T>, Error> {
    serde_json::from_slice(body)
        .map_err(|_| Error::new(Class::BadReply, "the answer is not the JSON that Transit writes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_the_json_that_transit_reads() {
        let body = encrypt_body(&secret(b"seed".to_vec()), "YWFk", 7);
        let json: serde_json::Value = serde_json::from_slice(&body).expect("json");
        assert_eq!(json, serde_json::json!({"plaintext": "c2VlZA==", "associated_data": "YWFk", "key_version": 7}));
        let body = decrypt_body(b"vault:v7:AAAA", "YWFk").expect("body");
        let json: serde_json::Value = serde_json::from_slice(&body).expect("json");
        assert_eq!(json, serde_json::json!({"ciphertext": "vault:v7:AAAA", "associated_data": "YWFk"}));
        assert!(decrypt_body(b"vault:v7:A\",\"context\":\"x", "YWFk").is_err());
    }

    #[test]
    fn another_version_than_asked_is_refused() {
        let reply = |text: &str, version: u32| {
            Bytes::from(serde_json::json!({"data": {"ciphertext": text, "key_version": version}}).to_string())
        };
        assert_eq!(encrypted(&reply("vault:v2:AAAA", 2), 2).expect("sealed"), "vault:v2:AAAA");
        for (text, version) in [("vault:v2:AAAA", 3), ("vault:v3:AAAA", 2), ("AAAA", 2)] {
            let error = encrypted(&reply(text, version), 2).expect_err("refused");
            assert_eq!(error.class(), Class::WrongVersion);
        }
    }

    #[test]
    fn nonsense_is_a_bad_reply() {
        for body in ["", "{}", "[]", "{\"data\":null}", "{\"data\":{\"plaintext\":\"%%\"}}"] {
            assert_eq!(decrypted(&Bytes::from(body)).expect_err("refused").class(), Class::BadReply, "{body}");
        }
    }
}
