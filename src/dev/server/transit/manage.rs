//! The paths that manage keys: create, read, delete, configure, rotate, trim, soft-delete and its way back.

use std::collections::btree_map::Entry;
use std::time::SystemTime;

use super::super::fields::{Fields, Kind, Schema};
use super::super::reply::{Reply, Success};
use super::super::route::{Place, unsupported_operation, unsupported_path};
use super::Transit;
use super::key::{Key, KeyType};

const CREATE: Schema = &[
    ("type", Kind::Text),
    ("derived", Kind::Bool),
    ("convergent_encryption", Kind::Bool),
    ("exportable", Kind::Bool),
    ("allow_plaintext_backup", Kind::Bool),
    ("context", Kind::Text),
    ("auto_rotate_period", Kind::Duration),
    ("key_size", Kind::Int),
];

const CONFIG: Schema = &[
    ("min_decryption_version", Kind::Int),
    ("min_encryption_version", Kind::Int),
    ("deletion_allowed", Kind::Bool),
    ("exportable", Kind::Bool),
    ("allow_plaintext_backup", Kind::Bool),
    ("auto_rotate_period", Kind::Duration),
];

const SHORT_PERIOD: &str = "auto rotate period must be 0 to disable or at least an hour";

/// Answers `keys/<name>`.
pub fn key(
    transit: &mut Transit,
    place: &Place<'_>,
    name: &str,
    operation: &str,
    now: SystemTime,
) -> Result<Reply, Reply> {
    match operation {
        "read" => match transit.seen(place.behind).get(name) {
            Some(key) => Ok(Reply::data(key.describe(name))),
            None => Ok(Reply::blank(404)),
        },
        "update" => create(transit, place, name, now),
        "delete" => delete(transit, name),
        _ => Ok(unsupported_operation()),
    }
}

/// Answers `keys/<name>/<verb>`.
pub fn verb(
    transit: &mut Transit,
    place: &Place<'_>,
    name: &str,
    verb: &str,
    operation: &str,
    now: SystemTime,
) -> Result<Reply, Reply> {
    let key = transit.keys.get_mut(name);
    match (verb, operation) {
        ("config", "update") => match key {
            Some(key) => configure(key, place, name),
            None => Err(Reply::bad(format!("no existing key named {name} could be found"))),
        },
        ("rotate", "update") => {
            let key = key.ok_or_else(|| Reply::bad("key not found"))?;
            if key.soft_deleted {
                return Err(Reply::multi(500, "refusing to use soft-deleted key"));
            }
            key.rotate(now);
            Ok(Reply::data(key.describe(name)))
        }
        ("trim", "update") => trim(key.ok_or_else(|| Reply::bad("invalid key name"))?, place, name),
        ("soft-delete", "delete") => Ok(mark(key, name, true)),
        ("soft-delete-restore", "update") => Ok(mark(key, name, false)),
        ("config" | "rotate" | "trim" | "soft-delete" | "soft-delete-restore", _) => Ok(unsupported_operation()),
        _ => Ok(unsupported_path()),
    }
}

fn shown(key: &Key, name: &str, warnings: Vec<String>) -> Reply {
    Success { data: Some(key.describe(name)), warnings, ..Success::default() }.reply()
}

fn create(transit: &mut Transit, place: &Place<'_>, name: &str, now: SystemTime) -> Result<Reply, Reply> {
    let fields = Fields::check(&place.body, CREATE, &["name"], false)?;
    let yes = |field: &str| fields.bool(field).unwrap_or(false);
    let period = fields.seconds("auto_rotate_period");
    if (1..3600).contains(&period) {
        return Err(Reply::bad(SHORT_PERIOD));
    }
    if yes("convergent_encryption") && !yes("derived") {
        return Err(Reply::bad("convergent encryption requires derivation to be enabled"));
    }
    let kind = fields.text("type").unwrap_or("aes256-gcm96");
    let Some(kind) = KeyType::of(kind) else { return Err(Reply::bad(format!("unknown key type {kind}"))) };
    let key = match transit.keys.entry(name.to_owned()) {
        // An existing key is shown as it is; nothing of the request is applied.
        Entry::Occupied(there) => there.into_mut(),
        Entry::Vacant(free) => free.insert(Key {
            derived: yes("derived"),
            convergent: yes("convergent_encryption"),
            exportable: yes("exportable"),
            allow_plaintext_backup: yes("allow_plaintext_backup"),
            auto_rotate_period: period,
            ..Key::new(kind, now)
        }),
    };
    Ok(shown(key, name, fields.warnings))
}

