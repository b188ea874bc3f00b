//! The JSON that Transit reads and writes. Whatever holds plaintext is made in one buffer of exactly its size, because
//! growing or shrinking one leaves a copy that nobody wipes; replies are believed only as far as they are checked.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use secrecy::ExposeSecret;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::errors;
use crate::error::{Class, Error};
use crate::key::{Metadata, check};
use crate::request::{Reply, Secret, secret};

#[derive(Deserialize)]
struct Envelope<T> {
    data: T,
}

#[derive(Deserialize)]
struct Encrypted<'a> {
    #[serde(borrow)]
    ciphertext: Cow<'a, str>,
    key_version: u32,
}

#[derive(Deserialize)]
struct Decrypted<'a> {
    #[serde(borrow)]
    plaintext: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Batch<'a> {
    #[serde(borrow)]
    batch_results: Vec<BatchItem<'a>>,
}

#[derive(Deserialize)]
struct BatchItem<'a> {
    #[serde(borrow, default)]
    plaintext: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    error: Option<Cow<'a, str>>,
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
    const HEAD: &str = "{\"plaintext\":\"";
    let seed = seed.expose_secret();
    let rest = format!("\",\"associated_data\":\"{associated_data}\",\"key_version\":{version}}}");
    let encoded = seed.len().div_ceil(3) * 4;
    let mut body = String::with_capacity(HEAD.len() + encoded + rest.len());
    body.push_str(HEAD);
    STANDARD.encode_string(seed, &mut body);
    body.push_str(&rest);
    body.into_bytes()
}

/// `ciphertext` and `associated_data`. The prefix was checked; what follows must not leave its JSON string.
///
/// # Errors
/// `ciphertext_invalid` when the text holds what Transit never writes.
pub(super) fn decrypt_body(text: &[u8], associated_data: &str) -> Result<Vec<u8>, Error> {
    let mut body = Vec::with_capacity(text.len() + associated_data.len() + ITEM);
    push_item(&mut body, text, associated_data)?;
    Ok(body)
}

/// `batch_input` of texts with their associated data.
///
/// # Errors
/// As [`decrypt_body`].
pub(super) fn batch_body(items: &[(&[u8], &str)]) -> Result<Vec<u8>, Error> {
    let size: usize = items.iter().map(|(text, aad)| text.len() + aad.len() + ITEM + 1).sum();
    let mut body = Vec::with_capacity(size + 20);
    body.extend_from_slice(b"{\"batch_input\":[");
    for (at, (text, associated_data)) in items.iter().enumerate() {
        if at > 0 {
            body.push(b',');
        }
        push_item(&mut body, text, associated_data)?;
    }
    body.extend_from_slice(b"]}");
    Ok(body)
}

/// What an item takes beside its text and its associated data.
const ITEM: usize = 40;

fn push_item(body: &mut Vec<u8>, text: &[u8], associated_data: &str) -> Result<(), Error> {
    let printable = text.iter().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\'));
    if !printable {
        return Err(Error::new(Class::CiphertextInvalid, "the ciphertext holds characters that Transit never writes"));
    }
    let parts: [&[u8]; 5] =
        [b"{\"ciphertext\":\"", text, b"\",\"associated_data\":\"", associated_data.as_bytes(), b"\"}"];
    for part in parts {
        body.extend_from_slice(part);
    }
    Ok(())
}

/// The sealed text, after a check that it was sealed under the version that was asked for.
pub(super) fn encrypted(body: &Bytes, version: u32) -> Result<Bytes, Error> {
    let Envelope { data } = parse::<Encrypted<'_>>(body)?;
    if data.key_version != version || check::check_prefix(version, data.ciphertext.as_bytes()).is_err() {
        let detail = format!("asked for version {version}, got version {}", data.key_version);
        return Err(Error::new(Class::WrongVersion, detail).with_version(version));
    }
    Ok(match data.ciphertext {
        Cow::Borrowed(text) => body.slice_ref(text.as_bytes()),
        Cow::Owned(text) => Bytes::from(text),
    })
}

/// The opened seed, in a buffer that is wiped.
pub(super) fn decrypted(body: &Bytes) -> Result<Secret, Error> {
    opened(&parse::<Decrypted<'_>>(body)?.data.plaintext)
}

/// The outcome of each item; `None` when the reply carries no results.
pub(super) fn batch_results(body: &Bytes) -> Option<Vec<Result<Reply, Error>>> {
    let results = parse::<Batch<'_>>(body).ok()?.data.batch_results;
    let outcome = |item: BatchItem<'_>| match item.error {
        Some(text) if !text.is_empty() => Err(errors::classify_item(&text)),
        _ => opened(item.plaintext.as_deref().unwrap_or_default()).map(Reply::Decrypted),
    };
    Some(results.into_iter().map(outcome).collect())
}

