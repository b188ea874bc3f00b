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
    for (number, text) in
        [(3, "vault:v03:AA"), (3, "vault:v+3:AA"), (3, "vault:v3"), (3, "vault:v3:"), (1, "vault:v12:AA")]
    {
        assert_eq!(check_prefix(number, text.as_bytes()), Err(Refusal::Prefix), "{text}");
    }
}

proptest! {
    #[test]
    fn any_flipped_byte_of_key_id_or_annotations_is_refused(part in 0usize..9, at in 0usize..64, flip in 1u8..=255) {
        let view = view("kms/prod");
        let (key_id, annotations, ciphertext) = stored(&view);
        let known: Vec<_> = view.by_number(3).expect("v3").known.keys().copied().collect();
        let (mut key_id, mut annotations) = (key_id.into_bytes(), annotations);
        let bytes = match known.get(part) {
            None => &mut key_id,
            Some(name) => annotations.get_mut(*name).expect("known"),
        };
        let at = at % bytes.len();
        bytes[at] ^= flip;
        let key_id = String::from_utf8_lossy(&key_id).into_owned();
        prop_assert!(check(&view, &key_id, &annotations, &ciphertext).is_err());
    }

    #[test]
    fn any_flipped_byte_of_an_annotation_key_is_refused(which in 0usize..8, at in 0usize..64, flip in 1u8..128) {
        let view = view("kms/prod");
        let (key_id, mut annotations, ciphertext) = stored(&view);
        let known: Vec<_> = view.by_number(3).expect("v3").known.keys().copied().collect();
        let name = known[which % known.len()];
        let value = annotations.remove(name).expect("known");
        let mut key = name.as_bytes().to_vec();
        let at = at % key.len();
        key[at] ^= flip;
        annotations.insert(String::from_utf8_lossy(&key).into_owned(), value);
        prop_assert!(check(&view, &key_id, &annotations, &ciphertext).is_err());
    }

    #[test]
    fn any_flipped_byte_of_the_prefix_is_refused(at in 0usize..9, flip in 1u8..=255) {
        let view = view("");
        let (key_id, annotations, mut ciphertext) = stored(&view);
        ciphertext[at] ^= flip;
        prop_assert!(check(&view, &key_id, &annotations, &ciphertext).is_err());
    }

    #[test]
    fn arbitrary_input_never_panics(key_id in ".{0,64}", key in ".{0,64}", value in prop::collection::vec(any::<u8>(), 0..64), text in prop::collection::vec(any::<u8>(), 0..64)) {
        let view = view("");
        let _ = check(&view, &key_id, &BTreeMap::from([(key, value)]), &text);
    }
}
