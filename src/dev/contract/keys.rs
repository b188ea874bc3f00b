//! Keys: make, read, list, configure, rotate, trim, soft-delete, delete. The mount `ct` is made here and used by the rows
//! that follow.

use super::row::{Row, row};

/// The data of a symmetric key that nobody has configured.
pub(super) fn key(name: &str, kind: &str) -> String {
    shown(name, kind, "\"1\":§", (1, 0, 1, 0), "")
}

/// The data of a symmetric key: `versions` are the members of `keys`; then latest version and the minima (available,
/// decryption, encryption); `set` names the flags that are true.
fn shown(name: &str, kind: &str, versions: &str, numbers: (u8, u8, u8, u8), set: &str) -> String {
    let (latest, available, decryption, encryption) = numbers;
    let flag = |name: &str| set.split(' ').any(|one| one == name);
    let (backup, deletion) = (flag("allow_plaintext_backup"), flag("deletion_allowed"));
    let (exportable, soft) = (flag("exportable"), flag("soft_deleted"));
    let period = if flag("auto_rotate") { 86400 } else { 0 };
    format!(
        r#"{{"allow_plaintext_backup":{backup},"auto_rotate_period":{period},"deletion_allowed":{deletion},"derived":false,"exportable":{exportable},"imported_key":false,"keys":{{{versions}}},"latest_version":{latest},"min_available_version":{available},"min_decryption_version":{decryption},"min_encryption_version":{encryption},"name":"{name}","soft_deleted":{soft},"supports_decryption":true,"supports_derivation":true,"supports_encryption":true,"supports_signing":false,"type":"{kind}"}}"#
    )
}

pub(super) fn rows() -> Vec<Row> {
    [making(), versions(), configuring(), ending()].concat()
}