fn opened(plaintext: &str) -> Result<Secret, Error> {
    let text = plaintext.as_bytes();
    if text.is_empty() {
        // Encrypt seals no empty seed.
        return Err(Error::new(Class::BadReply, "the answer holds no plaintext"));
    }
    let padding = text.iter().rev().take(2).filter(|byte| **byte == b'=').count();
    let mut seed = Zeroizing::new(vec![0; (text.len() / 4 * 3).saturating_sub(padding)]);
    match STANDARD.decode_slice(text, &mut seed) {
        Ok(length) if length == seed.len() => Ok(secret(std::mem::take(&mut *seed))),
        _ => Err(Error::new(Class::BadReply, "the plaintext in the answer is not base64")),
    }
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
    fn buffers_that_hold_plaintext_have_exactly_their_size() {
        for length in 1..70 {
            let seed = vec![7; length];
            let body = encrypt_body(&secret(seed.clone()), "YWFk", 1_000);
            assert_eq!(body.capacity(), body.len(), "{length}");
            let answer = serde_json::json!({"data": {"plaintext": STANDARD.encode(&seed)}}).to_string();
            assert_eq!(decrypted(&answer.into()).expect("opened").expose_secret(), seed);
        }
    }

    #[test]
    fn escapes_that_other_encoders_write_are_read() {
        let sealed = Bytes::from(r#"{"data":{"ciphertext":"vault:v2:AA\/A","key_version":2}}"#);
        assert_eq!(encrypted(&sealed, 2).expect("sealed"), "vault:v2:AA/A");
        let opened = Bytes::from(r#"{"data":{"plaintext":"c2Vl\u005aA=="}}"#);
        assert_eq!(decrypted(&opened).expect("opened").expose_secret(), b"seed");
    }

    #[test]
    fn metadata_of_an_asymmetric_key_is_read_without_its_versions() {
        let body = serde_json::json!({"data": {
            "type": "rsa-2048", "latest_version": 1, "min_decryption_version": 1,
            "keys": {"1": {"creation_time": "2026-01-01T00:00:00Z", "public_key": "x"}},
        }});
        let metadata = metadata(&body.to_string().into()).expect("read");
        assert!(metadata.keys.is_empty() && metadata.key_type == "rsa-2048");
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
    fn a_batch_carries_the_outcome_of_each_item() {
        let body = batch_body(&[(b"vault:v7:AAAA", "YWFk"), (b"vault:v8:BBBB", "YWFl")]).expect("body");
        let json: serde_json::Value = serde_json::from_slice(&body).expect("json");
        let items = serde_json::json!([
            {"ciphertext": "vault:v7:AAAA", "associated_data": "YWFk"},
            {"ciphertext": "vault:v8:BBBB", "associated_data": "YWFl"},
        ]);
        assert_eq!(json, serde_json::json!({ "batch_input": items }));
        assert!(batch_body(&[(b"vault:v7:AAAA", "YWFk"), (b"\"},{\"", "YWFk")]).is_err());
        let reply = serde_json::json!({"data": {"batch_results": [
            {"plaintext": "c2VlZA==", "reference": ""},
            {"plaintext": "", "reference": "", "error": "cipher: message authentication failed"},
            {"plaintext": "%%", "reference": ""},
            {"plaintext": "", "reference": ""},
            {"reference": ""},
            {"plaintext": "", "reference": "", "error": "internal error"},
        ]}});
        let outcomes = batch_results(&reply.to_string().into()).expect("results");
        let class = |at: usize| outcomes[at].as_ref().err().map(Error::class);
        assert!(matches!(&outcomes[0], Ok(Reply::Decrypted(seed)) if seed.expose_secret() == b"seed"));
        assert_eq!((class(1), class(2)), (Some(Class::CiphertextInvalid), Some(Class::BadReply)));
        assert_eq!((class(3), class(4)), (Some(Class::BadReply), Some(Class::BadReply)), "no seed is empty");
        assert_eq!(class(5), Some(Class::ServerError), "one item's trouble inside OpenBao may be tried again");
        assert!(batch_results(&Bytes::from(r#"{"errors":["permission denied"]}"#)).is_none());
        assert!(batch_results(&Bytes::from(r#"{"data":{"plaintext":""}}"#)).is_none());
    }

    #[test]
    fn nonsense_is_a_bad_reply() {
        for body in [
            "",
            "{}",
            "[]",
            "{\"data\":null}",
            "{\"data\":{\"plaintext\":\"%%\"}}",
            "{\"data\":{\"plaintext\":\"====\"}}",
            "{\"data\":{\"plaintext\":\"\"}}",
        ] {
            assert_eq!(decrypted(&Bytes::from(body)).expect_err("refused").class(), Class::BadReply, "{body}");
        }
    }
}
