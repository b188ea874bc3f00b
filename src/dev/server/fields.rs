//! The fields of a request body, read as OpenBao's framework reads them: weakly typed, unknown ones ignored with a
//! warning, those that are also in the URL replaced with a warning.

use serde_json::{Map, Value};

use super::reply::Reply;

/// The type of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    Int,
    Bool,
    /// Seconds, or a Go duration such as `1h`.
    Duration,
    /// A list of strings; one string with commas counts too.
    List,
    /// Anything; the handler looks itself.
    Any,
}

/// A path's fields: name and type.
pub type Schema = &'static [(&'static str, Kind)];

/// The fields of one request, already checked.
#[derive(Debug)]
pub struct Fields {
    values: Map<String, Value>,
    pub warnings: Vec<String>,
}

impl Fields {
    /// Checks `body` against `schema`. `captured` are names whose values come from the URL. `existence` says that the path
    /// has an existence check, whose refusals are worded a little differently.
    pub fn check(
        body: &Map<String, Value>,
        schema: Schema,
        captured: &[&str],
        existence: bool,
    ) -> Result<Fields, Reply> {
        let mut values = Map::new();
        let (mut ignored, mut replaced) = (Vec::new(), Vec::new());
        for (name, value) in body {
            if captured.contains(&name.as_str()) {
                replaced.push(name.as_str());
            } else if let Some((_, kind)) = schema.iter().find(|(known, _)| known == name) {
                let value = convert(value, *kind).map_err(|why| {
                    let prefix = if existence { "" } else { "Field validation failed: " };
                    Reply::bad(format!("{prefix}error converting input for field \"{name}\": {why}"))
                })?;
                values.insert(name.clone(), value);
            } else {
                ignored.push(name.as_str());
            }
        }
        let mut warnings = Vec::new();
        if !ignored.is_empty() {
            ignored.sort_unstable();
            warnings.push(format!("Endpoint ignored these unrecognized parameters: [{}]", ignored.join(" ")));
        }
        if !replaced.is_empty() {
            replaced.sort_unstable();
            let names = replaced.join(" ");
            warnings.push(format!(
                "Endpoint replaced the value of these parameters with the values captured from the endpoint's path: [{names}]"
            ));
        }
        Ok(Fields { values, warnings })
    }

    /// The value of `name`, when it was sent.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.values.get(name)
    }

    /// A text, when it was sent.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(Value::as_str)
    }

    /// A text, empty when it was not sent.
    pub fn text_or_empty(&self, name: &str) -> &str {
        self.text(name).unwrap_or_default()
    }

    /// A whole number or a duration in seconds, when it was sent.
    pub fn int(&self, name: &str) -> Option<i64> {
        self.get(name).and_then(Value::as_i64)
    }

    /// A duration in seconds; 0 when it was not sent or is negative.
    pub fn seconds(&self, name: &str) -> u64 {
        self.int(name).and_then(|n| u64::try_from(n).ok()).unwrap_or(0)
    }

    /// A truth value, when it was sent.
    pub fn bool(&self, name: &str) -> Option<bool> {
        self.get(name).and_then(Value::as_bool)
    }

    /// A list of texts; empty when it was not sent.
    pub fn list(&self, name: &str) -> Vec<String> {
        let items = self.get(name).and_then(Value::as_array);
        items.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    }
}

