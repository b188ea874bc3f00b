//! Batches: statuses that come from the fate of the items, results in order, and items that cannot be read.

use super::row::{Row, row};

pub(super) fn rows() -> Vec<Row> {
    let encrypt = |name, body: &str| row(name, "POST", "ct/encrypt/k", body);
    let decrypt = |name, body: &str| row(name, "POST", "ct/decrypt/k", body);
    let good = r#"{"ciphertext":"vault:v1:§","key_version":1,"reference":""}"#;
    let bad = r#"{"error":"illegal base64 data at input byte 0","reference":"r"}"#;
    let mixed = format!("{good},{bad}");
    let opened = r#"{"plaintext":"aGVsbG8=","reference":""}"#;
    let unopened = |why: &str| format!(r#"{{"plaintext":"","error":"{why}","reference":""}}"#);
    let factory = "unable to get associated_data/additional_data from factory[0]: illegal base64 data at input byte 0";
    let unread = |why: &str| format!("failed to parse batch input: {why}");
    let contexts = "context should be set either in all the request blocks or in none";
    vec![
        encrypt("empty batch", r#"{"batch_input":[]}"#).bad("missing batch input to process"),
        encrypt("batch", r#"{"batch_input":[{"plaintext":"AAAA"},{"plaintext":""}]}"#)
            .data(&format!(r#"{{"batch_results":[{good},{good}]}}"#)),
        encrypt("batch wins over plaintext", r#"{"batch_input":[{"plaintext":"AAAA","zz":3}],"plaintext":5}"#)
            .data(&format!(r#"{{"batch_results":[{good}]}}"#)),
        encrypt("null batch", r#"{"batch_input":null}"#).bad("missing plaintext to encrypt"),
        encrypt("batch that half fails", r#"{"batch_input":[{"plaintext":"AAAA"},{"plaintext":"***","reference":"r"}]}"#)
            .batch(400, &mixed),
        encrypt("half fails with a status asked for", r#"{"batch_input":[{"plaintext":"AAAA"},{"plaintext":"***","reference":"r"}],"partial_failure_response_code":207}"#)
            .batch(207, &mixed),
        encrypt("all fail with a status asked for", r#"{"batch_input":[{"plaintext":"***","reference":"r"}],"partial_failure_response_code":207}"#)
            .batch(400, bad),
        encrypt("versions in a batch", r#"{"batch_input":[{"plaintext":"AAAA","key_version":9},{"plaintext":"AAAA","key_version":1}]}"#)
            .batch(400, &format!(r#"{{"error":"requested version for encryption is higher than the latest key version","reference":""}},{good}"#)),
        encrypt("server's fault in a batch", r#"{"batch_input":[{"plaintext":"AAAA","associated_data":"***"}]}"#)
            .batch(500, &format!(r#"{{"error":"{factory}","reference":""}}"#)),
        encrypt("some contexts", r#"{"batch_input":[{"plaintext":"AAAA","context":"AAAA"},{"plaintext":"AAAA"}]}"#)
            .bad(contexts),
        encrypt("item without plaintext", r#"{"batch_input":[{"plaintext":"AAAA"},{}]}"#)
            .multi(500, &unread("'[1].plaintext' missing plaintext to encrypt")),
        encrypt("item that is a number", r#"{"batch_input":[1]}"#)
            .multi(500, &unread("[0] expected a map, got 'json.Number'")),
        encrypt("batch that is an object", r#"{"batch_input":{"a":1}}"#)
            .multi(500, &unread("source data must be an array or slice, got map[string]interface {}")),
        encrypt("batch that is a text", r#"{"batch_input":"x"}"#)
            .multi(500, &unread("source data must be an array or slice, got string")),
        encrypt("item with a number as plaintext", r#"{"batch_input":[{"plaintext":5}]}"#)
            .multi(500, &unread("'[0].plaintext' expected type 'string', got unconvertible type 'json.Number'")),
        encrypt("item with null as plaintext", r#"{"batch_input":[{"plaintext":null}]}"#).multi(
            500,
            &unread("'[0].plaintext' expected type 'string', got unconvertible type '\\u003cnil\\u003e'"),
        ),
        encrypt("item with a text as version", r#"{"batch_input":[{"plaintext":"AAAA","key_version":"1"}]}"#)
            .multi(500, &unread("'[0].key_version' expected type 'int', got unconvertible type 'string'")),
        encrypt("item with a number as reference", r#"{"batch_input":[{"plaintext":"AAAA","reference":5}]}"#)
            .multi(500, &unread("'[0].reference' expected type 'string', got unconvertible type 'json.Number'")),
        encrypt("two items that cannot be read", r#"{"batch_input":[{},{}]}"#).multi(
            500,
            &unread("'[0].plaintext' missing plaintext to encrypt\\n'[1].plaintext' missing plaintext to encrypt"),
        ),
        encrypt("ciphertext for batches", r#"{"plaintext":"aGVsbG8="}"#)
            .data(r#"{"ciphertext":"vault:v1:§","key_version":1}"#)
            .keep("b", "/data/ciphertext"),
        decrypt("decrypt a batch", r#"{"batch_input":[{"ciphertext":"${b}","reference":"a"},{"ciphertext":"${b}"}]}"#)
            .data(&format!(r#"{{"batch_results":[{{"plaintext":"aGVsbG8=","reference":"a"}},{opened}]}}"#)),
        decrypt("decrypt a batch that half fails", r#"{"batch_input":[{"ciphertext":"${b}"},{"ciphertext":"x"},{"ciphertext":""},{"ciphertext":"vault:v9:AAAA"}]}"#)
            .batch(400, &format!(
                "{opened},{},{},{}",
                unopened("invalid ciphertext: no prefix"),
                unopened("missing ciphertext to decrypt"),
                unopened("invalid ciphertext: version is too new"),
            )),
        decrypt("half fails with 200 asked for", r#"{"batch_input":[{"ciphertext":"${b}"},{"ciphertext":"x"}],"partial_failure_response_code":200}"#)
            .batch(200, &format!("{opened},{}", unopened("invalid ciphertext: no prefix"))),
        decrypt("status as text", r#"{"batch_input":[{"ciphertext":"${b}","associated_data":"AAAA"},{"ciphertext":"${b}"}],"partial_failure_response_code":"200"}"#)
            .batch(200, &format!("{},{opened}", unopened("cipher: message authentication failed"))),
        decrypt("all fail with 200 asked for", r#"{"batch_input":[{"ciphertext":"x"}],"partial_failure_response_code":200}"#)
            .batch(400, &unopened("invalid ciphertext: no prefix")),
        decrypt("both at fault", r#"{"batch_input":[{"ciphertext":"${b}","associated_data":"***"},{"ciphertext":"x"}]}"#)
            .batch(400, &format!("{},{}", unopened(factory), unopened("invalid ciphertext: no prefix"))),
        decrypt("server's fault on decrypt", r#"{"batch_input":[{"ciphertext":"${b}","associated_data":"***"}]}"#)
            .batch(500, &unopened(factory)),
        decrypt("decrypt an empty batch", r#"{"batch_input":[]}"#).bad("missing batch input to process"),
        decrypt("decrypt an item without ciphertext", r#"{"batch_input":[{}]}"#)
            .multi(500, &unread("'[0].ciphertext' missing ciphertext to decrypt")),
        decrypt("decrypt some contexts", r#"{"batch_input":[{"ciphertext":"${b}","context":"AAAA"},{"ciphertext":"x"}]}"#)
            .bad(contexts),
        row("decrypt a batch with a missing key", "POST", "ct/decrypt/no", r#"{"batch_input":[{"ciphertext":"${b}"}]}"#)
            .bad("encryption key not found"),
    ]
}
