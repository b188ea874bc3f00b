//! What a process has seen of its key, small enough to tell another one: with it the next process neither moves the
//! key_id backwards nor takes a key that was rolled back or recreated for the one it knows.

use std::fmt;

use super::{Loss, Metadata};

/// Two versions, each with its creation time in Unix seconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    /// The version that encrypted.
    pub active: (u32, u64),
    /// The highest one that there was.
    pub latest: (u32, u64),
}

// === impl Seen ===

impl Seen {
    /// What metadata has lost that was seen.
    pub fn lost_in(&self, metadata: &Metadata) -> Option<Loss> {
        let recreated = |(number, created): (u32, u64)| metadata.keys.get(&number).is_some_and(|&at| at != created);
        if recreated(self.active) || recreated(self.latest) {
            return Some(Loss::Recreated);
        }
        (metadata.latest_version < self.latest.0).then_some(Loss::Behind)
    }

    /// Reads what [`fmt::Display`] writes; nothing when it is anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split(' ');
        let mut version = || Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?));
        let seen = Self { active: version()?, latest: version()? };
        numbers.next().is_none().then_some(seen)
    }
}

/// Four numbers: active version, its creation time, latest version, its creation time.
impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {}", self.active.0, self.active.1, self.latest.0, self.latest.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEEN: Seen = Seen { active: (9, 900), latest: (10, 1_000) };

    fn metadata(keys: &[(u32, u64)], latest: u32) -> Metadata {
        let keys: serde_json::Map<_, _> = keys.iter().map(|(n, at)| (n.to_string(), (*at).into())).collect();
        serde_json::from_value(serde_json::json!({ "type": "aes256-gcm96", "latest_version": latest, "keys": keys }))
            .expect("metadata")
    }

    #[test]
    fn what_was_told_is_read_again() {
        assert_eq!(Seen::parse(&SEEN.to_string()), Some(SEEN));
        for text in ["", "9 900 10", "9 900 10 1000 5", "9 900 x 1000", "-9 900 10 1000"] {
            assert_eq!(Seen::parse(text), None, "{text}");
        }
    }

    #[test]
    fn older_metadata_and_another_key_are_noticed() {
        let cases = [
            (metadata(&[(9, 900), (10, 1_000)], 10), None),
            (metadata(&[(9, 900), (10, 1_000), (11, 1_100)], 11), None),
            (metadata(&[(10, 1_000)], 10), None),
            (metadata(&[(9, 900)], 9), Some(Loss::Behind)),
            (metadata(&[(9, 901), (10, 1_000)], 10), Some(Loss::Recreated)),
            (metadata(&[(9, 900), (10, 1_001)], 10), Some(Loss::Recreated)),
        ];
        for (metadata, lost) in cases {
            assert_eq!(SEEN.lost_in(&metadata), lost, "{metadata:?}");
        }
    }
}
