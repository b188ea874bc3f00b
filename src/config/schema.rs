//! The JSON Schema (draft 2020-12): made from the structs, used by the loader, by editors and by CI.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::Config;

/// The schema of a whole configuration.
pub fn whole() -> Value {
    let generator = SchemaSettings::draft2020_12().into_generator();
    let mut schema = generator.into_root_schema_for::<Config>().to_value();
    choices(&mut schema);
    bounds(&mut schema);
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

/// Says of whole numbers how large they may be: serde refuses what does not fit their type, and no validator knows types.
fn bounds(schema: &mut Value) {
    if let Some(object) = schema.as_object_mut() {
        let largest = match object.get("format").and_then(Value::as_str) {
            Some("uint8") => Some(u64::from(u8::MAX)),
            Some("uint16") => Some(u64::from(u16::MAX)),
            Some("uint32") => Some(u64::from(u32::MAX)),
            Some("uint" | "uint64") => Some(u64::MAX),
            _ => None,
        };
        if let Some(largest) = largest.filter(|_| !object.contains_key("maximum")) {
            object.insert("maximum".to_owned(), json!(largest));
        }
    }
    each_child(schema, bounds);
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

/// A schema as it is printed and committed.
pub fn text(schema: &Value) -> String {
    format!("{schema:#}\n")
}
