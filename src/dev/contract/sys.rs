//! The sys paths, paths outside `/v1/`, and what sealing does. These rows come last: they seal.

use super::row::{Row, row};

pub(super) fn rows() -> Vec<Row> {
    [open(), sealed()].concat()
}

fn health(sealed: bool) -> String {
    let mode = if sealed { "unknown" } else { "disabled" };
    let cluster = if sealed { "" } else { r#","cluster_name":"§","cluster_id":"§""# };
    format!(
        r#"{{"initialized":true,"sealed":{sealed},"standby":{sealed},"performance_standby":false,"replication_performance_mode":"{mode}","replication_dr_mode":"{mode}","server_time_utc":§,"version":"2.4.0"{cluster}}}"#
    )
}

fn seal_status(sealed: bool) -> String {
    let cluster = if sealed { "" } else { r#""cluster_name":"§","cluster_id":"§","# };
    format!(
        r#"{{"type":"shamir","initialized":true,"sealed":{sealed},"t":1,"n":1,"progress":0,"nonce":"","version":"2.4.0","build_date":"","migration":false,{cluster}"recovery_seal":false,"storage_type":"inmem"}}"#
    )
}

fn open() -> Vec<Row> {
    let get = |name, path: &str| row(name, "GET", path, "").anonymous();
    vec![
        get("health", "sys/health").whole(&health(false)),
        row("health by HEAD", "HEAD", "sys/health", "").anonymous(),
        get("health with a status", "sys/health?activecode=299").status(299).whole(&health(false)),
        get("health with a bad status", "sys/health?activecode=x").blank(400),
        row("health by POST", "POST", "sys/health", "{}").anonymous().blank(405),
        get("seal status", "sys/seal-status").whole(&seal_status(false)),
        get("seal status in a namespace", "sys/seal-status").within("ns1").whole(&seal_status(false)),
        get("leader", "sys/leader").whole(
            r#"{"ha_enabled":false,"is_self":false,"active_time":"0001-01-01T00:00:00Z","leader_address":"","leader_cluster_address":""}"#,
        ),
        get("initialised", "sys/init").whole(r#"{"initialized":true}"#),
        row("initialise again", "POST", "sys/init", r#"{"secret_shares":1,"secret_threshold":1}"#)
            .anonymous()
            .bad("Vault is already initialized"),
        row("unseal without a key", "POST", "sys/unseal", "{}")
            .anonymous()
            .bad("'key' must be specified in request body as JSON, or 'reset' set to true"),
        row("unseal with nonsense", "POST", "sys/unseal", r#"{"key":"!!"}"#)
            .anonymous()
            .bad("'key' must be a valid hex or base64 string"),
        row("unseal with a short key", "POST", "sys/unseal", r#"{"key":"AAAA"}"#)
            .anonymous()
            .bad("invalid key: key is shorter than minimum 16 bytes"),
        row("reset what is unsealed", "POST", "sys/unseal", r#"{"reset":true}"#).anonymous().bad("vault is unsealed"),
        row("read a mount", "GET", "sys/mounts/ct", "").keep("accessor", "/data/accessor").want(super::row::Want::Whole(mount(
            "transit", "",
        ))),
        row("read a login mount", "GET", "sys/auth/cj", "").want(super::row::Want::Whole(mount(
            "jwt",
            r#","token_type":"default-service""#,
        ))),
        row("read a missing mount", "GET", "sys/mounts/none", "").bad("No secret engine mount at none/"),
        row("mount what there is not", "POST", "sys/mounts/x", r#"{"type":"zzz"}"#)
            .bad("plugin not found in the catalog: zzz"),
        row("unmount what is not there", "DELETE", "sys/mounts/none", "").empty(),
        row("delete a policy that is not there", "DELETE", "sys/policies/acl/none", "").empty(),
        row("outside of v1", "GET", "/elsewhere", "").anonymous().blank(404),
        row("seal by nobody", "POST", "sys/seal", "").anonymous().plain(403, "permission denied"),
        row("seal by GET", "GET", "sys/seal", "").blank(405),
    ]
}

/// A mount's description: its fields in any order at the top, so only the envelope's `data` is compared.
fn mount(kind: &str, config: &str) -> String {
    format!(
        r#"…"request_id":"§","lease_id":"","renewable":false,"lease_duration":0,"data":{{"accessor":"§","config":{{"default_lease_ttl":0,"force_no_cache":false,"max_lease_ttl":0{config}}},"deprecation_status":"supported","description":"","external_entropy_access":false,"local":false,"options":{{}},"plugin_version":"","running_plugin_version":"v2.4.0+builtin.bao","running_sha256":"","seal_wrap":false,"type":"{kind}","uuid":"§"}},"wrap_info":null,"warnings":null,"auth":null}}"#
    )
}

fn sealed() -> Vec<Row> {
    let shut = |row: Row| row.plain(503, "Vault is sealed").sealing();
    let unseal =
        |name, key: &str| row(name, "POST", "sys/unseal", &format!(r#"{{"key":"{key}"}}"#)).anonymous().sealing();
    vec![
        row("seal", "POST", "sys/seal", "").empty().sealing(),
        shut(row("sealed: encrypt", "POST", "ct/encrypt/k", r#"{"plaintext":"AAAA"}"#)),
        shut(row("sealed: an unknown path", "GET", "nowhere/x", "").anonymous()),
        shut(row("sealed: login", "POST", "auth/cj/login", "{}").anonymous()),
        row("sealed: health", "GET", "sys/health", "").anonymous().status(503).whole(&health(true)).sealing(),
        row("sealed: health with a status", "GET", "sys/health?sealedcode=298", "")
            .anonymous()
            .status(298)
            .whole(&health(true))
            .sealing(),
        row("sealed: seal status", "GET", "sys/seal-status", "").anonymous().whole(&seal_status(true)).sealing(),
        unseal("unseal with a wrong key", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=").bad(
            "unable to retrieve stored keys: invalid key: failed to decrypt keys from storage: cipher: message authentication failed",
        ),
        unseal("unseal", "${unseal}").whole(&seal_status(false)),
        row("open again", "POST", "ct/decrypt/k", r#"{"ciphertext":"${ct}","associated_data":"YWFk"}"#)
            .data(r#"{"plaintext":"aGVsbG8="}"#)
            .sealing(),
    ]
}
