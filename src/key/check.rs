//! The local half of Decrypt: everything that a stored object says of itself is compared with the known version before
//! OpenBao is asked. The order is part of the format.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::annotations::{self, is_well_formed_key};
use super::{KeyId, Version, View};

/// Why a stored object is not opened. Names no value of the object, only what kind of disagreement it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// The key_id does not have our shape.
    #[error("the key_id does not have the shape of ours")]
    KeyIdMalformed,
    /// No version of the view has this key_id.
    #[error("no known version has this key_id")]
    KeyIdUnknown,
    /// The object names a version below the key's minimum.
    #[error("version {0} is below the key's minimum")]
    TooOld(u32),
    /// An annotation is missing.
    #[error("annotation {0} is missing")]
    Missing(&'static str),
    /// An annotation disagrees with the known version.
    #[error("annotation {0} disagrees with the known version")]
    Disagrees(&'static str),
    /// An annotation key is not a DNS name, or the annotations are larger than kube-apiserver stores.
    #[error("the annotations are not such as kube-apiserver stores")]
    Annotations,
    /// The ciphertext is not `vault:vN:...` with the N of the known version.
    #[error("the ciphertext does not carry the prefix of the known version")]
    Prefix,
}

/// The known version that a stored object belongs to; only when everything agrees may OpenBao be asked.
pub fn check(
    view: &View,
    key_id: &str,
    annotations: &BTreeMap<String, Vec<u8>>,
    ciphertext: &[u8],
) -> Result<Arc<Version>, Refusal> {
    if !KeyId::is_well_formed(key_id) {
        return Err(Refusal::KeyIdMalformed);
    }
    let Some(version) = view.by_key_id(key_id) else {
        return Err(match claimed_version(annotations) {
            Some(number) if number < view.min_decryption() => Refusal::TooOld(number),
            _ => Refusal::KeyIdUnknown,
        });
    };
    check_annotations(version, annotations)?;
    check_prefix(version.number, ciphertext)?;
    Ok(version.clone())
}

fn check_annotations(version: &Version, annotations: &BTreeMap<String, Vec<u8>>) -> Result<(), Refusal> {
    let bytes: usize = annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > annotations::MAX_BYTES || !annotations.keys().all(|key| is_well_formed_key(key)) {
        return Err(Refusal::Annotations);
    }
    for (key, expected) in &version.known {
        match annotations.get(*key) {
            None => return Err(Refusal::Missing(key)),
            Some(value) if value != expected.as_bytes() => return Err(Refusal::Disagrees(key)),
            Some(_) => {}
        }
    }
    // A namespace in the object but none in the configuration is a disagreement, not an annotation nobody knows.
    if annotations.contains_key(annotations::NAMESPACE_HASH) && !version.known.contains_key(annotations::NAMESPACE_HASH)
    {
        return Err(Refusal::Disagrees(annotations::NAMESPACE_HASH));
    }
    match annotations.get(annotations::PLUGIN_VERSION) {
        Some(value) if value.len() > 128 || !value.iter().all(u8::is_ascii_graphic) => {
            Err(Refusal::Disagrees(annotations::PLUGIN_VERSION))
        }
        _ => Ok(()),
    }
}

/// Checks that a ciphertext is `vault:v<number>:` and base64, with the number in its one spelling. What it says is
/// OpenBao's to judge; other letters would spoil the request of all who share it.
pub fn check_prefix(number: u32, ciphertext: &[u8]) -> Result<(), Refusal> {
    let rest = ciphertext.strip_prefix(b"vault:v").ok_or(Refusal::Prefix)?;
    let expected = number.to_string();
    match rest.strip_prefix(expected.as_bytes()) {
        Some([b':', body @ ..]) if !body.is_empty() && body.iter().all(is_base64) => Ok(()),
        _ => Err(Refusal::Prefix),
    }
}

fn is_base64(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=')
}

fn claimed_version(annotations: &BTreeMap<String, Vec<u8>>) -> Option<u32> {
    let text = std::str::from_utf8(annotations.get(annotations::VERSION)?).ok()?;
    let number: u32 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
