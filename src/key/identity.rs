//! The identity of a key: the configured words that go into every key_id. The same on every node; changing one of them
//! makes every stored object unreadable, which is why a fingerprint over them can be pinned.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::hash;

/// The pattern of every configured name: no character that associated data would have to escape, no NUL, no separator.
pub const NAME_PATTERN: &str = "^[A-Za-z0-9._-]{1,128}$";

/// `identity`: the same on every node; goes into every key_id; keep it with the etcd backups.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(rename = "Identity")]
pub struct Config {
    /// The name of the kms: entry in the EncryptionConfiguration.
    #[schemars(regex(pattern = NAME_PATTERN))]
    pub provider_name: String,
    /// Names the Kubernetes cluster.
    #[schemars(regex(pattern = NAME_PATTERN))]
    pub cluster_id: String,
    /// Names the OpenBao deployment, not a node.
    #[schemars(regex(pattern = NAME_PATTERN))]
    pub openbao_id: String,
    /// Names the Transit mount; opaque, not its path.
    #[schemars(regex(pattern = NAME_PATTERN))]
    pub transit_mount_id: String,
    /// Names this key's line of versions; a recreated key gets a new one.
    #[schemars(regex(pattern = NAME_PATTERN))]
    pub key_lineage_id: String,
    /// The fingerprint that `config show` prints; a pipeline whose fingerprint differs refuses to serve. Empty: not pinned.
    #[serde(default)]
    #[schemars(regex(pattern = "^(obf1\\.[A-Za-z0-9_-]{24}\\.[A-Za-z0-9_-]{43})?$"))]
    pub fingerprint: String,
}

/// The identity with the namespace, ready to make ids of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// See [`Config::provider_name`].
    pub provider_name: String,
    /// See [`Config::cluster_id`].
    pub cluster_id: String,
    /// See [`Config::openbao_id`].
    pub openbao_id: String,
    /// The OpenBao namespace, unchanged as configured; `None` when none is.
    pub namespace: Option<String>,
    /// See [`Config::transit_mount_id`].
    pub transit_mount_id: String,
    /// See [`Config::key_lineage_id`].
    pub key_lineage_id: String,
}

/// Everything that a fingerprint covers: the identity and the settings that decide which key and which moment is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins<'a> {
    /// The identity with its namespace.
    pub identity: &'a Identity,
    /// The path of the Transit mount.
    pub mount: &'a str,
    /// The name of the Transit key.
    pub key: &'a str,
    /// `rotation.activationDelay` in milliseconds.
    pub activation_delay_ms: u64,
}

/// Why a namespace cannot be used: several spellings would reach one namespace but give different ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "write the namespace in its one canonical spelling: no leading or trailing '/', no empty, '.' or '..' segment, no '%', no control character, and leave it out for the root namespace"
)]
pub struct NamespaceError;

const FINGERPRINT_PREFIX: &str = "obf1.";
const MARK_BYTES: usize = 2;

/// What a fingerprint covers, as key paths below the pipeline, in the order of its marks.
const COVERED: [&str; 9] = [
    "identity.providerName",
    "identity.clusterId",
    "identity.openbaoId",
    "backend.transit.namespace",
    "identity.transitMountId",
    "identity.keyLineageId",
    "backend.transit.mount",
    "backend.transit.key",
    DELAY,
];
/// The part of it that does not say which key it is.
const DELAY: &str = "rotation.activationDelay";

// === impl Identity ===

impl Identity {
    /// Joins the configured identity with the backend's namespace (empty: none).
    pub fn new(config: &Config, namespace: &str) -> Result<Self, NamespaceError> {
        check_namespace(namespace)?;
        Ok(Self::of(config, namespace))
    }

    /// The same for a namespace that the loader has already checked.
    pub fn of(config: &Config, namespace: &str) -> Self {
        Self {
            provider_name: config.provider_name.clone(),
            cluster_id: config.cluster_id.clone(),
            openbao_id: config.openbao_id.clone(),
            namespace: (!namespace.is_empty()).then(|| namespace.to_owned()),
            transit_mount_id: config.transit_mount_id.clone(),
            key_lineage_id: config.key_lineage_id.clone(),
        }
    }
}

/// Whether a namespace has its one canonical spelling; the empty text means that none is configured.
pub fn check_namespace(namespace: &str) -> Result<(), NamespaceError> {
    if namespace.is_empty() {
        return Ok(());
    }
    let segments_fit = namespace.split('/').all(|segment| !matches!(segment, "" | "." | ".."));
    let characters_fit = !namespace.chars().any(|c| c.is_control() || c == '%');
    if segments_fit && characters_fit && namespace != "root" { Ok(()) } else { Err(NamespaceError) }
}

/// Whether a name fits [`NAME_PATTERN`].
pub fn is_name(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

// === impl Pins ===

impl Pins<'_> {
    fn values(&self) -> [String; COVERED.len()] {
        let identity = self.identity;
        [
            identity.provider_name.clone(),
            identity.cluster_id.clone(),
            identity.openbao_id.clone(),
            identity.namespace.clone().unwrap_or_default(),
            identity.transit_mount_id.clone(),
            identity.key_lineage_id.clone(),
            self.mount.to_owned(),
            self.key.to_owned(),
            self.activation_delay_ms.to_string(),
        ]
    }

    /// `obf1.` + two bytes of each value's hash (they tell which value changed) + `.` + hash over all of them.
    pub fn fingerprint(&self) -> String {
        use base64::Engine;
        use base64::engine::general_purpose::URL_SAFE_NO_PAD;
        let values = self.values();
        let mut whole = Vec::new();
        let mut marks = Vec::with_capacity(values.len() * MARK_BYTES);
        for (name, value) in COVERED.iter().zip(&values) {
            whole.extend_from_slice(name.as_bytes());
            whole.push(0);
            whole.extend_from_slice(value.as_bytes());
            whole.push(0);
            let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, value.as_bytes());
            marks.extend_from_slice(&digest.as_ref()[..MARK_BYTES]);
        }
        format!("{FINGERPRINT_PREFIX}{}.{}", URL_SAFE_NO_PAD.encode(marks), hash(&whole))
    }

    /// `None` when the pinned fingerprint is ours; otherwise the key paths whose values changed, as far as the marks tell
    /// (none, when the pin is not a fingerprint at all).
    pub fn differs_from(&self, pinned: &str) -> Option<Vec<&'static str>> {
        changed(&self.fingerprint(), pinned)
    }
}

