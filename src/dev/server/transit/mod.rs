//! The Transit engine: paths and verbs here, keys in [`key`], the paths that manage them in [`manage`], encryption and
//! decryption in [`crypt`].

mod batch;
mod crypt;
mod go_base64;
mod key;
mod manage;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Map, Value};

use super::fields::{Fields, Kind, Schema};
use super::reply::{Reply, Success};
use super::route::{Place, unsupported_operation, unsupported_path};
use key::Key;

/// Changes that a standby may be behind by.
const MAX_PAST: usize = 16;

/// A mounted engine.
#[derive(Default)]
pub struct Transit {
    keys: BTreeMap<String, Key>,
    disable_upsert: bool,
    /// The keys as they were until then, oldest first: what a standby that lags still answers from.
    past: VecDeque<(Instant, BTreeMap<String, Key>)>,
}

impl Transit {
    /// Whether a key of this name exists.
    pub fn has(&self, name: &str) -> bool {
        self.keys.contains_key(name)
    }

    /// The keys as they were that long ago.
    fn seen(&self, behind: Duration) -> &BTreeMap<String, Key> {
        let then = Instant::now().checked_sub(behind);
        let found = then.and_then(|then| self.past.iter().find(|(until, _)| *until > then));
        found.map_or(&self.keys, |(_, keys)| keys)
    }

    /// Keeps the keys as they are, because they are about to change.
    fn remember(&mut self) {
        if self.past.len() == MAX_PAST {
            self.past.pop_front();
        }
        self.past.push_back((Instant::now(), self.keys.clone()));
    }
}

/// Answers `<mount>/<rest>`.
pub fn answer(transit: &mut Transit, place: &Place<'_>, rest: &str, now: SystemTime) -> Reply {
    let parts: Vec<&str> = rest.split('/').collect();
    if parts.first() == Some(&"keys") && matches!(place.operation, "update" | "delete") {
        transit.remember();
    }
    let result = match (parts.as_slice(), place.operation) {
        (["keys"] | ["keys", ""], "list") => Ok(list(transit)),
        (["config", "keys"], "read" | "update") => config(transit, place),
        (["keys"] | ["config", "keys"], _) => Ok(unsupported_operation()),
        (["keys", name], operation) if is_name(name) => manage::key(transit, place, name, operation, now),
        (["keys", name, verb], operation) if is_name(name) => manage::verb(transit, place, name, verb, operation, now),
        (["encrypt", name], "update") if is_name(name) => crypt::encrypt(transit, place, name, now),
        (["decrypt", name], "update") if is_name(name) => crypt::decrypt(transit, place, name),
        (["encrypt" | "decrypt", name], _) if is_name(name) => Ok(unsupported_operation()),
        _ => Ok(unsupported_path()),
    };
    result.unwrap_or_else(|refusal| refusal)
}

fn list(transit: &Transit) -> Reply {
    if transit.keys.is_empty() {
        return Reply::blank(404);
    }
    let names: Vec<Value> = transit.keys.keys().cloned().map(Value::from).collect();
    Reply::data(Map::from_iter([("keys".into(), names.into())]))
}

fn config(transit: &mut Transit, place: &Place<'_>) -> Result<Reply, Reply> {
    let schema: Schema = &[("disable_upsert", Kind::Bool)];
    let fields = Fields::check(&place.body, schema, &[], false)?;
    if place.operation == "update" {
        transit.disable_upsert = fields.bool("disable_upsert").unwrap_or(false);
    }
    let data = Map::from_iter([("disable_upsert".into(), transit.disable_upsert.into())]);
    Ok(Success { data: Some(data), warnings: fields.warnings, ..Success::default() }.reply())
}

/// First and last character a word character, between them also `-` and `.`.
fn is_name(name: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    name.starts_with(word) && name.ends_with(word) && name.chars().all(|c| word(c) || c == '-' || c == '.')
}

#[cfg(test)]
mod tests {
    use super::is_name;

    #[test]
    fn names_have_their_syntax() {
        assert!(is_name("k") && is_name("a-b.c_d") && is_name("_"));
        assert!(!is_name("") && !is_name("a-") && !is_name(".a") && !is_name("a b") && !is_name("ä"));
    }
}
