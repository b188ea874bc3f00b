//! What a reply of OpenBao that is no success means. Status and shape come first, known texts second; nothing of the
//! text itself goes on, as it may name paths and keys.

use crate::error::{Class, Error};
use crate::request::{BaoReply, Purpose};

/// The error that a reply means. Only for replies that are no success.
pub(super) fn classify(purpose: Purpose, reply: &BaoReply) -> Error {
    let Some(errors) = reply.errors() else {
        return reply.of_a_stranger();
    };
    let says = |text: &str| errors.iter().any(|error| error.contains(text));
    let of = |class: Class, detail: &'static str| Error::new(class, format!("{detail} (HTTP {})", reply.status));
    match reply.status {
        400 => bad_request(&says, &of),
        403 if errors.iter().any(|error| error.starts_with("1 error occurred")) => {
            of(Class::TokenRejected, "the policy does not allow it")
        }
        401 | 403 => of(Class::TokenRejected, "the token is refused"),
        404 if says("namespace not found") => of(Class::NamespaceMissing, "the namespace does not exist"),
        404 if says("no handler for route") => of(Class::MountMissing, "nothing is mounted there"),
        404 if errors.is_empty() && purpose == Purpose::Metadata => of(Class::KeyMissing, "the key does not exist"),
        404 => of(Class::MountMissing, "the path does not exist"),
        405 => of(Class::MountMissing, "what is mounted there is not Transit"),
        413 => of(Class::Internal, "our request is larger than OpenBao takes"),
        429 => of(Class::RateLimited, "OpenBao limits the rate or lags behind").with_retry_after(reply.retry_after),
        500 if says("factory[0]") || says("failed to parse") => of(Class::Internal, "OpenBao cannot read our request"),
        500 if says("soft-deleted") => of(Class::KeySoftDeleted, "the key is soft-deleted"),
        500 if says("local node not active") => of(Class::NoLeader, "no active node is known"),
        503 if says("sealed") => of(Class::Sealed, "OpenBao or its namespace is sealed"),
        // Like a seal: an administrator has to unlock it, and then everything goes on.
        503 if says("has been locked") => of(Class::Sealed, "the API of the namespace is locked by an administrator"),
        503 if says("no active") || says("not active") => of(Class::NoLeader, "no active node is known"),
        502..=504 => of(Class::NoLeader, "no node serves"),
        500..=599 => of(Class::ServerError, "internal error of OpenBao"),
        _ => of(Class::BadReply, "an answer that OpenBao does not give"),
    }
}

