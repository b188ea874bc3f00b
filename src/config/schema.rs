//! The JSON Schema (draft 2020-12): made from the structs, used by the loader, by editors and by CI.

use boon::{Compiler, ErrorKind, Schemas, ValidationError};
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::Config;
use super::finding::Finding;
use super::load::Origins;

/// The address under which the compiler knows the schema; nothing is fetched.
const NAME: &str = "bao-kms-provider.schema.json";

/// The schema of a whole configuration.
pub fn whole() -> Value {
    let generator = SchemaSettings::draft2020_12().into_generator();
    let mut schema = generator.into_root_schema_for::<Config>().to_value();
    choices(&mut schema);
    schema
}

/// The schema of an overlay: the same without what is required.
pub fn overlay() -> Value {
    let mut schema = whole();
    loosen(&mut schema);
    schema["title"] = json!("bao-kms-provider configuration overlay");
    schema
}

/// Rewrites a choice between plugins from `oneOf` to a map with exactly one key, so that messages name the key.
fn choices(schema: &mut Value) {
    if let Some(branches) = schema.get("oneOf").and_then(Value::as_array).cloned() {
        let single = |branch: &Value| {
            let properties = branch.get("properties")?.as_object()?;
            let (name, config) = properties.iter().next().filter(|_| properties.len() == 1)?;
            let mut config = config.clone();
            if let (Some(text), Some(object)) = (branch.get("description"), config.as_object_mut()) {
                object.insert("description".to_owned(), text.clone());
            }
            Some((name.clone(), config))
        };
        let rows: Option<Map<String, Value>> = branches.iter().map(single).collect();
        if let (Some(rows), Some(object)) = (rows, schema.as_object_mut()) {
            object.remove("oneOf");
            object.insert("type".to_owned(), json!("object"));
            object.insert("properties".to_owned(), Value::Object(rows));
            object.insert("additionalProperties".to_owned(), json!(false));
            object.insert("minProperties".to_owned(), json!(1));
            object.insert("maxProperties".to_owned(), json!(1));
        }
    }
    each_child(schema, choices);
}

fn loosen(schema: &mut Value) {
    if let Some(object) = schema.as_object_mut() {
        if object.get("required").is_some_and(Value::is_array) {
            object.remove("required");
        }
        object.remove("minProperties");
    }
    each_child(schema, loosen);
}

fn each_child(schema: &mut Value, visit: fn(&mut Value)) {
    match schema {
        Value::Object(map) => map.values_mut().for_each(visit),
        Value::Array(list) => list.iter_mut().for_each(visit),
        _ => {}
    }
}

/// Everything in which a document differs from the schema.
pub(super) fn validate(document: &Value, origins: &Origins) -> Vec<Finding> {
    let schema = whole();
    let known = property_names(&schema);
    let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
    let added = compiler.add_resource(NAME, schema).map_err(|error| error.to_string());
    let compiled = added.and_then(|()| compiler.compile(NAME, &mut schemas).map_err(|error| error.to_string()));
    let index = match compiled {
        Ok(index) => index,
        Err(error) => {
            let help = "this is a defect of the program; please report it";
            return vec![origins.finding("", format!("the schema does not compile: {error}"), None, help)];
        }
    };
    let mut findings = Vec::new();
    if let Err(error) = schemas.validate(document, index) {
        collect(&error, document, origins, &known, &mut findings);
    }
    findings
}

fn collect(
    error: &ValidationError<'_, '_>,
    document: &Value,
    origins: &Origins,
    known: &[String],
    out: &mut Vec<Finding>,
) {
    if !error.causes.is_empty() {
        for cause in &error.causes {
            collect(cause, document, origins, known, out);
        }
        return;
    }
    let pointer = error.instance_location.to_string();
    let value = document.pointer(&pointer);
    match &error.kind {
        ErrorKind::AdditionalProperties { got } => {
            for key in got {
                let pointer = format!("{pointer}/{key}");
                let help = match nearest(key, known) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => "remove it; `config schema` lists every key".to_owned(),
                };
                out.push(origins.finding(
                    &pointer,
                    "is no key of this section".to_owned(),
                    document.pointer(&pointer),
                    &help,
                ));
            }
        }
        ErrorKind::Required { want } => {
            for key in want {
                let help = format!("add `{key}`; docs/configuration.md says what it is");
                out.push(origins.finding(&format!("{pointer}/{key}"), "is missing".to_owned(), None, &help));
            }
        }
        ErrorKind::Pattern { want, .. } => {
            let help = match *want {
                "^[0-9]{1,9}(ms|s|m|h)$" => {
                    "write a whole number and one unit in one word, such as 2500ms, 30s, 2m or 1h".to_owned()
                }
                "^0[0-7]{3}$" => "write four octal digits in quotes, such as \"0660\"".to_owned(),
                pattern => format!("it must fit {pattern}"),
            };
            out.push(origins.finding(&pointer, "does not have the right form".to_owned(), value, &help));
        }
        ErrorKind::Type { .. } => {
            let help = "durations and file modes are quoted strings; numbers and booleans are not";
            out.push(origins.finding(&pointer, format!("has the wrong type: {}", error.kind), value, help));
        }
        kind => out.push(origins.finding(
            &pointer,
            kind.to_string(),
            value,
            "docs/configuration.md says what may stand here",
        )),
    }
}

fn property_names(schema: &Value) -> Vec<String> {
    let mut names = Vec::new();
    walk(schema, &mut |object| {
        if let Some(Value::Object(properties)) = object.get("properties") {
            names.extend(properties.keys().cloned());
        }
    });
    names.sort();
    names.dedup();
    names
}

fn walk(schema: &Value, visit: &mut impl FnMut(&Map<String, Value>)) {
    match schema {
        Value::Object(map) => {
            visit(map);
            map.values().for_each(|child| walk(child, visit));
        }
        Value::Array(list) => list.iter().for_each(|child| walk(child, visit)),
        _ => {}
    }
}

/// The known key that a typing error made this of: at most a third of its letters differ.
fn nearest<'a>(key: &str, known: &'a [String]) -> Option<&'a str> {
    let best = known.iter().map(|name| (distance(key, name), name)).min()?;
    (best.0 > 0 && best.0 <= (key.chars().count() / 3).max(1)).then_some(best.1)
}

/// Insertions, deletions and replacements between two words, letter case aside.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.to_lowercase().chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// A schema as it is printed and committed.
pub fn text(schema: &Value) -> String {
    format!("{schema:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_errors_find_their_key() {
        let known = ["socket", "maxCalls", "metadataInterval"].map(str::to_owned);
        assert_eq!(nearest("sockte", &known), Some("socket"));
        assert_eq!(nearest("maxcalls", &known), None, "letter case alone is distance 0, which is the same word");
        assert_eq!(nearest("metadata_interval", &known), Some("metadataInterval"));
        assert_eq!(nearest("zebra", &known), None);
    }
}
