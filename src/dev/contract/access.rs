//! Who may do what: both kinds of 403, `create` against `update`, globs, capabilities, namespaces, unknown mounts.

use super::row::{Row, Who, row};

const LIMITED: Who = Who::Token("${limited}");

pub(super) fn rows() -> Vec<Row> {
    [policies(), namespaces()].concat()
}

fn policies() -> Vec<Row> {
    let policy = r#"{"policy":"path \"ct/encrypt/k\" { capabilities = [\"update\"] }\n# and back\npath \"ct/decrypt/k\" { capabilities = [\"update\"] }\npath \"ct/keys/k\" { capabilities = [\"read\"] }\npath \"ct/encrypt/gone\" { capabilities = [\"update\"] }\npath \"ct/encrypt/made\" { capabilities = [\"create\"] }\npath \"ct/+/w\" { capabilities = [\"read\", \"update\"] }\npath \"ct/keys/a*\" { capabilities = [\"read\"] }\npath \"ct/keys/a128\" { capabilities = [\"deny\"] }"}"#;
    let encrypt =
        |name, key: &str| row(name, "POST", &format!("ct/encrypt/{key}"), r#"{"plaintext":"AAAA"}"#).by(LIMITED);
    let sealed = r#"{"ciphertext":"vault:v1:§","key_version":1}"#;
    let denied = |row: Row| row.multi(403, "permission denied");
    let unknown = |row: Row| row.plain(403, "permission denied");
    vec![
        row("write a policy", "PUT", "sys/policies/acl/limited", policy).empty(),
        row("read a policy that is not there", "GET", "sys/policies/acl/none", "").blank(404),
        row("write a policy without text", "POST", "sys/policies/acl/none", "{}")
            .bad("'policy' parameter not supplied or empty"),
        row("write a capability that is none", "POST", "sys/policies/acl/none", r#"{"policy":"path \"x\" { capabilities = [\"eat\"] }"}"#)
            .bad(r#"failed to parse policy: path \"x\": invalid capability \"eat\""#),
        row("list policies", "LIST", "sys/policies/acl", "").data(r#"{"keys":["default","limited","root"]}"#),
        row("token of the policy", "POST", "auth/token/create", r#"{"policies":["limited"],"ttl":"1h"}"#)
            .want(super::tokens::created(r#""default","limited""#, 3600, true, false))
            .keep("limited", "/auth/client_token"),
        encrypt("allowed: encrypt", "k").data(sealed),
        row("allowed: read", "GET", "ct/keys/k", "").by(LIMITED).data(&super::keys::key("k", "aes256-gcm96")),
        encrypt("allowed by a plus", "w").data(sealed),
        row("allowed by a glob", "GET", "ct/keys/ar", "").by(LIMITED).data(
            r#"{"allow_plaintext_backup":false,"auto_rotate_period":86400,"deletion_allowed":false,"derived":false,"exportable":false,"imported_key":false,"keys":{"1":§},"latest_version":1,"min_available_version":0,"min_decryption_version":1,"min_encryption_version":0,"name":"ar","soft_deleted":false,"supports_decryption":true,"supports_derivation":true,"supports_encryption":true,"supports_signing":false,"type":"aes256-gcm96"}"#,
        ),
        denied(row("denied by name", "GET", "ct/keys/a128", "").by(LIMITED)),
        denied(encrypt("denied: another key", "cc")),
        denied(encrypt("denied: a missing key wants create", "gone")),
        encrypt("allowed: create makes the key", "made").data(sealed),
        denied(encrypt("denied: create is not update", "made")),
        denied(row("denied: rotate", "POST", "ct/keys/k/rotate", "").by(LIMITED)),
        denied(row("denied: list", "LIST", "ct/keys", "").by(LIMITED)),
        denied(row("denied: an unknown mount", "GET", "nowhere/x", "").by(LIMITED)),
        denied(row("denied: sys", "POST", "sys/mounts/x", "{}").by(LIMITED)),
        unknown(row("no token", "GET", "ct/keys/k", "").anonymous()),
        unknown(row("no token on an unknown mount", "GET", "nowhere/x", "").anonymous()),
        unknown(row("a token nobody knows", "GET", "ct/keys/k", "").by(Who::Token("s.unknown"))),
        unknown(row("no token for a login that is not mounted", "POST", "auth/nowhere/login", "{}").anonymous()),
        row("root on an unknown mount", "POST", "nowhere/encrypt/k", "{}")
            .plain(404, r#"no handler for route \"nowhere/encrypt/k\". route entry not found."#),
        row("root on a login that is not mounted", "POST", "auth/nowhere/login", "{}")
            .plain(404, r#"no handler for route \"auth/nowhere/login\". route entry not found."#),
        row("capabilities of one path", "POST", "sys/capabilities-self", r#"{"paths":["ct/+/w"]}"#).by(LIMITED).whole(
            r#"…"request_id":"§","lease_id":"","renewable":false,"lease_duration":0,"data":{"capabilities":["read","update"],"ct/+/w":["read","update"]},"wrap_info":null,"warnings":null,"auth":null}"#,
        ),
        row("capabilities of root", "POST", "sys/capabilities-self", r#"{"paths":["x"]}"#).whole(
            r#"…"request_id":"§","lease_id":"","renewable":false,"lease_duration":0,"data":{"capabilities":["root"],"x":["root"]},"wrap_info":null,"warnings":null,"auth":null}"#,
        ),
        row("capabilities of nothing", "POST", "sys/capabilities-self", "{}").by(LIMITED).bad("paths must be supplied"),
    ]
}

fn namespaces() -> Vec<Row> {
    let namespace = |path: &str| {
        format!(r#"{{"custom_metadata":{{}},"id":"§","locked":false,"path":"{path}","tainted":false,"uuid":"§"}}"#)
    };
    let key = super::keys::key("k", "aes256-gcm96");
    let own = Who::Token("${ns}");
    vec![
        row("list namespaces: none", "LIST", "sys/namespaces", "").blank(404),
        row("make a namespace", "POST", "sys/namespaces/ns1", "").data(&namespace("ns1/")).keep("ns.id", "/data/id"),
        row("make it again", "POST", "sys/namespaces/ns1", "{}").data(&namespace("ns1/")),
        row("read a namespace", "GET", "sys/namespaces/ns1", "").data(&namespace("ns1/")),
        row("read a missing namespace", "GET", "sys/namespaces/none", "").blank(404),
        row("make two at once", "POST", "sys/namespaces/ns1/sub", "").bad("path must not contain /"),
        row("read two at once", "GET", "sys/namespaces/ns1/sub", "").multi(500, "path must not contain /"),
        row("list namespaces", "LIST", "sys/namespaces", "")
            .data(&format!(r#"{{"key_info":{{"ns1/":{}}},"keys":["ns1/"]}}"#, namespace("ns1/"))),
        row("mount by header", "POST", "sys/mounts/ct", r#"{"type":"transit"}"#).within("ns1").empty(),
        row("make a key by path prefix", "POST", "ns1/ct/keys/k", "{}").data(&key),
        row("read it by header", "GET", "ct/keys/k", "").within("ns1").data(&key),
        row("read it by header with slashes", "GET", "ct/keys/k", "").within("/ns1/").data(&key),
        row("encrypt by header", "POST", "ct/encrypt/k", r#"{"plaintext":"AAAA"}"#)
            .within("ns1/")
            .data(r#"{"ciphertext":"vault:v1:§","key_version":1}"#)
            .keep("ns.ct", "/data/ciphertext"),
        row("its key is its own", "POST", "ct/decrypt/k", r#"{"ciphertext":"${ns.ct}"}"#)
            .bad("cipher: message authentication failed"),
        row("a child by path", "POST", "ns1/sys/namespaces/sub", "").data(&namespace("ns1/sub/")),
        row("mount in the child", "POST", "ns1/sub/sys/mounts/ct", r#"{"type":"transit"}"#).empty(),
        row("header and path together", "POST", "sub/ct/keys/k", "{}").within("ns1").data(&key),
        row("delete a parent", "DELETE", "sys/namespaces/ns1", "")
            .bad(r#"cannot delete namespace (\"ns1/\") containing child namespaces"#),
        row("delete a missing namespace", "DELETE", "sys/namespaces/none", "")
            .warned("null", r#"["requested namespace does not exist"]"#),
        row("unknown namespace in the header", "GET", "ct/keys/k", "").within("none").plain(404, "namespace not found"),
        row("unknown namespace without token", "GET", "ct/keys/k", "")
            .within("none")
            .anonymous()
            .plain(404, "namespace not found"),
        row("unknown namespace in the path", "GET", "none/ct/keys/k", "")
            .plain(404, r#"no handler for route \"none/ct/keys/k\". route entry not found."#),
        row("health in a namespace", "GET", "sys/health", "").within("ns1").bad("operation unavailable in namespaces"),
        row("seal in a namespace", "POST", "sys/seal", "").within("ns1").bad("operation unavailable in namespaces"),
        row("policy in the namespace", "PUT", "sys/policies/acl/inner", r#"{"policy":"path \"ct/keys/k\" { capabilities = [\"read\"] }"}"#)
            .within("ns1")
            .empty(),
        row("token in the namespace", "POST", "auth/token/create", r#"{"policies":["inner"],"ttl":"1h"}"#)
            .within("ns1")
            .want(super::tokens::created(r#""default","inner""#, 3600, true, false))
            .keep("ns", "/auth/client_token"),
        row("its token inside", "GET", "ct/keys/k", "").within("ns1").by(own.clone()).data(&key),
        row("its token outside", "GET", "ct/keys/k", "").by(own.clone()).multi(403, "permission denied"),
        row("its token in the child", "GET", "ct/keys/k", "")
            .within("ns1/sub")
            .by(own.clone())
            .multi(403, "permission denied"),
        row("its token looks itself up without a header", "GET", "auth/token/lookup-self", "").by(own.clone()).data(
            r#"{"accessor":"§.${ns.id}","creation_time":§,"creation_ttl":3600,"display_name":"token","entity_id":"","expire_time":"§","explicit_max_ttl":0,"id":"${ns}","issue_time":"§","meta":null,"namespace_path":"ns1/","num_uses":0,"orphan":false,"path":"auth/token/create","policies":["default","inner"],"renewable":true,"ttl":§,"type":"service"}"#,
        ),
        row("its token ends", "POST", "auth/token/revoke-self", "").within("ns1").by(own.clone()).empty(),
        row("it has ended", "GET", "ct/keys/k", "").within("ns1").by(own).plain(403, "permission denied"),
    ]
}