/// The error that the text of one item of a batch means. Its own status is not told: where a user's errors and OpenBao's
/// meet, all answer 400 (`openbao.md` A.7). So a text that is nobody's known one counts as OpenBao's trouble.
pub(super) fn classify_item(text: &str) -> Error {
    let error = bad_request(&|known| text.contains(known), &|class, detail| Error::new(class, detail));
    match error.class() {
        Class::Internal => Error::new(Class::ServerError, "internal error of OpenBao with one item of a batch"),
        _ => error,
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
        let context = "missing 'context' for key derivation; the key was created using a derived key, which means \
                       additional, per-request information must be included in order to perform operations with the key";
        let locked = "API access to this namespace has been locked by an administrator - \"ns1/\" must be unlocked to gain access.";
        let complex = "refused JSON input due to high complexity: exceeded maximum number of strings";
        // The rows of `openbao.md` A.8 that encrypt, decrypt and the reads can meet, in its order.
        let table = [
            (400, plain("encryption key not found"), Class::KeyMissing),
            (403, multi("permission denied"), Class::TokenRejected),
            (400, plain("missing plaintext to encrypt"), Class::Internal),
            (400, plain("missing ciphertext to decrypt"), Class::Internal),
            (400, plain("illegal base64 data at input byte 4"), Class::Internal),
            (400, plain("invalid ciphertext: no prefix"), Class::CiphertextInvalid),
            (400, plain("invalid ciphertext: wrong number of fields"), Class::CiphertextInvalid),
            (400, plain("invalid ciphertext: version number could not be decoded"), Class::CiphertextInvalid),
            (400, plain("invalid ciphertext: version is too new"), Class::StaleNode),
            (400, plain("ciphertext or signature version is disallowed by policy (too old)"), Class::VersionTooOld),
            (400, plain("invalid ciphertext: could not decode base64"), Class::CiphertextInvalid),
            (400, plain("invalid ciphertext length"), Class::CiphertextInvalid),
            (400, plain("cipher: message authentication failed"), Class::CiphertextInvalid),
            (400, plain("chacha20poly1305: message authentication failed"), Class::CiphertextInvalid),
            (400, plain("no such key version"), Class::VersionTooOld),
            (
                500,
                multi(
                    "unable to get associated_data/additional_data from factory[0]: illegal base64 data at input byte 3",
                ),
                Class::Internal,
            ),
            (400, plain("'[0].associated_data' provided for non-AEAD cipher suite rsa-2048"), Class::KeyUnusable),
            (400, plain("requested version for encryption is negative"), Class::Internal),
            (400, plain("requested version for encryption is higher than the latest key version"), Class::StaleNode),
            (
                400,
                plain("requested version for encryption is less than the minimum encryption key version"),
                Class::VersionTooOld,
            ),
            (400, plain("refusing to use soft-deleted key"), Class::KeySoftDeleted),
            (500, multi("refusing to use soft-deleted key"), Class::KeySoftDeleted),
            (400, plain(context), Class::KeyUnusable),
            (400, plain("Field validation failed: error converting input"), Class::Internal),
            (403, plain("permission denied"), Class::TokenRejected),
            (404, plain("no handler for route \"x/y\". route entry not found."), Class::MountMissing),
            (404, multi("unsupported path"), Class::MountMissing),
            (405, multi("unsupported operation"), Class::MountMissing),
            (400, plain("cannot write to a path ending in '/'"), Class::Internal),
            (400, plain("relative paths not supported"), Class::Internal),
            (503, plain("Vault is sealed"), Class::Sealed),
            (503, plain("namespace is sealed"), Class::Sealed),
            (503, plain(locked), Class::Sealed),
            (404, plain("namespace not found"), Class::NamespaceMissing),
            (400, plain("operation unavailable in namespaces"), Class::Internal),
            (429, plain("request path \"transit/encrypt/k\": rate limit quota exceeded"), Class::RateLimited),
            (429, "{\"errors\":[]}".into(), Class::RateLimited),
            (413, plain("http: request body too large"), Class::Internal),
            (400, plain(complex), Class::Internal),
            (400, plain("failed to decode JSON input: unexpected EOF"), Class::Internal),
            (400, plain("error parsing JSON"), Class::Internal),
            (500, multi("failed to parse batch input: x"), Class::Internal),
            (500, plain("internal error"), Class::ServerError),
            (500, multi("internal error"), Class::ServerError),
            (500, plain("local node not active but active cluster node not found"), Class::NoLeader),
            (503, plain("no active Vault instance found"), Class::NoLeader),
            (503, plain("node is not active"), Class::NoLeader),
            (404, "{\"errors\":[]}".into(), Class::MountMissing),
            // Names of paths and words of proxies prove nothing: the status has the first word.
            (404, plain("no handler for route \"sealed/encrypt/k\". route entry not found."), Class::MountMissing),
            (404, plain("no handler for route \"no active/x\". route entry not found."), Class::MountMissing),
            (429, plain("request path \"sealed/encrypt/k\": rate limit quota exceeded"), Class::RateLimited),
            (403, plain("Vault is sealed"), Class::TokenRejected),
            (500, plain("cannot reach the sealed store"), Class::ServerError),
            (500, plain("encryption key not found"), Class::ServerError),
            (502, plain("Vault is sealed"), Class::NoLeader),
            (503, "<html>sealed".into(), Class::NoLeader),
            (404, "<html>no handler for route".into(), Class::BadReply),
            (403, "<html>forbidden".into(), Class::BadReply),
            (403, r#"{"message":"no API key"}"#.into(), Class::BadReply),
            (404, r#"{"error":"not found"}"#.into(), Class::BadReply),
            // What stands in front of OpenBao answers in its own words.
            (429, "slow down".into(), Class::RateLimited),
            (502, "<html>".into(), Class::NoLeader),
            (503, "<html>".into(), Class::NoLeader),
            (500, "<html>".into(), Class::ServerError),
            (200, "<html>".into(), Class::BadReply),
            (204, String::new(), Class::BadReply),
            (418, plain("teapot"), Class::BadReply),
        ];
        for (status, body, expected) in table {
            for purpose in [Purpose::Encrypt, Purpose::Decrypt] {
                assert_eq!(class(purpose, status, &body), expected, "{status} {body}");
            }
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
