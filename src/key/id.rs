//! The key_id of one version of one key: opaque, frozen, the same on every node. A change of this file that changes a
//! vector needs a new prefix and a migration guide.

use std::fmt;
use std::sync::Arc;

use super::{Identity, hash};

const PREFIX: &str = "obk2.";
const DOMAIN: &str = "openbao-kubernetes-kms/key-id/v1";
const LENGTH: usize = 48;

/// A key_id: 48 characters, `obk2.` and 43 of base64url.
// The derived `Hash` and `Eq` are those of the text, as `Borrow<str>` requires.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct KeyId(Arc<str>);

// === impl KeyId ===

impl KeyId {
    /// The id of the version that OpenBao created at this Unix second.
    pub fn of(identity: &Identity, version: u32, created_unix: u64) -> Self {
        let (version, created) = (version.to_string(), created_unix.to_string());
        let parts = [
            Some(DOMAIN),
            Some(&identity.provider_name),
            Some(&identity.cluster_id),
            Some(&identity.openbao_id),
            identity.namespace.as_deref(),
            Some(&identity.transit_mount_id),
            Some(&identity.key_lineage_id),
            Some(&version),
            Some(&created),
        ];
        let mut joined = Vec::with_capacity(256);
        for part in parts.into_iter().flatten() {
            joined.extend_from_slice(part.as_bytes());
            joined.push(0);
        }
        Self(format!("{PREFIX}{}", hash(&joined)).into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a text has the shape of a key_id of ours, whatever key it names.
    pub fn is_well_formed(text: &str) -> bool {
        text.len() == LENGTH
            && text
                .strip_prefix(PREFIX)
                .is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'))
    }
}

impl std::borrow::Borrow<str> for KeyId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
