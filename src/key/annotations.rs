//! The annotations that stand beside every ciphertext in etcd: which version, mount, key and namespace it belongs to.

use std::collections::BTreeMap;

use super::{Identity, KeyId, hash};

/// Marks an object as ours.
pub const PROVIDER: &str = "provider.kms.openbao.org";
/// Hash of the key_id.
pub const KEY_ID_HASH: &str = "key-id-hash.kms.openbao.org";
/// The version, decimal.
pub const VERSION: &str = "transit-key-version.kms.openbao.org";
/// Hash of the mount id.
pub const MOUNT_HASH: &str = "transit-mount-hash.kms.openbao.org";
/// Hash of the lineage id.
pub const KEY_HASH: &str = "transit-key-hash.kms.openbao.org";
/// Hash of the namespace; only when one is configured.
pub const NAMESPACE_HASH: &str = "openbao-namespace-hash.kms.openbao.org";
/// The binary that wrote it; informative.
pub const PLUGIN_VERSION: &str = "plugin-version.kms.openbao.org";
/// The format of the associated data.
pub const AAD_VERSION: &str = "aad-version.kms.openbao.org";

/// The value of [`PROVIDER`].
pub const PROVIDER_VALUE: &str = "openbao-transit";
/// The value of [`AAD_VERSION`].
pub const AAD_VERSION_VALUE: &str = "v1";

/// Keys and values together, as kube-apiserver limits them (`kmsv2/envelope.go`).
pub const MAX_BYTES: usize = 32 * 1024;

/// The annotations of one version, without [`PLUGIN_VERSION`].
pub fn known(identity: &Identity, key_id: &KeyId, version: u32) -> BTreeMap<&'static str, String> {
    let mut map = BTreeMap::from([
        (PROVIDER, PROVIDER_VALUE.to_owned()),
        (KEY_ID_HASH, hash(key_id.as_str().as_bytes())),
        (VERSION, version.to_string()),
        (MOUNT_HASH, hash(identity.transit_mount_id.as_bytes())),
        (KEY_HASH, hash(identity.key_lineage_id.as_bytes())),
        (AAD_VERSION, AAD_VERSION_VALUE.to_owned()),
    ]);
    if let Some(namespace) = &identity.namespace {
        map.insert(NAMESPACE_HASH, hash(namespace.as_bytes()));
    }
    map
}

/// Whether a key is one that kube-apiserver stores: a lower-case DNS name of at least two labels, no slash.
pub fn is_well_formed_key(key: &str) -> bool {
    let (mut labels, mut length, mut last) = (1, 0, b'-');
    for &byte in key.as_bytes() {
        match byte {
            b'.' if last == b'-' => return false,
            b'.' => (labels, length, last) = (labels + 1, 0, b'-'),
            b'-' if length == 0 => return false,
            b'a'..=b'z' | b'0'..=b'9' | b'-' if length < 63 => (length, last) = (length + 1, byte),
            _ => return false,
        }
    }
    labels > 1 && last != b'-' && key.len() <= 253
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_dns_names_of_two_labels_or_more() {
        let long = "x".repeat(63);
        let whole = [&*long, &long, &long, &long[..61]].join(".");
        let good = ["a.b", "1.2", "provider.kms.openbao.org", "a-b.c--d", &format!("{long}.b"), &whole];
        for key in good {
            assert!(is_well_formed_key(key), "{key}");
        }
        let bad = [
            "",
            ".",
            "a",
            "a.",
            ".a",
            "a..b",
            "-a.b",
            "a-.b",
            "a.-b",
            "a.b-",
            "A.b",
            "a_b.c",
            "a.b/c",
            "ä.b",
            "a b.c",
            &format!("{long}x.b"),
            &format!("{whole}y"),
        ];
        for key in bad {
            assert!(!is_well_formed_key(key), "{key}");
        }
    }
}
