//! What a reply of OpenBao that is no success means. Status and shape come first, known texts second; nothing of the
//! text itself goes on, as it may name paths and keys.

use serde::Deserialize;

use crate::error::{Class, Error};
use crate::request::{BaoReply, Purpose};

#[derive(Deserialize)]
struct Errors {
    #[serde(default)]
    errors: Vec<String>,
}

/// The error that a reply means. Only for replies that are no success.
pub(super) fn classify(purpose: Purpose, reply: &BaoReply) -> Error {
    let Ok(Errors { errors }) = serde_json::from_slice(&reply.body) else {
        return unreadable(reply);
    };
    let says = |text: &str| errors.iter().any(|error| error.contains(text));
    let of = |class: Class, detail: &'static str| Error::new(class, format!("{detail} (HTTP {})", reply.status));
    match reply.status {
        400 => bad_request(&says, &of),
        403 if errors.iter().any(|error| error.starts_with("1 error occurred")) => {
            of(Class::TokenRejected, "the policy does not allow it")
        }
        403 => of(Class::TokenRejected, "the token is refused"),
        404 if says("namespace not found") => of(Class::NamespaceMissing, "the namespace does not exist"),
        404 if says("no handler for route") => of(Class::MountMissing, "nothing is mounted there"),
        404 if errors.is_empty() && purpose == Purpose::Metadata => of(Class::KeyMissing, "the key does not exist"),
        404 => of(Class::MountMissing, "the path does not exist"),
        405 => of(Class::MountMissing, "what is mounted there is not Transit"),
        429 => of(Class::RateLimited, "OpenBao limits the rate or lags behind").with_retry_after(reply.retry_after),
        500 if says("factory[0]") || says("failed to parse") => of(Class::Internal, "OpenBao cannot read our request"),
        500 if says("soft-deleted") => of(Class::KeySoftDeleted, "the key is soft-deleted"),
        500 if says("local node not active") => of(Class::NoLeader, "no active node is known"),
        503 if says("sealed") => of(Class::Sealed, "OpenBao or its namespace is sealed"),
        503 if says("has been locked") => of(Class::NamespaceMissing, "the namespace is locked"),
        503 if says("no active") || says("not active") => of(Class::NoLeader, "no active node is known"),
        502..=504 => of(Class::NoLeader, "no node serves"),
        500..=599 => of(Class::ServerError, "internal error of OpenBao"),
        _ => of(Class::BadReply, "an answer that OpenBao does not give"),
    }
}

fn bad_request(says: &dyn Fn(&str) -> bool, of: &dyn Fn(Class, &'static str) -> Error) -> Error {
    if says("soft-deleted") {
        of(Class::KeySoftDeleted, "the key is soft-deleted")
    } else if says("encryption key not found") {
        of(Class::KeyMissing, "the key does not exist")
    } else if says("version is too new") || says("is higher than the latest key version") {
        of(Class::StaleNode, "the node does not know this key version yet")
    } else if says("disallowed by policy (too old)") || says("less than the minimum encryption key version") {
        of(Class::VersionTooOld, "the key version is below a minimum of the key")
    } else if says("no such key version") {
        of(Class::VersionTooOld, "the key version is no longer there")
    } else if says("message authentication failed") || says("invalid ciphertext") {
        of(Class::CiphertextInvalid, "the ciphertext does not open under this key version and associated data")
    } else if says("missing 'context'") || says("non-AEAD cipher") {
        of(Class::KeyUnusable, "the key is derived or of a type without associated data")
    } else {
        of(Class::Internal, "OpenBao refuses our request")
    }
}

/// Not JSON of OpenBao's: a proxy or load balancer answered.
fn unreadable(reply: &BaoReply) -> Error {
    let detail = format!("an answer that is not OpenBao's (HTTP {})", reply.status);
    match reply.status {
        429 => Error::new(Class::RateLimited, detail).with_retry_after(reply.retry_after),
        502..=504 => Error::new(Class::NoLeader, detail),
        500..=599 => Error::new(Class::ServerError, detail),
        _ => Error::new(Class::BadReply, detail),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(purpose: Purpose, status: u16, body: &str) -> Class {
        let reply = BaoReply {
            status,
            body: body.to_owned().into(),
            date: None,
            retry_after: None,
            location: None,
            endpoint: Some(0),
        };
        classify(purpose, &reply).class()
    }

    #[test]
    fn each_answer_has_its_class() {
        let plain = |text: &str| serde_json::json!({ "errors": [text] }).to_string();
        let multi = |text: &str| plain(&format!("1 error occurred:\n\t* {text}\n\n"));
        let table = [
            (400, plain("encryption key not found"), Class::KeyMissing),
            (403, multi("permission denied"), Class::TokenRejected),
            (403, plain("permission denied"), Class::TokenRejected),
            (400, plain("invalid ciphertext: no prefix"), Class::CiphertextInvalid),
            (400, plain("invalid ciphertext: wrong number of fields"), Class::CiphertextInvalid),
            (400, plain("invalid ciphertext: version is too new"), Class::StaleNode),
            (400, plain("requested version for encryption is higher than the latest key version"), Class::StaleNode),
            (400, plain("ciphertext or signature version is disallowed by policy (too old)"), Class::VersionTooOld),
            (
                400,
                plain("requested version for encryption is less than the minimum encryption key version"),
                Class::VersionTooOld,
            ),
            (400, plain("no such key version"), Class::VersionTooOld),
            (400, plain("cipher: message authentication failed"), Class::CiphertextInvalid),
            (400, plain("chacha20poly1305: message authentication failed"), Class::CiphertextInvalid),
            (400, plain("refusing to use soft-deleted key"), Class::KeySoftDeleted),
            (500, multi("refusing to use soft-deleted key"), Class::KeySoftDeleted),
            (400, plain("missing 'context' for key derivation"), Class::KeyUnusable),
            (400, plain("'[0].associated_data' provided for non-AEAD cipher suite rsa-2048"), Class::KeyUnusable),
            (500, multi("unable to get associated_data/additional_data from factory[0]: x"), Class::Internal),
            (404, plain("no handler for route \"x/y\". route entry not found."), Class::MountMissing),
            (404, multi("unsupported path"), Class::MountMissing),
            (405, multi("unsupported operation"), Class::MountMissing),
            (404, plain("namespace not found"), Class::NamespaceMissing),
            (503, plain("Vault is sealed"), Class::Sealed),
            (503, plain("namespace is sealed"), Class::Sealed),
            (503, plain("no active Vault instance found"), Class::NoLeader),
            (500, plain("local node not active but active cluster node not found"), Class::NoLeader),
            (429, plain("request path \"x\": rate limit quota exceeded"), Class::RateLimited),
            (429, "{\"errors\":[]}".into(), Class::RateLimited),
            (500, plain("internal error"), Class::ServerError),
            (502, "<html>".into(), Class::NoLeader),
            (200, "<html>".into(), Class::BadReply),
            (418, plain("teapot"), Class::BadReply),
        ];
        for (status, body, expected) in table {
            assert_eq!(class(Purpose::Decrypt, status, &body), expected, "{status} {body}");
        }
        assert_eq!(class(Purpose::Metadata, 404, "{\"errors\":[]}"), Class::KeyMissing);
    }

    #[test]
    fn no_text_of_openbaos_goes_on() {
        let reply = BaoReply {
            status: 400,
            body: r#"{"errors":["something about transit/keys/secret-name"]}"#.into(),
            date: None,
            retry_after: None,
            location: None,
            endpoint: None,
        };
        assert!(!classify(Purpose::Encrypt, &reply).detail().contains("secret-name"));
    }
}
