//! One immutable view of the key: every version that still decrypts, and the one that encrypts. A pure function of
//! Transit's metadata, the identity, the activation delay and OpenBao's clock, so that every node comes to the same one.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::{Identity, KeyId, Metadata, Seen, aad, annotations};

/// One version with everything that is computed from it once.
#[derive(Debug, PartialEq, Eq)]
pub struct Version {
    /// The Transit version.
    pub number: u32,
    /// When OpenBao created it, Unix seconds.
    pub created: u64,
    /// Its key_id.
    pub key_id: KeyId,
    /// The annotations to write beside a ciphertext.
    pub annotations: Arc<BTreeMap<String, Vec<u8>>>,
    /// The associated data, base64 as Transit wants it.
    pub associated_data: Arc<str>,
    /// The hashes and words that a stored object must agree with.
    pub(super) known: BTreeMap<&'static str, String>,
}

/// The key as one moment of OpenBao's clock shows it.
#[derive(Debug, PartialEq, Eq)]
pub struct View {
    versions: BTreeMap<u32, Arc<Version>>,
    by_key_id: HashMap<KeyId, u32>,
    active: u32,
    min_decryption: u32,
    min_encryption: u32,
    latest: u32,
}

/// Why metadata makes no view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ViewError {
    /// No version is at or above both minima.
    #[error("no version of the key may both encrypt and decrypt")]
    NoCandidate,
}

// === impl Version ===

impl Version {
    /// Computes everything that depends on this version alone.
    pub fn new(identity: &Identity, number: u32, created: u64) -> Self {
        use base64::Engine;
        let key_id = KeyId::of(identity, number, created);
        let known = annotations::known(identity, &key_id, number);
        let mut written: BTreeMap<String, Vec<u8>> =
            known.iter().map(|(key, value)| ((*key).to_owned(), value.clone().into_bytes())).collect();
        written.insert(annotations::PLUGIN_VERSION.to_owned(), env!("CARGO_PKG_VERSION").as_bytes().to_vec());
        let text = aad::text(identity, &key_id, number);
        let associated_data = base64::engine::general_purpose::STANDARD.encode(text);
        Self { number, created, key_id, annotations: Arc::new(written), associated_data: associated_data.into(), known }
    }
}

/// How metadata is older than a view; the worse, the greater.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Loss {
    /// The highest versions are missing, as on a standby that lags, or after a restore.
    Behind,
    /// A version was made at another time than the one that was seen under its number: it is another key.
    Recreated,
}

// === impl View ===

impl View {
    /// The view at `bao_now` (OpenBao's clock, Unix seconds). `delay` is `rotation.activationDelay` in seconds; `previous`
    /// keeps the active version from moving backwards and lends versions that did not change.
    pub fn at(
        identity: &Identity,
        metadata: &Metadata,
        bao_now: u64,
        delay: u64,
        previous: Option<&View>,
    ) -> Result<Self, ViewError> {
        let versions: BTreeMap<u32, Arc<Version>> = metadata
            .keys
            .iter()
            .filter(|(number, _)| **number >= metadata.min_decryption_version)
            .map(|(&number, &created)| {
                let kept = previous.and_then(|view| view.versions.get(&number)).filter(|v| v.created == created);
                (number, kept.cloned().unwrap_or_else(|| Arc::new(Version::new(identity, number, created))))
            })
            .collect();
        let candidates = || versions.range(metadata.min_encryption_version..);
        let ripe = candidates().rev().find(|(_, version)| version.created.saturating_add(delay) <= bao_now);
        let computed = ripe.or_else(|| candidates().next()).map(|(number, _)| *number).ok_or(ViewError::NoCandidate)?;
        let held = previous.map(|view| view.active).filter(|held| candidates().any(|(number, _)| number == held));
        let by_key_id = versions.values().map(|version| (version.key_id.clone(), version.number)).collect();
        Ok(Self {
            active: held.map_or(computed, |held| held.max(computed)),
            by_key_id,
            versions,
            min_decryption: metadata.min_decryption_version,
            min_encryption: metadata.min_encryption_version,
            latest: metadata.latest_version,
        })
    }

    /// The same view, with this version active when it is a newer one that may encrypt: what another process came to.
    #[must_use]
    pub fn no_lower_than(mut self, number: u32) -> Self {
        if self.may_encrypt(number) {
            self.active = self.active.max(number);
        }
        self
    }

    /// What metadata has lost that this view has seen.
    pub fn lost_in(&self, metadata: &Metadata) -> Option<Loss> {
        let recreated = |version: &&Arc<Version>| {
            metadata.keys.get(&version.number).is_some_and(|&created| created != version.created)
        };
        if self.versions.values().any(|version| recreated(&version)) {
            return Some(Loss::Recreated);
        }
        (metadata.latest_version < self.latest).then_some(Loss::Behind)
    }

    /// What another process should know of this view.
    pub fn seen(&self) -> Seen {
        let of = |number: u32| (number, self.versions.get(&number).map_or(0, |version| version.created));
        Seen { active: of(self.active), latest: of(self.latest) }
    }

    /// The version that encrypts.
    pub fn active(&self) -> &Arc<Version> {
        // `at` only builds views whose active version is one of `versions`.
        &self.versions[&self.active]
    }

    /// The version of this key_id, if it still decrypts.
    pub fn by_key_id(&self, key_id: &str) -> Option<&Arc<Version>> {
        self.by_key_id.get(key_id).and_then(|number| self.versions.get(number))
    }

    /// The version of this number, if it still decrypts.
    pub fn by_number(&self, number: u32) -> Option<&Arc<Version>> {
        self.versions.get(&number)
    }

    /// Whether OpenBao still permits encrypting with this version.
    pub fn may_encrypt(&self, number: u32) -> bool {
        number >= self.min_encryption && self.versions.contains_key(&number)
    }

    /// The lowest version that decrypts.
    pub fn min_decryption(&self) -> u32 {
        self.min_decryption
    }

    /// The highest version that OpenBao has, active or not.
    pub fn latest(&self) -> u32 {
        self.latest
    }

    /// All versions that decrypt, lowest first.
    pub fn versions(&self) -> impl Iterator<Item = &Arc<Version>> {
        self.versions.values()
    }

    /// Unix second of OpenBao's clock at which the next version becomes active; `None` when the newest is.
    pub fn next_change(&self, delay: u64) -> Option<u64> {
        self.versions
            .range(self.active + 1..)
            .filter(|(number, _)| **number >= self.min_encryption)
            .map(|(_, version)| version.created.saturating_add(delay))
            .min()
    }
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