fn making() -> Vec<Row> {
    let aes = "aes256-gcm96";
    vec![
        row("mount transit", "POST", "sys/mounts/ct", r#"{"type":"transit"}"#).empty(),
        row("mount again", "POST", "sys/mounts/ct", r#"{"type":"transit"}"#).bad("path is already in use at ct/"),
        row("list keys: none", "LIST", "ct/keys", "").blank(404),
        row("read a missing key", "GET", "ct/keys/k", "").blank(404),
        row("make a key", "POST", "ct/keys/k", "{}").data(&key("k", aes)),
        row("make it again: nothing changes", "POST", "ct/keys/k", r#"{"exportable":true}"#).data(&key("k", aes)),
        row("read a key", "GET", "ct/keys/k", "").data(&key("k", aes)),
        row("PUT is POST", "PUT", "ct/keys/k", "{}").data(&key("k", aes)),
        row("list keys", "LIST", "ct/keys", "").data(r#"{"keys":["k"]}"#),
        row("list keys with a slash", "LIST", "ct/keys/", "").data(r#"{"keys":["k"]}"#),
        row("list keys by query", "GET", "ct/keys?list=true", "").data(r#"{"keys":["k"]}"#),
        row("read the list", "GET", "ct/keys", "").multi(405, "unsupported operation"),
        row("unknown type", "POST", "ct/keys/x", r#"{"type":"foo"}"#).bad("unknown key type foo"),
        row("short auto-rotation", "POST", "ct/keys/x", r#"{"auto_rotate_period":"5m"}"#)
            .bad("auto rotate period must be 0 to disable or at least an hour"),
        row("convergent without derived", "POST", "ct/keys/x", r#"{"convergent_encryption":true}"#)
            .bad("convergent encryption requires derivation to be enabled"),
        row("unknown field", "POST", "ct/keys/w", r#"{"zz":1,"aa":2}"#)
            .warned(&key("w", aes), r#"["Endpoint ignored these unrecognized parameters: [aa zz]"]"#),
        row("field that is in the path", "POST", "ct/keys/w", r#"{"name":"q"}"#).warned(
            &key("w", aes),
            r#"["Endpoint replaced the value of these parameters with the values captured from the endpoint's path: [name]"]"#,
        ),
        row("field of a wrong type", "POST", "ct/keys/x", r#"{"derived":"perhaps"}"#).bad(
            r#"Field validation failed: error converting input for field \"derived\": '' cannot parse value as 'bool': strconv.ParseBool: invalid syntax"#,
        ),
        row("aes128", "POST", "ct/keys/a128", r#"{"type":"aes128-gcm96"}"#).data(&key("a128", "aes128-gcm96")),
        row("chacha20", "POST", "ct/keys/cc", r#"{"type":"chacha20-poly1305"}"#).data(&key("cc", "chacha20-poly1305")),
        row("exportable", "POST", "ct/keys/e", r#"{"exportable":true,"allow_plaintext_backup":true}"#)
            .data(&shown("e", aes, "\"1\":§", (1, 0, 1, 0), "exportable allow_plaintext_backup")),
        row("auto-rotated", "POST", "ct/keys/ar", r#"{"auto_rotate_period":"24h"}"#)
            .data(&shown("ar", aes, "\"1\":§", (1, 0, 1, 0), "auto_rotate")),
        row("derived", "POST", "ct/keys/d", r#"{"derived":true}"#).data(
            r#"{"allow_plaintext_backup":false,"auto_rotate_period":0,"convergent_encryption":false,"deletion_allowed":false,"derived":true,"exportable":false,"imported_key":false,"kdf":"hkdf_sha256","keys":{"1":§},"latest_version":1,"min_available_version":0,"min_decryption_version":1,"min_encryption_version":0,"name":"d","soft_deleted":false,"supports_decryption":true,"supports_derivation":true,"supports_encryption":true,"supports_signing":false,"type":"aes256-gcm96"}"#,
        ),
        row("convergent", "POST", "ct/keys/cd", r#"{"derived":true,"convergent_encryption":true}"#).data(
            r#"{"allow_plaintext_backup":false,"auto_rotate_period":0,"convergent_encryption":true,"convergent_encryption_version":-1,"deletion_allowed":false,"derived":true,"exportable":false,"imported_key":false,"kdf":"hkdf_sha256","keys":{"1":§},"latest_version":1,"min_available_version":0,"min_decryption_version":1,"min_encryption_version":0,"name":"cd","soft_deleted":false,"supports_decryption":true,"supports_derivation":true,"supports_encryption":true,"supports_signing":false,"type":"aes256-gcm96"}"#,
        ),
        row("ed25519", "POST", "ct/keys/ed", r#"{"type":"ed25519"}"#).data(
            r#"{"allow_plaintext_backup":false,"auto_rotate_period":0,"deletion_allowed":false,"derived":false,"exportable":false,"imported_key":false,"keys":{"1":{"certificate_chain":"","creation_time":"§","name":"ed25519","public_key":"§"}},"latest_version":1,"min_available_version":0,"min_decryption_version":1,"min_encryption_version":0,"name":"ed","soft_deleted":false,"supports_decryption":false,"supports_derivation":true,"supports_encryption":false,"supports_signing":true,"type":"ed25519"}"#,
        ),
        row("name that ends badly", "POST", "ct/keys/bad-", "{}").multi(404, "unsupported path"),
        row("name with dots and dashes", "POST", "ct/keys/a-b.c_d", "{}").data(&key("a-b.c_d", aes)),
        row("a path below a key", "POST", "ct/keys/k/rotate/x", "{}").multi(404, "unsupported path"),
        row("an unknown path", "GET", "ct/nope", "").multi(404, "unsupported path"),
        row("write to a folder", "POST", "ct/keys/", "{}").bad("cannot write to a path ending in '/'"),
        row("write to the list", "POST", "ct/keys", "{}").multi(405, "unsupported operation"),
    ]
}

fn versions() -> Vec<Row> {
    let aes = "aes256-gcm96";
    let r = |versions: &str, latest, minima: (u8, u8, u8)| {
        shown("r", aes, versions, (latest, minima.0, minima.1, minima.2), "")
    };
    let encrypt = |name, version: i8| {
        row(name, "POST", "ct/encrypt/r", &format!(r#"{{"plaintext":"aGVsbG8=","key_version":{version}}}"#))
    };
    let set = |name, body: &str| row(name, "POST", "ct/keys/r/config", body);
    let old = r#"{"ciphertext":"${r1}"}"#;
    let less = "requested version for encryption is less than the minimum encryption key version";
    let sealed = |version: u8| format!(r#"{{"ciphertext":"vault:v{version}:§","key_version":{version}}}"#);
    vec![
        row("key to rotate", "POST", "ct/keys/r", "{}").data(&r("\"1\":§", 1, (0, 1, 0))),
        encrypt("encrypt with version 1", 1).data(&sealed(1)).keep("r1", "/data/ciphertext"),
        row("rotate", "POST", "ct/keys/r/rotate", "").data(&r("\"1\":§,\"2\":§", 2, (0, 1, 0))),
        row("rotate with a body", "POST", "ct/keys/r/rotate", "{}").data(&r("\"1\":§,\"2\":§,\"3\":§", 3, (0, 1, 0))),
        row("encrypt with the latest", "POST", "ct/encrypt/r", r#"{"plaintext":"aGVsbG8="}"#).data(&sealed(3)),
        encrypt("encrypt with an older version", 2).data(&sealed(2)),
        row("decrypt with an older version", "POST", "ct/decrypt/r", old).data(r#"{"plaintext":"aGVsbG8="}"#),
        set("minimum decryption above latest", r#"{"min_decryption_version":9}"#)
            .bad("cannot set min decryption version of 9, latest key version is 3"),
        set("minimum encryption above latest", r#"{"min_encryption_version":9}"#)
            .bad("cannot set min encryption version of 9, latest key version is 3"),
        set("minima the wrong way round", r#"{"min_encryption_version":1,"min_decryption_version":2}"#).bad(
            "cannot set min encryption/decryption values; min encryption version of 1 must be greater than or equal to min decryption version of 2",
        ),
        set("minimum decryption zero", r#"{"min_decryption_version":0}"#).warned(
            &r("\"1\":§,\"2\":§,\"3\":§", 3, (0, 1, 0)),
            r#"["since Vault 0.3 (prior to the OpenBao fork), transit key numbering starts at 1; forcing minimum to 1"]"#,
        ),
        set("minimum decryption negative", r#"{"min_decryption_version":-1}"#)
            .bad("min decryption version cannot be negative"),
        set("minimum encryption negative", r#"{"min_encryption_version":-1}"#)
            .bad("min encryption version cannot be negative"),
        set("minimum of a wrong type", r#"{"min_decryption_version":"x"}"#).bad(
            r#"Field validation failed: error converting input for field \"min_decryption_version\": '' cannot parse value as 'int': strconv.ParseInt: invalid syntax"#,
        ),
        set("minimum decryption two", r#"{"min_decryption_version":2}"#).data(&r("\"2\":§,\"3\":§", 3, (0, 2, 0))),
        row("decrypt too old", "POST", "ct/decrypt/r", old)
            .bad("ciphertext or signature version is disallowed by policy (too old)"),
        encrypt("encrypt below the minimum decryption", 1).bad("no such key version"),
        set("minimum encryption three", r#"{"min_encryption_version":3}"#).data(&r("\"2\":§,\"3\":§", 3, (0, 2, 3))),
        encrypt("encrypt below the minimum encryption", 2).bad(less),
        encrypt("encrypt far below the minimum encryption", 1).bad(less),
        row("trim without a version", "POST", "ct/keys/r/trim", "{}").bad("missing min_available_version"),
        row("trim above the minima", "POST", "ct/keys/r/trim", r#"{"min_available_version":9}"#)
            .bad("minimum available version cannot be greater than minmum encryption version"),
        row("trim above the minimum decryption", "POST", "ct/keys/r/trim", r#"{"min_available_version":3}"#)
            .bad("minimum available version cannot be greater than minimum decryption version"),
        row("trim to zero", "POST", "ct/keys/r/trim", r#"{"min_available_version":0}"#)
            .bad("minimum available version should be positive"),
        row("trim", "POST", "ct/keys/r/trim", r#"{"min_available_version":2}"#)
            .data(&r("\"2\":§,\"3\":§", 3, (2, 2, 3))),
        row("trim back", "POST", "ct/keys/r/trim", r#"{"min_available_version":1}"#)
            .bad("minimum available version cannot be decremented"),
        set("minimum decryption below what is left", r#"{"min_decryption_version":1}"#)
            .bad("min decryption version should not be less then min available version"),
        set("minimum encryption below what is left", r#"{"min_encryption_version":0}"#)
            .bad("min encryption version should not be less than min available version"),
        row("trim without minima", "POST", "ct/keys/k/trim", r#"{"min_available_version":1}"#)
            .bad("minimum available version cannot be set when minimum encryption version is not set"),
    ]
}

fn configuring() -> Vec<Row> {
    let flags = |set: &str| shown("f", "aes256-gcm96", "\"1\":§", (1, 0, 1, 0), set);
    let set = |name, body: &str| row(name, "POST", "ct/keys/f/config", body);
    vec![
        row("key to configure", "POST", "ct/keys/f", "{}").data(&flags("")),
        set("configure nothing", "{}").data(&flags("")),
        set("short period", r#"{"auto_rotate_period":"5m"}"#)
            .bad("auto rotate period must be 0 to disable or at least an hour"),
        set("period", r#"{"auto_rotate_period":"24h"}"#).data(&flags("auto_rotate")),
        set("no period", r#"{"auto_rotate_period":0}"#).data(&flags("")),
        set("make exportable", r#"{"exportable":true}"#).data(&flags("exportable")),
        set("exportable stays", r#"{"exportable":false}"#).data(&flags("exportable")),
        row("read the upsert switch", "GET", "ct/config/keys", "").data(r#"{"disable_upsert":false}"#),
        row("upserts off", "POST", "ct/config/keys", r#"{"disable_upsert":true}"#).data(r#"{"disable_upsert":true}"#),
        row("upsert that is off", "POST", "ct/encrypt/up", r#"{"plaintext":"AAAA"}"#).bad("encryption key not found"),
        row("upserts wrong", "POST", "ct/config/keys", r#"{"disable_upsert":"x"}"#).bad(
            r#"Field validation failed: error converting input for field \"disable_upsert\": '' cannot parse value as 'bool': strconv.ParseBool: invalid syntax"#,
        ),
        row("upserts on", "POST", "ct/config/keys", r#"{"disable_upsert":false}"#).data(r#"{"disable_upsert":false}"#),
        row("upsert", "POST", "ct/encrypt/up", r#"{"plaintext":"AAAA"}"#)
            .data(r#"{"ciphertext":"vault:v1:§","key_version":1}"#),
        row("the upserted key", "GET", "ct/keys/up", "").data(&key("up", "aes256-gcm96")),
    ]
}

fn ending() -> Vec<Row> {
    let soft = |set: &str| shown("s", "aes256-gcm96", "\"1\":§", (1, 0, 1, 0), set);
    let refused = "refusing to use soft-deleted key";
    vec![
        row("key to end", "POST", "ct/keys/s", "{}").data(&soft("")),
        row("soft-delete", "DELETE", "ct/keys/s/soft-delete", "").data(&soft("soft_deleted")),
        row("soft-delete again", "DELETE", "ct/keys/s/soft-delete", "")
            .warned(&soft("soft_deleted"), r#"["key was already marked as soft deleted"]"#),
        row("soft-delete by POST", "POST", "ct/keys/s/soft-delete", "").multi(405, "unsupported operation"),
        row("soft-deleted: encrypt", "POST", "ct/encrypt/s", r#"{"plaintext":"AAAA"}"#).bad(refused),
        row("soft-deleted: bad base64 comes first", "POST", "ct/encrypt/s", r#"{"plaintext":"aGVs***"}"#)
            .bad("illegal base64 data at input byte 4"),
        row("soft-deleted: decrypt anything", "POST", "ct/decrypt/s", r#"{"ciphertext":"x"}"#).bad(refused),
        row("soft-deleted: decrypt nothing", "POST", "ct/decrypt/s", "{}").bad("missing ciphertext to decrypt"),
        row("soft-deleted: rotate", "POST", "ct/keys/s/rotate", "").multi(500, refused),
        row("soft-deleted: batch", "POST", "ct/encrypt/s", r#"{"batch_input":[{"plaintext":"AAAA"}]}"#)
            .batch(400, r#"{"error":"refusing to use soft-deleted key","reference":""}"#),
        row("soft-deleted: read", "GET", "ct/keys/s", "").data(&soft("soft_deleted")),
        row("restore", "POST", "ct/keys/s/soft-delete-restore", "").data(&soft("")),
        row("soft-delete a missing key", "DELETE", "ct/keys/no/soft-delete", "").empty(),
        row("restore a missing key", "POST", "ct/keys/no/soft-delete-restore", "").empty(),
        row("rotate a missing key", "POST", "ct/keys/no/rotate", "").bad("key not found"),
        row("configure a missing key", "POST", "ct/keys/no/config", "{}")
            .bad("no existing key named no could be found"),
        row("trim a missing key", "POST", "ct/keys/no/trim", r#"{"min_available_version":1}"#).bad("invalid key name"),
        row("delete a missing key", "DELETE", "ct/keys/no", "")
            .bad("error deleting policy no: could not delete key; not found"),
        row("delete without leave", "DELETE", "ct/keys/s", "")
            .bad("error deleting policy s: deletion is not allowed for this key"),
        row("allow deletion", "POST", "ct/keys/s/config", r#"{"deletion_allowed":true}"#)
            .data(&soft("deletion_allowed")),
        row("delete", "DELETE", "ct/keys/s", "").empty(),
        row("deleted", "GET", "ct/keys/s", "").blank(404),
    ]
}
