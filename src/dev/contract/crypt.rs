//! Encrypt and decrypt, one item at a time: every refusal, in its order.

use super::row::{Row, row};

pub(super) fn rows() -> Vec<Row> {
    [encrypting(), decrypting(), bodies()].concat()
}

fn encrypting() -> Vec<Row> {
    let encrypt = |name, body: &str| row(name, "POST", "ct/encrypt/k", body);
    let sealed = r#"{"ciphertext":"vault:v1:§","key_version":1}"#;
    vec![
        encrypt("no plaintext", "{}").bad("missing plaintext to encrypt"),
        encrypt("no body", "").bad("missing plaintext to encrypt"),
        encrypt("empty plaintext", r#"{"plaintext":""}"#).data(sealed),
        encrypt("null plaintext", r#"{"plaintext":null}"#).data(sealed),
        encrypt("plaintext with a line break", r#"{"plaintext":"AA\nAA"}"#).data(sealed),
        encrypt("bad plaintext", r#"{"plaintext":"!!!!"}"#).bad("illegal base64 data at input byte 0"),
        encrypt("unpadded plaintext", r#"{"plaintext":"AAA"}"#).bad("illegal base64 data at input byte 0"),
        encrypt("half-padded plaintext", r#"{"plaintext":"AA="}"#).bad("illegal base64 data at input byte 3"),
        encrypt("padding in the middle", r#"{"plaintext":"AA==AAAA"}"#).bad("illegal base64 data at input byte 4"),
        encrypt("one character too many", r#"{"plaintext":"AAAAA"}"#).bad("illegal base64 data at input byte 4"),
        encrypt("numbers are text", r#"{"plaintext":5}"#).bad("illegal base64 data at input byte 0"),
        encrypt("plaintext of a wrong type", r#"{"plaintext":["a"]}"#).bad(
            r#"error converting input for field \"plaintext\": '' expected type 'string', got unconvertible type '[]interface {}'"#,
        ),
        encrypt("negative version", r#"{"plaintext":"AAAA","key_version":-1}"#)
            .bad("requested version for encryption is negative"),
        encrypt("version above latest", r#"{"plaintext":"AAAA","key_version":9}"#)
            .bad("requested version for encryption is higher than the latest key version"),
        encrypt("version zero is the latest", r#"{"plaintext":"AAAA","key_version":0}"#).data(sealed),
        encrypt("version as text", r#"{"plaintext":"AAAA","key_version":"1"}"#).data(sealed),
        encrypt("version that is none", r#"{"plaintext":"AAAA","key_version":"x"}"#).bad(
            r#"error converting input for field \"key_version\": '' cannot parse value as 'int': strconv.ParseInt: invalid syntax"#,
        ),
        encrypt("bad associated data", r#"{"plaintext":"AAAA","associated_data":"***"}"#).multi(
            500,
            "unable to get associated_data/additional_data from factory[0]: illegal base64 data at input byte 0",
        ),
        encrypt("bad context", r#"{"plaintext":"AAAA","context":"***"}"#).bad("illegal base64 data at input byte 0"),
        encrypt("context on a plain key", r#"{"plaintext":"AAAA","context":"AAAA"}"#).data(sealed),
        encrypt("unknown fields", r#"{"plaintext":"AAAA","nonce":"AAAA","zz":1}"#)
            .warned(sealed, r#"["Endpoint ignored these unrecognized parameters: [nonce zz]"]"#),
        row("derived key without context", "POST", "ct/encrypt/d", r#"{"plaintext":"AAAA"}"#).bad(
            "missing 'context' for key derivation; the key was created using a derived key, which means additional, per-request information must be included in order to perform operations with the key",
        ),
        row("derived key", "POST", "ct/encrypt/d", r#"{"plaintext":"aGVsbG8=","context":"YWJj"}"#)
            .data(sealed)
            .keep("derived", "/data/ciphertext"),
        row("derived key back", "POST", "ct/decrypt/d", r#"{"ciphertext":"${derived}","context":"YWJj"}"#)
            .data(r#"{"plaintext":"aGVsbG8="}"#),
        row("derived key, other context", "POST", "ct/decrypt/d", r#"{"ciphertext":"${derived}","context":"YWJk"}"#)
            .bad("cipher: message authentication failed"),
        row("convergent once", "POST", "ct/encrypt/cd", r#"{"plaintext":"aGVsbG8=","context":"YWJj"}"#)
            .data(sealed)
            .keep("convergent", "/data/ciphertext"),
        row("convergent twice", "POST", "ct/encrypt/cd", r#"{"plaintext":"aGVsbG8=","context":"YWJj"}"#)
            .data(r#"{"ciphertext":"${convergent}","key_version":1}"#),
        row("a key that only signs", "POST", "ct/encrypt/ed", r#"{"plaintext":"AAAA"}"#)
            .bad("message encryption not supported for key type ed25519"),
        row("read where one writes", "GET", "ct/encrypt/k", "").multi(405, "unsupported operation"),
        row("encrypt with nothing", "PUT", "ct/encrypt", "{}").multi(404, "unsupported path"),
        row("encrypt with a folder", "POST", "ct/encrypt/", "{}").bad("cannot write to a path ending in '/'"),
        row("encrypt with two names", "POST", "ct/encrypt/a/b", "{}").multi(404, "unsupported path"),
        row("encrypt with a bad name", "POST", "ct/encrypt/bad-", "{}").multi(404, "unsupported path"),
    ]
}

fn decrypting() -> Vec<Row> {
    let decrypt = |name, body: &str| row(name, "POST", "ct/decrypt/k", body);
    let shaped = |name, ciphertext: &str| {
        let body = format!(r#"{{"ciphertext":"{ciphertext}","associated_data":"YWFk"}}"#);
        row(name, "POST", "ct/decrypt/k", &body)
    };
    let hello = r#"{"plaintext":"aGVsbG8="}"#;
    let failed = "cipher: message authentication failed";
    let version = "invalid ciphertext: version number could not be decoded";
    let old = "ciphertext or signature version is disallowed by policy (too old)";
    let base64 = "invalid ciphertext: could not decode base64";
    vec![
        row("encrypt with associated data", "POST", "ct/encrypt/k", r#"{"plaintext":"aGVsbG8=","associated_data":"YWFk"}"#)
            .data(r#"{"ciphertext":"vault:v1:§","key_version":1}"#)
            .keep("ct", "/data/ciphertext"),
        shaped("decrypt", "${ct}").data(hello),
        decrypt("no associated data", r#"{"ciphertext":"${ct}"}"#).bad(failed),
        decrypt("other associated data", r#"{"ciphertext":"${ct}","associated_data":"AAAA"}"#).bad(failed),
        decrypt("bad associated data on decrypt", r#"{"ciphertext":"${ct}","associated_data":"***"}"#).multi(
            500,
            "unable to get associated_data/additional_data from factory[0]: illegal base64 data at input byte 0",
        ),
        decrypt("bad context on decrypt", r#"{"ciphertext":"${ct}","context":"***"}"#)
            .bad("illegal base64 data at input byte 0"),
        decrypt("no ciphertext", "{}").bad("missing ciphertext to decrypt"),
        decrypt("null ciphertext", r#"{"ciphertext":null}"#).bad("missing ciphertext to decrypt"),
        decrypt("number as ciphertext", r#"{"ciphertext":5}"#).bad("invalid ciphertext: no prefix"),
        decrypt("list as ciphertext", r#"{"ciphertext":[]}"#).bad(
            r#"Field validation failed: error converting input for field \"ciphertext\": '' expected type 'string', got unconvertible type '[]interface {}'"#,
        ),
        shaped("empty ciphertext", "").bad("missing ciphertext to decrypt"),
        shaped("no prefix", "x").bad("invalid ciphertext: no prefix"),
        shaped("only the prefix", "vault:v").bad("invalid ciphertext: wrong number of fields"),
        shaped("only the version", "vault:v1").bad("invalid ciphertext: wrong number of fields"),
        shaped("no bytes", "vault:v1:").bad("invalid ciphertext length"),
        shaped("version that is no number", "vault:vx:AAAA").bad(version),
        shaped("version beyond numbers", "vault:v99999999999999999999:AAAA").bad(version),
        shaped("no version", "vault:v:AAAA").bad(version),
        shaped("version too new", "vault:v2:AAAA").bad("invalid ciphertext: version is too new"),
        shaped("negative version on decrypt", "vault:v-1:AAAA").bad(old),
        shaped("too short", "vault:v1:AAAAAAAAAAA=").bad("invalid ciphertext length"),
        shaped("nonce alone", "vault:v1:AAAAAAAAAAAAAAAA").bad(failed),
        shaped("tampered", "vault:v1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA").bad(failed),
        shaped("not base64", "vault:v1:!!!").bad(base64),
        shaped("something behind", "${ct}:x").bad(base64),
        decrypt("missing key", "").bad("missing ciphertext to decrypt"),
        row("decrypt with a missing key", "POST", "ct/decrypt/no", r#"{"ciphertext":"${ct}"}"#)
            .bad("encryption key not found"),
        row("missing key before its shape", "POST", "ct/decrypt/no", r#"{"ciphertext":"x"}"#)
            .bad("encryption key not found"),
        row("missing ciphertext before missing key", "POST", "ct/decrypt/no", "{}").bad("missing ciphertext to decrypt"),
        row("chacha fails in its own words", "POST", "ct/decrypt/cc", r#"{"ciphertext":"vault:v1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}"#)
            .bad("chacha20poly1305: message authentication failed"),
        row("decrypt with a key that only signs", "POST", "ct/decrypt/ed", r#"{"ciphertext":"vault:v1:AAAA"}"#)
            .bad("message decryption not supported for key type ed25519"),
        row("aes128 seals", "POST", "ct/encrypt/a128", r#"{"plaintext":"aGVsbG8="}"#)
            .data(r#"{"ciphertext":"vault:v1:§","key_version":1}"#)
            .keep("small", "/data/ciphertext"),
        row("aes128 opens", "POST", "ct/decrypt/a128", r#"{"ciphertext":"${small}"}"#).data(hello),
        row("another key", "POST", "ct/decrypt/w", r#"{"ciphertext":"${ct}","associated_data":"YWFk"}"#).bad(failed),
    ]
}

fn bodies() -> Vec<Row> {
    let encrypt = |name, body: &str| row(name, "POST", "ct/encrypt/k", body);
    vec![
        encrypt("body that is no JSON", "x").bad("error parsing JSON"),
        encrypt("body that is a list", "[]").bad("error parsing JSON"),
        encrypt("body that is a text", "\"a\"").bad("error parsing JSON"),
        encrypt("body that ends early", r#"{"plaintext":"AAAA""#).bad("error parsing JSON"),
        encrypt("body with something behind", r#"{"a":1}{"b":1}"#).bad("missing plaintext to encrypt"),
        encrypt("null body", "null").bad("missing plaintext to encrypt"),
        row("PATCH", "PATCH", "ct/keys/k", "{}")
            .plain(415, "PATCH requires Content-Type of application/merge-patch+json, provided application/json"),
        row("a method nobody knows", "FOO", "ct/keys/k", "").blank(405),
    ]
}
