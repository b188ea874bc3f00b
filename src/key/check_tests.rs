//! Decrypt's local half refuses everything that disagrees, in the order of the format.

use proptest::prelude::*;

use super::super::identity::{Identity, tests::config};
use super::super::{Metadata, annotations as names};
use super::*;

fn view(namespace: &str) -> View {
    let identity = Identity::new(&config(), namespace).expect("identity");
    let metadata: Metadata = serde_json::from_value(serde_json::json!({
        "type": "aes256-gcm96", "latest_version": 12, "min_decryption_version": 2,
        "keys": { "2": 100, "3": 200, "12": 300 },
    }))
    .expect("metadata");
    View::at(&identity, &metadata, 1_000, 0, None).expect("view")
}

fn stored(view: &View) -> (String, BTreeMap<String, Vec<u8>>, Vec<u8>) {
    let version = view.by_number(3).expect("v3");
    (version.key_id.to_string(), (*version.annotations).clone(), b"vault:v3:AAAA".to_vec())
}

#[test]
fn what_agrees_is_opened_under_its_own_version() {
    let view = view("");
    let (key_id, annotations, ciphertext) = stored(&view);
    assert_eq!(check(&view, &key_id, &annotations, &ciphertext).expect("agrees").number, 3);
}

#[test]
fn unknown_annotations_and_a_missing_plugin_version_are_tolerated() {
    let view = view("");
    let (key_id, mut annotations, ciphertext) = stored(&view);
    annotations.remove(names::PLUGIN_VERSION);
    annotations.insert("something.example.org".into(), vec![0xff]);
    assert!(check(&view, &key_id, &annotations, &ciphertext).is_ok());
}

#[test]
fn each_missing_annotation_is_named() {
    let view = view("kms/prod");
    let (key_id, annotations, ciphertext) = stored(&view);
    for key in view.by_number(3).expect("v3").known.keys() {
        let mut less = annotations.clone();
        less.remove(*key);
        assert_eq!(check(&view, &key_id, &less, &ciphertext), Err(Refusal::Missing(key)));
    }
}

#[test]
fn a_namespace_that_the_configuration_does_not_have_disagrees() {
    let plain = view("");
    let (key_id, mut annotations, ciphertext) = stored(&plain);
    annotations.insert(names::NAMESPACE_HASH.into(), super::super::hash(b"kms").into_bytes());
    assert_eq!(check(&plain, &key_id, &annotations, &ciphertext), Err(Refusal::Disagrees(names::NAMESPACE_HASH)));
}

#[test]
fn a_version_below_the_minimum_is_named() {
    let view = view("");
    let (_, mut annotations, _) = stored(&view);
    let identity = Identity::new(&config(), "").expect("identity");
    let archived = Version::new(&identity, 1, 50);
    annotations.insert(names::VERSION.into(), b"1".to_vec());
    let refusal = check(&view, archived.key_id.as_str(), &annotations, b"vault:v1:AAAA");
    assert_eq!(refusal, Err(Refusal::TooOld(1)));
}

#[test]
fn versions_have_one_spelling() {
    for (number, text) in [
        (3, "vault:v03:AA"),
        (3, "vault:v+3:AA"),
        (3, "vault:v3"),
        (3, "vault:v3:"),
        (1, "vault:v12:AA"),
        (3, "vault:v3:A\"A"),
        (3, "vault:v3:A A"),
    ] {
        assert_eq!(check_prefix(number, text.as_bytes()), Err(Refusal::Prefix), "{text}");
    }
}

/// Every other value of every byte, one at a time.
fn flips(original: &[u8], by: std::ops::RangeInclusive<u8>) -> impl Iterator<Item = Vec<u8>> + '_ {
    (0..original.len()).flat_map(move |at| {
        by.clone().map(move |flip| {
            let mut bytes = original.to_vec();
            bytes[at] ^= flip;
            bytes
        })
    })
}

#[test]
fn any_flipped_byte_of_a_key_id_is_refused() {
    let view = view("kms/prod");
    let (key_id, annotations, ciphertext) = stored(&view);
    for bytes in flips(key_id.as_bytes(), 1..=255) {
        let other = String::from_utf8_lossy(&bytes);
        assert!(check(&view, &other, &annotations, &ciphertext).is_err(), "{other:?}");
    }
}

#[test]
fn any_flipped_byte_of_an_annotation_is_refused() {
    let view = view("kms/prod");
    let (key_id, annotations, ciphertext) = stored(&view);
    let known = &view.by_number(3).expect("v3").known;
    assert_eq!(known.len(), 7, "every part of the format but plugin-version");
    for (name, value) in known {
        let mut changed = annotations.clone();
        for other in flips(value.as_bytes(), 1..=255) {
            changed.insert((*name).to_owned(), other.clone());
            assert!(check(&view, &key_id, &changed, &ciphertext).is_err(), "{name}: {other:?}");
        }
    }
}

#[test]
fn any_flipped_byte_of_an_annotation_key_is_refused() {
    let view = view("kms/prod");
    let (key_id, annotations, ciphertext) = stored(&view);
    for (name, value) in &view.by_number(3).expect("v3").known {
        let mut changed = annotations.clone();
        changed.remove(*name);
        // A flip of the highest bit makes no text, and gRPC carries nothing else as a key.
        for other in flips(name.as_bytes(), 1..=127) {
            let other = String::from_utf8(other).expect("text");
            changed.insert(other.clone(), value.clone().into_bytes());
            assert!(check(&view, &key_id, &changed, &ciphertext).is_err(), "{other:?}");
            changed.remove(&other);
        }
    }
}

#[test]
fn any_flipped_byte_of_the_prefix_is_refused() {
    let view = view("");
    let (key_id, annotations, ciphertext) = stored(&view);
    for prefix in flips(b"vault:v3:", 1..=255) {
        let other = [&prefix, &ciphertext[prefix.len()..]].concat();
        assert_eq!(check(&view, &key_id, &annotations, &other), Err(Refusal::Prefix), "{prefix:?}");
    }
}

#[test]
fn a_plugin_version_may_be_any_that_could_have_been_written() {
    let view = view("");
    let (key_id, mut annotations, ciphertext) = stored(&view);
    let longest = vec![b'7'; 128];
    for good in [b"0.0.1".as_slice(), b"99.0.0-rc.1+build", &longest] {
        annotations.insert(names::PLUGIN_VERSION.into(), good.to_vec());
        assert!(check(&view, &key_id, &annotations, &ciphertext).is_ok(), "{good:?}");
    }
    let too_long = vec![b'7'; 129];
    for bad in [b"1 0".as_slice(), b"1.0\n", b"1\x000", b"1\x7f", "1\u{b2}".as_bytes(), b"\xff", &too_long] {
        annotations.insert(names::PLUGIN_VERSION.into(), bad.to_vec());
        let refusal = check(&view, &key_id, &annotations, &ciphertext);
        assert_eq!(refusal, Err(Refusal::Disagrees(names::PLUGIN_VERSION)), "{bad:?}");
    }
}

proptest! {
    #[test]
    fn arbitrary_input_never_panics(key_id in ".{0,64}", key in ".{0,64}", value in prop::collection::vec(any::<u8>(), 0..64), text in prop::collection::vec(any::<u8>(), 0..64)) {
        let view = view("");
        let _ = check(&view, &key_id, &BTreeMap::from([(key, value)]), &text);
    }
}