fn convert(value: &Value, kind: Kind) -> Result<Value, String> {
    let odd = |want: &str| format!("'' expected type '{want}', got unconvertible type '{}'", go_type(value));
    Ok(match (kind, value) {
        (Kind::Any, any) => any.clone(),
        (Kind::Text, Value::Null) => "".into(),
        (Kind::Text, Value::String(text)) => text.clone().into(),
        (Kind::Text, Value::Number(number)) => number.to_string().into(),
        (Kind::Text, Value::Bool(yes)) => if *yes { "1" } else { "0" }.into(),
        (Kind::Text, _) => return Err(odd("string")),
        (Kind::Int, Value::Null) => 0.into(),
        (Kind::Int, Value::Number(number)) => match number.as_i64() {
            Some(n) => n.into(),
            None => {
                return Err(format!(
                    "error decoding json.Number into : strconv.ParseInt: parsing \"{number}\": invalid syntax"
                ));
            }
        },
        (Kind::Int, Value::Bool(yes)) => i64::from(*yes).into(),
        (Kind::Int, Value::String(text)) if text.is_empty() => 0.into(),
        (Kind::Int, Value::String(text)) => match text.parse::<i64>() {
            Ok(n) => n.into(),
            Err(_) => return Err("'' cannot parse value as 'int': strconv.ParseInt: invalid syntax".into()),
        },
        (Kind::Int, _) => return Err(odd("int")),
        (Kind::Bool, Value::Null) => false.into(),
        (Kind::Bool, Value::Bool(yes)) => (*yes).into(),
        (Kind::Bool, Value::Number(number)) => (number.as_f64() != Some(0.0)).into(),
        (Kind::Bool, Value::String(text)) => match text.as_str() {
            "1" | "t" | "T" | "TRUE" | "true" | "True" => true.into(),
            "" | "0" | "f" | "F" | "FALSE" | "false" | "False" => false.into(),
            _ => return Err("'' cannot parse value as 'bool': strconv.ParseBool: invalid syntax".into()),
        },
        (Kind::Bool, _) => return Err(odd("bool")),
        (Kind::Duration, Value::Null) => 0.into(),
        (Kind::Duration, Value::Number(number)) => number.as_i64().unwrap_or(0).into(),
        (Kind::Duration, Value::String(text)) => duration(text)?.into(),
        (Kind::Duration, _) => return Err(odd("string")),
        (Kind::List, Value::Null) => Value::Array(Vec::new()),
        (Kind::List, Value::Array(items)) => {
            items.iter().map(|item| convert(item, Kind::Text)).collect::<Result<Vec<_>, _>>()?.into()
        }
        (Kind::List, one) => {
            let text = convert(one, Kind::Text)?;
            let items = text.as_str().unwrap_or_default().split(',').map(str::trim).filter(|item| !item.is_empty());
            items.map(Value::from).collect::<Vec<_>>().into()
        }
    })
}

/// Seconds of a Go duration (`1h30m`, `90s`, `2d` is days as OpenBao allows) or of plain digits.
pub fn duration(text: &str) -> Result<i64, String> {
    if text.is_empty() {
        return Ok(0);
    }
    if let Ok(seconds) = text.parse::<i64>() {
        return Ok(seconds);
    }
    let wrong = || format!("time: invalid duration \"{text}\"");
    let mut total = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        let tail = &rest[digits..];
        let unit_len = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        total += number
            * match &tail[..unit_len] {
                "ms" => 0.001,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                "d" => 86400.0,
                _ => return Err(wrong()),
            };
        rest = &tail[unit_len..];
    }
    // Durations here are far below 2^53 seconds, and a fraction of a second is dropped as OpenBao drops it.
    Ok(total as i64)
}

/// The Go type that OpenBao's JSON reader gives to a value, as its messages name it.
pub fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(_) => "json.Number",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn weak_types_convert_and_others_refuse() {
        assert_eq!(convert(&json!(5), Kind::Text), Ok(json!("5")));
        assert_eq!(convert(&json!("1"), Kind::Int), Ok(json!(1)));
        assert_eq!(convert(&json!("1h30m"), Kind::Duration), Ok(json!(5400)));
        assert_eq!(convert(&json!("a, b"), Kind::List), Ok(json!(["a", "b"])));
        assert!(convert(&json!(["a"]), Kind::Text).unwrap_err().ends_with("'[]interface {}'"));
        assert_eq!(duration("x").unwrap_err(), "time: invalid duration \"x\"");
    }
}
