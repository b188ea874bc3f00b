//! The wire vectors, and the rules by which a version becomes active.

use serde::Deserialize;

use super::super::identity::{self, Identity};
use super::*;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Vector {
    identity: VectorIdentity,
    key_version: u32,
    version_created_at_unix: u64,
    key_id: String,
    annotations: BTreeMap<String, String>,
    aad_utf8: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct VectorIdentity {
    provider_name: String,
    cluster_id: String,
    instance_id: String,
    namespace: String,
    mount_id: String,
    key_lineage_id: String,
}

fn identity() -> Identity {
    Identity::new(&identity::tests::config(), "").expect("identity")
}

fn metadata(keys: &[(u32, u64)], min_decryption: u32, min_encryption: u32) -> Metadata {
    serde_json::from_value(serde_json::json!({
        "type": "aes256-gcm96", "supports_encryption": true, "supports_decryption": true,
        "latest_version": keys.iter().map(|(n, _)| *n).max().unwrap_or(0),
        "min_decryption_version": min_decryption, "min_encryption_version": min_encryption,
        "keys": keys.iter().map(|(n, t)| (n.to_string(), *t)).collect::<BTreeMap<_, _>>(),
    }))
    .expect("metadata")
}

#[test]
fn the_format_is_frozen() {
    use base64::Engine;
    let vectors: Vec<Vector> =
        serde_json::from_str(include_str!("../../tests/data/wire-vectors.json")).expect("vectors");
    assert_eq!(vectors.len(), 3);
    for vector in vectors {
        let config = identity::Config {
            provider_name: vector.identity.provider_name,
            cluster_id: vector.identity.cluster_id,
            openbao_id: vector.identity.instance_id,
            transit_mount_id: vector.identity.mount_id,
            key_lineage_id: vector.identity.key_lineage_id,
            fingerprint: String::new(),
        };
        let identity = Identity::new(&config, &vector.identity.namespace).expect("identity");
        let version = Version::new(&identity, vector.key_version, vector.version_created_at_unix);
        assert_eq!(version.key_id.as_str(), vector.key_id);
        assert!(KeyId::is_well_formed(version.key_id.as_str()));
        let mut written = (*version.annotations).clone();
        assert!(written.remove(annotations::PLUGIN_VERSION).is_some());
        let expected: BTreeMap<String, Vec<u8>> =
            vector.annotations.into_iter().map(|(key, value)| (key, value.into_bytes())).collect();
        assert_eq!(written, expected);
        let aad = base64::engine::general_purpose::STANDARD.decode(&*version.associated_data).expect("base64");
        assert_eq!(String::from_utf8(aad).expect("text"), vector.aad_utf8);
    }
}

#[test]
fn a_fresh_key_works_at_once() {
    let view = View::at(&identity(), &metadata(&[(1, 1_000)], 1, 0), 1_000, 120, None).expect("view");
    assert_eq!(view.active().number, 1);
    assert_eq!(view.next_change(120), None);
}

#[test]
fn a_rotation_becomes_active_when_its_delay_has_passed() {
    let meta = metadata(&[(1, 1_000), (2, 5_000)], 1, 0);
    let before = View::at(&identity(), &meta, 5_119, 120, None).expect("view");
    assert_eq!(before.active().number, 1);
    assert_eq!(before.next_change(120), Some(5_120));
    let after = View::at(&identity(), &meta, 5_120, 120, Some(&before)).expect("view");
    assert_eq!(after.active().number, 2);
    assert!(
        Arc::ptr_eq(after.by_number(1).expect("v1"), before.by_number(1).expect("v1")),
        "unchanged versions are lent"
    );
}

#[test]
fn the_active_version_never_goes_back() {
    let ahead = metadata(&[(1, 1_000), (2, 2_000)], 1, 0);
    let view = View::at(&identity(), &ahead, 9_000, 120, None).expect("view");
    let clock_back = View::at(&identity(), &ahead, 1_500, 120, Some(&view)).expect("view");
    assert_eq!(clock_back.active().number, 2);
}

#[test]
fn raised_minimum_moves_to_the_lowest_allowed_version_at_once() {
    let view =
        View::at(&identity(), &metadata(&[(1, 1_000), (2, 8_990), (3, 8_995)], 1, 0), 9_000, 120, None).expect("view");
    assert_eq!(view.active().number, 1);
    let raised =
        View::at(&identity(), &metadata(&[(2, 8_990), (3, 8_995)], 2, 2), 9_000, 120, Some(&view)).expect("view");
    assert_eq!(raised.active().number, 2);
    assert!(View::at(&identity(), &metadata(&[(1, 1)], 1, 2), 9_000, 120, None).is_err());
}

/// As texts 10 would stand before 9.
#[test]
fn versions_are_compared_as_numbers() {
    let at = |meta: &Metadata, now, before: Option<&View>| View::at(&identity(), meta, now, 120, before).expect("view");
    let both = metadata(&[(9, 1_000), (10, 5_000)], 9, 0);
    let nine = at(&both, 5_119, None);
    assert_eq!((nine.active().number, nine.latest(), nine.next_change(120)), (9, 10, Some(5_120)));
    for before in [Some(&nine), None] {
        let ten = at(&both, 5_120, before);
        assert_eq!((ten.active().number, ten.next_change(120)), (10, None));
    }
    let unripe = at(&metadata(&[(9, 8_990), (10, 8_995)], 9, 0), 9_000, None);
    assert_eq!(unripe.active().number, 9, "the lowest works at once");

    let raised = at(&metadata(&[(9, 1_000), (10, 5_000)], 10, 0), 9_000, Some(&nine));
    assert_eq!(raised.versions().map(|version| version.number).collect::<Vec<_>>(), [10]);
    assert!(raised.by_key_id(nine.active().key_id.as_str()).is_none());
    assert!(!raised.may_encrypt(9) && raised.may_encrypt(10));

    let only_nine = metadata(&[(9, 1_000)], 9, 0);
    assert_eq!(at(&both, 9_000, None).lost_in(&only_nine), Some(Loss::Behind));
    assert_eq!(at(&only_nine, 9_000, None).lost_in(&both), None, "a rotation is no loss");
    assert_eq!(nine.lost_in(&metadata(&[(9, 1_001), (10, 5_000)], 9, 0)), Some(Loss::Recreated));
}

#[test]
fn every_input_matters_to_the_key_id() {
    let base = identity();
    let id = |identity: &Identity, version, created| KeyId::of(identity, version, created);
    let original = id(&base, 1, 1_000);
    let mut seen = vec![original.clone(), id(&base, 2, 1_000), id(&base, 1, 1_001)];
    for change in 0..6 {
        let mut other = base.clone();
        match change {
            0 => other.provider_name.push('x'),
            1 => other.cluster_id.push('x'),
            2 => other.openbao_id.push('x'),
            3 => other.namespace = Some("ns".into()),
            4 => other.transit_mount_id.push('x'),
            _ => other.key_lineage_id.push('x'),
        }
        seen.push(id(&other, 1, 1_000));
    }
    let total = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), total);
    assert_eq!(original, id(&base, 1, 1_000));
    // Moving a character across a border between two parts gives another id.
    let (mut left, mut right) = (base.clone(), base);
    left.provider_name = "ab".into();
    left.cluster_id = "c".into();
    right.provider_name = "a".into();
    right.cluster_id = "bc".into();
    assert_ne!(id(&left, 1, 1), id(&right, 1, 1));
}

#[test]
fn what_another_process_came_to_is_not_undone() {
    // Nine seconds of the delay are left: by its own reckoning this process would still encrypt with the first version.
    let view = || View::at(&identity(), &metadata(&[(1, 1_000), (2, 9_000)], 1, 0), 9_111, 120, None).expect("view");
    assert_eq!(view().active().number, 1);
    assert_eq!(view().no_lower_than(2).active().number, 2);
    assert_eq!(view().no_lower_than(2).seen(), Seen { active: (2, 9_000), latest: (2, 9_000) });
    assert_eq!(view().no_lower_than(3).active().number, 1, "a version that is not there is none to hold");
}
