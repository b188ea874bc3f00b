//! The schema as an outline: every key with its path, so that the reference page and the help for misspelt keys tell of the
//! same keys.

use serde_json::{Value, json};

/// How deep sections may nest; a bound against a schema that refers to itself.
const DEEPEST: usize = 12;

/// One key.
pub(super) struct Row {
    /// The section that it belongs to, as one writes it; empty for the top of the file.
    pub(super) section: String,
    pub(super) key: String,
    /// With `[]` behind it when it is a list of sections.
    pub(super) path: String,
    pub(super) required: bool,
    /// What the section says of the key.
    pub(super) property: Value,
    /// What that refers to.
    pub(super) target: Value,
}

/// Every key in the order of the schema, each before what stands below it.
pub(super) fn rows(schema: &Value) -> Vec<Row> {
    let mut rows = Vec::new();
    below(schema, schema, "", 0, &mut rows);
    rows
}

fn below(root: &Value, section: &Value, path: &str, depth: usize, out: &mut Vec<Row>) {
    let section = resolve(root, section);
    let required = section.get("required").and_then(Value::as_array);
    let Some(properties) = section.get("properties").and_then(Value::as_object).filter(|_| depth < DEEPEST) else {
        return;
    };
    for (key, property) in properties {
        let target = resolve(root, property);
        let items =
            target.get("items").map(|items| resolve(root, items)).filter(|items| items.get("properties").is_some());
        let plain = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        let shown = if items.is_some() { format!("{plain}[]") } else { plain };
        let inner = items.unwrap_or_else(|| target.clone());
        out.push(Row {
            section: path.to_owned(),
            key: key.clone(),
            path: shown.clone(),
            required: required.is_some_and(|list| list.contains(&json!(key))),
            property: property.clone(),
            target,
        });
        below(root, &inner, &shown, depth + 1, out);
    }
}

/// Follows `$ref`, and an optional value to what it holds.
pub(super) fn resolve(root: &Value, schema: &Value) -> Value {
    if let Some(pointer) = schema.get("$ref").and_then(Value::as_str) {
        return root.pointer(pointer.trim_start_matches('#')).cloned().unwrap_or_default();
    }
    let some = schema.get("anyOf").and_then(Value::as_array);
    match some.and_then(|branches| branches.iter().find(|branch| branch.get("$ref").is_some())) {
        Some(branch) => resolve(root, branch),
        None => schema.clone(),
    }
}

/// The words of a choice between words.
pub(super) fn words(target: &Value) -> Option<Vec<String>> {
    let from_enum = target.get("enum").and_then(Value::as_array).cloned();
    let from_branches = || {
        let branches = target.get("oneOf").and_then(Value::as_array)?;
        branches.iter().map(|branch| branch.get("const").cloned()).collect::<Option<Vec<_>>>()
    };
    from_enum.or_else(from_branches)?.iter().map(|word| word.as_str().map(str::to_owned)).collect()
}
