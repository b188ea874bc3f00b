//! What Transit says of a key (`GET <mount>/keys/<name>`, field `data`), reduced to what this program acts on.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Transit's metadata of a symmetric key. Unknown fields are ignored; `keys` holds versions not below the minimum.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Metadata {
    /// `aes256-gcm96` and its kin.
    #[serde(rename = "type")]
    pub key_type: String,
    /// Needs a context with every call.
    #[serde(default)]
    pub derived: bool,
    /// Same plaintext, same ciphertext.
    #[serde(default)]
    pub convergent_encryption: bool,
    /// The key can be read out.
    #[serde(default)]
    pub exportable: bool,
    /// The key can be backed up in clear.
    #[serde(default)]
    pub allow_plaintext_backup: bool,
    /// The key can be deleted.
    #[serde(default)]
    pub deletion_allowed: bool,
    /// The key refuses to work until restored.
    #[serde(default)]
    pub soft_deleted: bool,
    /// The type can encrypt.
    #[serde(default)]
    pub supports_encryption: bool,
    /// The type can decrypt.
    #[serde(default)]
    pub supports_decryption: bool,
    /// Highest version.
    pub latest_version: u32,
    /// Versions below do not decrypt.
    #[serde(default)]
    pub min_decryption_version: u32,
    /// Versions below do not encrypt; 0: no such limit.
    #[serde(default)]
    pub min_encryption_version: u32,
    /// Versions below are destroyed.
    #[serde(default)]
    pub min_available_version: u32,
    /// Version to creation time in Unix seconds.
    #[serde(default)]
    pub keys: BTreeMap<u32, u64>,
}
