//! What a process has seen of its key, small enough to tell another one: with it the next process neither moves the
//! key_id backwards nor takes a key that was rolled back or recreated for the one it knows.

use std::fmt;

use super::{Loss, Metadata, View};

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
        self.lost(|number| metadata.keys.get(&number).copied(), metadata.latest_version)
    }

    /// What a view lacks that was seen.
    pub fn lost_in_view(&self, view: &View) -> Option<Loss> {
        self.lost(|number| view.by_number(number).map(|version| version.created), view.latest())
    }

    fn lost(&self, created: impl Fn(u32) -> Option<u64>, latest: u32) -> Option<Loss> {
        // A time that was not known says nothing.
        let recreated = |(number, at): (u32, u64)| at != 0 && created(number).is_some_and(|now| now != at);
        if recreated(self.active) || recreated(self.latest) {
            return Some(Loss::Recreated);
        }
        (latest < self.latest.0).then_some(Loss::Behind)
    }

    /// The one of two that has seen more.
    #[must_use]
    pub fn newer(self, other: Self) -> Self {
        let rank = |seen: &Self| (seen.latest.0, seen.active.0);
        if rank(&other) > rank(&self) { other } else { self }
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
            // Both at once: what is worse.
            (metadata(&[(9, 901)], 9), Some(Loss::Recreated)),
        ];
        for (metadata, lost) in cases {
            assert_eq!(SEEN.lost_in(&metadata), lost, "{metadata:?}");
        }
    }
    #[test]
    fn a_time_that_was_not_known_makes_no_other_key_of_it() {
        let seen = Seen { latest: (10, 0), ..SEEN };
        assert_eq!(seen.lost_in(&metadata(&[(9, 900), (10, 1_000)], 10)), None);
    }

    #[test]
    fn who_has_seen_more_is_believed() {
        let more = Seen { latest: (11, 1_100), ..SEEN };
        assert_eq!((SEEN.newer(more), more.newer(SEEN)), (more, more));
        let later = Seen { active: SEEN.latest, ..SEEN };
        assert_eq!((SEEN.newer(later), later.newer(SEEN)), (later, later));
    }
}
