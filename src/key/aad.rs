//! Associated data: compact JSON, exactly these keys in this order, all values strings. Authenticated by Transit with
//! every ciphertext, so that nothing opens under another identity, key or version than it was made for.

use super::{Identity, KeyId, hash};

/// The canonical text. Names hold only `[A-Za-z0-9._-]` and hashes only base64url, so that nothing needs escaping.
pub fn text(identity: &Identity, key_id: &KeyId, version: u32) -> String {
    let version = version.to_string();
    let hashed = |value: &str| hash(value.as_bytes());
    let mut parts = vec![
        ("aad_version", "v1".to_owned()),
        ("purpose", "kubernetes-etcd-kms-v2".to_owned()),
        ("provider", "openbao-transit".to_owned()),
        ("provider_name", identity.provider_name.clone()),
        ("cluster_id_hash", hashed(&identity.cluster_id)),
        ("openbao_instance_hash", hashed(&identity.openbao_id)),
    ];
    if let Some(namespace) = &identity.namespace {
        parts.push(("openbao_namespace_hash", hashed(namespace)));
    }
    parts.extend([
        ("transit_mount_hash", hashed(&identity.transit_mount_id)),
        ("transit_key_hash", hashed(&identity.key_lineage_id)),
        ("key_id_hash", hashed(key_id.as_str())),
        ("key_version", version),
    ]);
    let body: Vec<String> = parts.iter().map(|(key, value)| format!("\"{key}\":\"{value}\"")).collect();
    format!("{{{}}}", body.join(","))
}