fn delete(transit: &mut Transit, name: &str) -> Result<Reply, Reply> {
    let refuse = |why: &str| Err(Reply::bad(format!("error deleting policy {name}: {why}")));
    match transit.keys.get(name) {
        None => refuse("could not delete key; not found"),
        Some(key) if !key.deletion_allowed => refuse("deletion is not allowed for this key"),
        Some(_) => {
            transit.keys.remove(name);
            Ok(Reply::empty())
        }
    }
}

fn configure(key: &mut Key, place: &Place<'_>, name: &str) -> Result<Reply, Reply> {
    let fields = Fields::check(&place.body, CONFIG, &["name"], false)?;
    let mut warnings = fields.warnings.clone();
    let (mut decryption, mut encryption, latest) = (key.min_decryption, key.min_encryption, key.latest());
    if let Some(asked) = fields.int("min_decryption_version") {
        let Ok(asked) = u64::try_from(asked) else {
            return Err(Reply::bad("min decryption version cannot be negative"));
        };
        if asked == 0 {
            let text =
                "since Vault 0.3 (prior to the OpenBao fork), transit key numbering starts at 1; forcing minimum to 1";
            warnings.push(text.into());
        }
        decryption = asked.max(1);
        if decryption > latest {
            return Err(Reply::bad(format!(
                "cannot set min decryption version of {decryption}, latest key version is {latest}"
            )));
        }
    }
    if let Some(asked) = fields.int("min_encryption_version") {
        let Ok(asked) = u64::try_from(asked) else {
            return Err(Reply::bad("min encryption version cannot be negative"));
        };
        encryption = asked;
        if encryption > latest {
            return Err(Reply::bad(format!(
                "cannot set min encryption version of {encryption}, latest key version is {latest}"
            )));
        }
    }
    if encryption > 0 && encryption < decryption {
        return Err(Reply::bad(format!(
            "cannot set min encryption/decryption values; min encryption version of {encryption} must be greater than or equal to min decryption version of {decryption}"
        )));
    }
    if fields.int("auto_rotate_period").is_some_and(|seconds| seconds != 0 && seconds < 3600) {
        return Err(Reply::bad(SHORT_PERIOD));
    }
    if encryption < key.min_available {
        return Err(Reply::bad("min encryption version should not be less than min available version"));
    }
    if decryption < key.min_available {
        return Err(Reply::bad("min decryption version should not be less then min available version"));
    }
    (key.min_decryption, key.min_encryption) = (decryption, encryption);
    if let Some(allowed) = fields.bool("deletion_allowed") {
        key.deletion_allowed = allowed;
    }
    if fields.int("auto_rotate_period").is_some() {
        key.auto_rotate_period = fields.seconds("auto_rotate_period");
    }
    // Once set, these two stay set.
    key.exportable |= fields.bool("exportable").unwrap_or(false);
    key.allow_plaintext_backup |= fields.bool("allow_plaintext_backup").unwrap_or(false);
    Ok(shown(key, name, warnings))
}

fn trim(key: &mut Key, place: &Place<'_>, name: &str) -> Result<Reply, Reply> {
    let schema: Schema = &[("min_available_version", Kind::Int)];
    let fields = Fields::check(&place.body, schema, &["name"], false)?;
    let asked = fields.int("min_available_version").ok_or_else(|| Reply::bad("missing min_available_version"))?;
    let above = |limit: u64| u64::try_from(asked).is_ok_and(|asked| asked > limit);
    let why = if u64::try_from(asked).unwrap_or(0) < key.min_available || asked < 0 {
        "minimum available version cannot be decremented"
    } else if key.min_encryption == 0 {
        "minimum available version cannot be set when minimum encryption version is not set"
    } else if above(key.min_encryption) {
        "minimum available version cannot be greater than minmum encryption version"
    } else if above(key.min_decryption) {
        "minimum available version cannot be greater than minimum decryption version"
    } else if asked == 0 {
        "minimum available version should be positive"
    } else {
        key.min_available = asked.unsigned_abs();
        key.versions.retain(|version, _| *version >= asked.unsigned_abs());
        return Ok(shown(key, name, fields.warnings));
    };
    Err(Reply::bad(why))
}

fn mark(key: Option<&mut Key>, name: &str, deleted: bool) -> Reply {
    let Some(key) = key else { return Reply::empty() };
    let warnings = match (key.soft_deleted, deleted) {
        (true, true) => vec!["key was already marked as soft deleted".to_owned()],
        (false, false) => vec!["key was not marked as soft deleted".to_owned()],
        _ => Vec::new(),
    };
    key.soft_deleted = deleted;
    shown(key, name, warnings)
}
