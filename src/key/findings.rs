//! What is remarkable about a key, by name: properties that make it unusable, unsafe or merely surprising.

use super::Metadata;

/// How bad a finding is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Severity {
    /// Good to know.
    Info,
    /// Weakens a promise; works.
    Warning,
    /// The key cannot be used; Status says so.
    Blocking,
}

/// One finding on the key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Finding {
    /// The stable name.
    pub name: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What it means and what to do, one sentence each.
    pub text: &'static str,
}

/// Key types that seal with associated data (`openbao.md` A.2).
const AEAD_TYPES: [&str; 4] = ["aes256-gcm96", "aes128-gcm96", "chacha20-poly1305", "xchacha20-poly1305"];

macro_rules! findings {
    ($($constant:ident $name:literal $severity:ident $text:literal)+) => {
        $(#[doc = $text] pub const $constant: Finding = Finding { name: $name, severity: Severity::$severity, text: $text };)+
        /// Every finding, for the docs.
        pub const ALL: &[Finding] = &[$($constant,)+];
    };
}

findings! {
    TYPE "key_type_unfit" Blocking "The key's type does not seal with associated data. Use an aes256-gcm96 key."
    DERIVED "key_derived" Blocking "The key is derived and wants a context with every call. Use a key without derivation."
    SOFT_DELETED "key_soft_deleted" Blocking "The key is soft-deleted. Restore it with soft-delete-restore."
    NO_CANDIDATE "no_usable_version" Blocking "No version may both encrypt and decrypt. Lower min_encryption_version."
    EXPORTABLE "key_exportable" Warning "The key can be read out of OpenBao. This cannot be undone; plan a new key."
    PLAINTEXT_BACKUP "key_plaintext_backup" Warning "The key can be backed up in clear. This cannot be undone; plan a new key."
    DELETION_ALLOWED "key_deletion_allowed" Warning "The key can be deleted. Set deletion_allowed to false."
    MIN_ENCRYPTION "key_min_encryption_raised" Info "min_encryption_version is above the lowest version: a rotation may become active before its delay has passed."
    MIN_DECRYPTION "key_min_decryption_raised" Info "Versions below min_decryption_version no longer open. Be sure that no stored object needs them."
    UPSERT_ENABLED "upsert_enabled" Warning "The mount creates missing keys on encrypt for tokens that may create. Set disable_upsert."
    UPSERT_UNKNOWN "upsert_unknown" Info "The policy does not show transit/config/keys, so whether upsert is disabled is not known."
}

/// The findings on a key; `disable_upsert` is `None` when OpenBao does not tell.
pub fn of(metadata: &Metadata, disable_upsert: Option<bool>) -> Vec<Finding> {
    let fit_type = AEAD_TYPES.contains(&metadata.key_type.as_str())
        && metadata.supports_encryption
        && metadata.supports_decryption;
    let has_candidate = metadata
        .keys
        .keys()
        .any(|&number| number >= metadata.min_decryption_version && number >= metadata.min_encryption_version);
    [
        (!fit_type, TYPE),
        (metadata.derived || metadata.convergent_encryption, DERIVED),
        (metadata.soft_deleted, SOFT_DELETED),
        (fit_type && !has_candidate, NO_CANDIDATE),
        (metadata.exportable, EXPORTABLE),
        (metadata.allow_plaintext_backup, PLAINTEXT_BACKUP),
        (metadata.deletion_allowed, DELETION_ALLOWED),
        (metadata.min_encryption_version > 1, MIN_ENCRYPTION),
        (metadata.min_decryption_version > 1, MIN_DECRYPTION),
        (disable_upsert == Some(false), UPSERT_ENABLED),
        (disable_upsert.is_none(), UPSERT_UNKNOWN),
    ]
    .into_iter()
    .filter_map(|(found, finding)| found.then_some(finding))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(change: serde_json::Value) -> Metadata {
        let mut base = serde_json::json!({
            "type": "aes256-gcm96", "supports_encryption": true, "supports_decryption": true, "latest_version": 2,
            "min_decryption_version": 1, "min_encryption_version": 0, "keys": { "1": 10, "2": 20 },
        });
        for (key, value) in change.as_object().expect("object") {
            base[key] = value.clone();
        }
        serde_json::from_value(base).expect("metadata")
    }

    #[test]
    fn each_property_has_its_finding() {
        use serde_json::json;
        let cases = [
            (json!({}), None),
            (json!({"type": "rsa-2048"}), Some(TYPE)),
            (json!({"supports_encryption": false}), Some(TYPE)),
            (json!({"derived": true}), Some(DERIVED)),
            (json!({"soft_deleted": true}), Some(SOFT_DELETED)),
            (json!({"min_encryption_version": 3}), Some(NO_CANDIDATE)),
            (json!({"exportable": true}), Some(EXPORTABLE)),
            (json!({"allow_plaintext_backup": true}), Some(PLAINTEXT_BACKUP)),
            (json!({"deletion_allowed": true}), Some(DELETION_ALLOWED)),
            (json!({"min_encryption_version": 2}), Some(MIN_ENCRYPTION)),
            (json!({"min_decryption_version": 2}), Some(MIN_DECRYPTION)),
        ];
        for (change, expected) in cases {
            let found = of(&metadata(change.clone()), Some(true));
            assert_eq!(found.first().copied(), expected, "{change}");
        }
        assert_eq!(of(&metadata(json!({})), None), vec![UPSERT_UNKNOWN]);
        assert_eq!(of(&metadata(json!({})), Some(false)), vec![UPSERT_ENABLED]);
    }
}
