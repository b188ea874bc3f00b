//! `batch_input`: how its items are read, with OpenBao's messages for what does not fit, and how a batch's status comes
//! from the fate of its items.

use serde_json::{Map, Value};

use super::super::fields::{Fields, go_type};
use super::super::reply::{Reply, Success};
use super::key::Refusal;

/// One item of work, from a batch or from the request itself.
#[derive(Debug, Default)]
pub struct Item {
    pub plaintext: String,
    pub ciphertext: String,
    pub context: String,
    pub associated_data: String,
    pub key_version: i64,
    pub reference: String,
    /// The decoded context.
    pub decoded: Vec<u8>,
}

/// How the items fared.
#[derive(Debug, Default)]
pub struct Tally {
    pub succeeded: bool,
    pub user: bool,
    pub internal: bool,
}

impl Tally {
    /// Counts a refusal and gives its text.
    pub fn refused(&mut self, refusal: Refusal) -> String {
        match refusal {
            Refusal::User(text) => {
                self.user = true;
                text
            }
            Refusal::Internal(text) => {
                self.internal = true;
                text
            }
        }
    }

    /// The reply to a batch: 400 when any item is the caller's fault, 500 when only the server's, unless the caller asked
    /// for another status and one item succeeded.
    pub fn reply(&self, results: Vec<Value>, fields: &Fields) -> Reply {
        let data = Map::from_iter([("batch_results".into(), results.into())]);
        if !self.user && !self.internal {
            return Success { data: Some(data), warnings: fields.warnings.clone(), ..Success::default() }.reply();
        }
        let mut status = if self.user { 400 } else { 500 };
        let mut warnings = Vec::new();
        if let Some(asked) = fields.int("partial_failure_response_code").filter(|_| self.succeeded) {
            match u16::try_from(asked).ok().filter(|asked| (1..=599).contains(asked)) {
                Some(asked) => status = asked,
                None => warnings.push(format!(
                    "invalid HTTP response code override from partial_failure_response_code, reverting to {status}"
                )),
            }
        }
        Success { data: Some(data), warnings, status: Some(status), ..Success::default() }.reply()
    }
}

/// The items of `batch_input`; `needs` is the field that each must have, with the words for its absence.
pub fn items(raw: &Value, needs: (&str, &str)) -> Result<Vec<Item>, Reply> {
    let fail = |why: String| Reply::multi(500, format!("failed to parse batch input: {why}"));
    let Some(list) = raw.as_array() else {
        return Err(fail(format!("source data must be an array or slice, got {}", go_type(raw))));
    };
    let mut items = Vec::with_capacity(list.len());
    let mut errors = Vec::new();
    for (at, value) in list.iter().enumerate() {
        let Some(object) = value.as_object() else {
            return Err(fail(format!("[{at}] expected a map, got '{}'", go_type(value))));
        };
        let mut text = |name: &str| match object.get(name) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Null) if name != "plaintext" => String::new(),
            Some(other) => {
                let kind = go_type(other);
                errors.push(format!("'[{at}].{name}' expected type 'string', got unconvertible type '{kind}'"));
                String::new()
            }
            None => {
                if name == needs.0 {
                    errors.push(format!("'[{at}].{name}' {}", needs.1));
                }
                String::new()
            }
        };
        let mut item = Item {
            context: text("context"),
            ciphertext: text("ciphertext"),
            plaintext: text("plaintext"),
            ..Item::default()
        };
        match object.get("key_version") {
            None | Some(Value::Null) => {}
            Some(Value::Number(number)) => match number.as_i64() {
                Some(version) => item.key_version = version,
                None => errors.push(format!(
                    "error decoding json.Number into [{at}].key_version: strconv.ParseInt: parsing \"{number}\": invalid syntax"
                )),
            },
            Some(other) => {
                let kind = go_type(other);
                errors.push(format!("'[{at}].key_version' expected type 'int', got unconvertible type '{kind}'"));
            }
        }
        let mut text = |name: &str| match object.get(name) {
            Some(Value::String(text)) => text.clone(),
            None | Some(Value::Null) => String::new(),
            Some(other) => {
                let kind = go_type(other);
                errors.push(format!("'[{at}].{name}' expected type 'string', got unconvertible type '{kind}'"));
                String::new()
            }
        };
        item.associated_data = text("associated_data");
        item.reference = text("reference");
        items.push(item);
    }
    if !errors.is_empty() {
        return Err(fail(errors.join("\n")));
    }
    if items.is_empty() {
        return Err(Reply::bad("missing batch input to process"));
    }
    Ok(items)
}

/// Every item has a context or none has.
pub fn contexts_agree(items: &[Item]) -> Result<(), Reply> {
    let first = items.first().is_some_and(|item| !item.context.is_empty());
    if items.iter().all(|item| item.context.is_empty() != first) {
        return Ok(());
    }
    Err(Reply::bad("context should be set either in all the request blocks or in none"))
}