/// Whether two fingerprints are of the same key: at which moment a version becomes active may differ.
pub fn same_key(one: &str, other: &str) -> bool {
    changed(one, other).is_none_or(|changed| changed == [DELAY])
}

/// What differs between two fingerprints; see [`Pins::differs_from`].
fn changed(one: &str, other: &str) -> Option<Vec<&'static str>> {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    if one == other {
        return None;
    }
    let marks = |text: &str| {
        let middle = text.strip_prefix(FINGERPRINT_PREFIX)?.split('.').next()?;
        URL_SAFE_NO_PAD.decode(middle).ok()
    };
    let (Some(one), Some(other)) = (marks(one), marks(other)) else {
        return Some(Vec::new());
    };
    let pairs = one.chunks(MARK_BYTES).zip(other.chunks(MARK_BYTES));
    Some(COVERED.iter().zip(pairs).filter(|(_, (one, other))| one != other).map(|(name, _)| *name).collect())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn config() -> Config {
        Config {
            provider_name: "openbao-kms-workload-a".into(),
            cluster_id: "workload-a".into(),
            openbao_id: "bao-prod-a".into(),
            transit_mount_id: "transit-prod-primary".into(),
            key_lineage_id: "01HXEXAMPLEKEYLINEAGEID".into(),
            fingerprint: String::new(),
        }
    }

    #[test]
    fn namespaces_have_one_spelling() {
        for good in ["", "kms", "admin/workload-a", "root/x", "a.b"] {
            assert_eq!(check_namespace(good), Ok(()), "{good}");
        }
        for bad in ["/a", "a/", "a//b", ".", "a/../b", "a%2fb", "a\nb", "root", "a\0"] {
            assert_eq!(check_namespace(bad), Err(NamespaceError), "{bad:?}");
        }
    }

    #[test]
    fn a_fingerprint_names_what_changed() {
        let identity = Identity::new(&config(), "kms/prod").expect("namespace");
        let pins = Pins { identity: &identity, mount: "transit", key: "k8s", activation_delay_ms: 120_000 };
        let pinned = pins.fingerprint();
        assert_eq!(pins.differs_from(&pinned), None);

        let mut other = identity.clone();
        other.cluster_id = "workload-b".into();
        let moved = Pins { identity: &other, activation_delay_ms: 60_000, ..pins.clone() };
        assert_eq!(moved.differs_from(&pinned), Some(vec!["identity.clusterId", "rotation.activationDelay"]));
        assert_eq!(pins.differs_from("nonsense"), Some(vec![]));
    }

    /// The algorithm is frozen: pins stand in files that outlive this program. Computed by hand from its description.
    const GOLDEN: &str = "obf1.lzlonw9ZnYCteEsFBosXwU-f.WcHh3aS7B4oAsEcgxbY576KjqFHhIkdHStE4L4AAMMM";

    #[test]
    fn the_fingerprint_is_what_it_always_was() {
        let identity = Identity::new(&config(), "kms/prod").expect("namespace");
        let pins = Pins { identity: &identity, mount: "transit", key: "k8s", activation_delay_ms: 120_000 };
        assert_eq!(pins.fingerprint(), GOLDEN);
    }

    #[test]
    fn each_of_nine_values_changes_the_fingerprint_and_is_named() {
        let identity = Identity::new(&config(), "kms/prod").expect("namespace");
        let pins = Pins { identity: &identity, mount: "transit", key: "k8s", activation_delay_ms: 120_000 };
        let altered = |alter: fn(&mut Identity)| {
            let mut other = identity.clone();
            alter(&mut other);
            other
        };
        let identities = [
            ("identity.providerName", altered(|other| other.provider_name.push('x'))),
            ("identity.clusterId", altered(|other| other.cluster_id.push('x'))),
            ("identity.openbaoId", altered(|other| other.openbao_id.push('x'))),
            ("backend.transit.namespace", altered(|other| other.namespace = None)),
            ("identity.transitMountId", altered(|other| other.transit_mount_id.push('x'))),
            ("identity.keyLineageId", altered(|other| other.key_lineage_id.push('x'))),
        ];
        for (name, identity) in &identities {
            let other = Pins { identity, ..pins.clone() };
            assert_ne!(other.fingerprint(), GOLDEN, "{name}");
            assert_eq!(other.differs_from(GOLDEN), Some(vec![*name]));
        }
        for (name, other) in [
            ("backend.transit.mount", Pins { mount: "other", ..pins.clone() }),
            ("backend.transit.key", Pins { key: "other", ..pins.clone() }),
            ("rotation.activationDelay", Pins { activation_delay_ms: 120_001, ..pins.clone() }),
        ] {
            assert_ne!(other.fingerprint(), GOLDEN, "{name}");
            assert_eq!(other.differs_from(GOLDEN), Some(vec![name]));
        }
    }
}
