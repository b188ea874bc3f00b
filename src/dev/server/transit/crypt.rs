//! `encrypt/<name>` and `decrypt/<name>`, one item or a batch, in OpenBao's order of checks.

use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::super::fields::{Fields, Kind, Schema};
use super::super::reply::{Reply, Success};
use super::super::route::Place;
use super::batch::{Item, Tally, contexts_agree, items};
use super::key::{Key, KeyType, Refusal};
use super::{Transit, go_base64};

const ENCRYPT: Schema = &[
    ("plaintext", Kind::Text),
    ("context", Kind::Text),
    ("associated_data", Kind::Text),
    ("type", Kind::Text),
    ("convergent_encryption", Kind::Bool),
    ("key_version", Kind::Int),
    ("partial_failure_response_code", Kind::Int),
    ("batch_input", Kind::Any),
];

const DECRYPT: Schema = &[
    ("ciphertext", Kind::Text),
    ("context", Kind::Text),
    ("associated_data", Kind::Text),
    ("partial_failure_response_code", Kind::Int),
    ("batch_input", Kind::Any),
];

/// Answers `encrypt/<name>`; makes the key when the policy let a missing one through and the engine allows it.
pub fn encrypt(transit: &mut Transit, place: &Place<'_>, name: &str, now: SystemTime) -> Result<Reply, Reply> {
    let fields = Fields::check(&place.body, ENCRYPT, &["name"], true)?;
    let (batch, mut items) = match fields.get("batch_input").filter(|raw| !raw.is_null()) {
        Some(raw) => (true, items(raw, ("plaintext", "missing plaintext to encrypt"))?),
        None => (false, vec![single(&fields, fields.text("plaintext"), "missing plaintext to encrypt")?]),
    };
    contexts_agree(&items)?;
    let mut tally = Tally::default();
    let decoded: Vec<Result<Vec<u8>, String>> = items
        .iter_mut()
        .map(|item| {
            let plaintext = go_base64::decode(&item.plaintext)?;
            item.decoded = go_base64::decode(&item.context)?;
            Ok(plaintext)
        })
        .collect();
    // A standby that lags knows nothing of writing.
    if place.behind.is_zero() && !transit.has(name) {
        upsert(transit, &fields, &items, name, now)?;
    }
    let key = transit.seen(place.behind).get(name).ok_or_else(|| Reply::bad("encryption key not found"))?;
    let mut results = Vec::with_capacity(items.len());
    for (item, plaintext) in items.iter().zip(decoded) {
        let sealed = plaintext
            .map_err(Refusal::User)
            .and_then(|plaintext| key.encrypt(item.key_version, &item.decoded, &plaintext, &item.associated_data));
        let mut result = Map::new();
        match sealed {
            Ok((version, ciphertext)) => {
                tally.succeeded = true;
                result.insert("ciphertext".into(), ciphertext.into());
                result.insert("key_version".into(), version.into());
            }
            Err(refusal) => {
                result.insert("error".into(), tally.refused(refusal).into());
            }
        }
        results.push(finish(result, item));
    }
    answer(batch, results, &tally, &fields)
}

/// Answers `decrypt/<name>`.
pub fn decrypt(transit: &Transit, place: &Place<'_>, name: &str) -> Result<Reply, Reply> {
    let fields = Fields::check(&place.body, DECRYPT, &["name"], false)?;
    let (batch, mut items) = match fields.get("batch_input").filter(|raw| !raw.is_null()) {
        Some(raw) => (true, items(raw, ("ciphertext", "missing ciphertext to decrypt"))?),
        None => {
            let ciphertext = fields.text("ciphertext").filter(|text| !text.is_empty());
            (false, vec![single(&fields, ciphertext, "missing ciphertext to decrypt")?])
        }
    };
    contexts_agree(&items)?;
    let mut tally = Tally::default();
    let checked: Vec<Result<(), String>> = items
        .iter_mut()
        .map(|item| {
            if item.ciphertext.is_empty() {
                return Err("missing ciphertext to decrypt".to_owned());
            }
            item.decoded = go_base64::decode(&item.context)?;
            Ok(())
        })
        .collect();
    let key: &Key = transit.seen(place.behind).get(name).ok_or_else(|| Reply::bad("encryption key not found"))?;
    let mut results = Vec::with_capacity(items.len());
    for (item, checked) in items.iter().zip(checked) {
        let opened = checked
            .map_err(Refusal::User)
            .and_then(|()| key.decrypt(&item.decoded, &item.ciphertext, &item.associated_data));
        let mut result = Map::new();
        match opened {
            Ok(plaintext) => {
                tally.succeeded = true;
                result.insert("plaintext".into(), STANDARD.encode(plaintext).into());
            }
            Err(refusal) => {
                result.insert("plaintext".into(), "".into());
                result.insert("error".into(), tally.refused(refusal).into());
            }
        }
        results.push(finish(result, item));
    }
    answer(batch, results, &tally, &fields)
}

/// The request itself as one item. `work` is what it cannot do without.
fn single(fields: &Fields, work: Option<&str>, missing: &str) -> Result<Item, Reply> {
    let work = work.ok_or_else(|| Reply::bad(missing))?;
    Ok(Item {
        plaintext: work.to_owned(),
        ciphertext: work.to_owned(),
        context: fields.text_or_empty("context").to_owned(),
        associated_data: fields.text_or_empty("associated_data").to_owned(),
        key_version: fields.int("key_version").unwrap_or(0),
        ..Item::default()
    })
}

fn upsert(transit: &mut Transit, fields: &Fields, items: &[Item], name: &str, now: SystemTime) -> Result<(), Reply> {
    let derived = items.iter().any(|item| !item.context.is_empty());
    let convergent = fields.bool("convergent_encryption").unwrap_or(false);
    if convergent && !derived {
        return Err(Reply::bad("convergent encryption requires derivation to be enabled, so context is required"));
    }
    let kind = fields.text("type").unwrap_or("aes256-gcm96");
    let Some(kind) = KeyType::of(kind).filter(|kind| *kind != KeyType::Ed25519) else {
        return Err(Reply::bad(format!("unknown key type {kind}")));
    };
    if !transit.disable_upsert {
        transit.remember();
        transit.keys.insert(name.to_owned(), Key { derived, convergent, ..Key::new(kind, now) });
    }
    Ok(())
}

fn finish(mut result: Map<String, Value>, item: &Item) -> Value {
    result.insert("reference".into(), item.reference.clone().into());
    Value::Object(result)
}

fn answer(batch: bool, results: Vec<Value>, tally: &Tally, fields: &Fields) -> Result<Reply, Reply> {
    if batch {
        return Ok(tally.reply(results, fields));
    }
    let only = results.into_iter().next().and_then(|result| result.as_object().cloned()).unwrap_or_default();
    if let Some(why) = only.get("error").and_then(Value::as_str) {
        return Err(if tally.internal { Reply::multi(500, why) } else { Reply::bad(why) });
    }
    let data = only.into_iter().filter(|(name, _)| name != "reference").collect();
    Ok(Success { data: Some(data), warnings: fields.warnings.clone(), ..Success::default() }.reply())
}
