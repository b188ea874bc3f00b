//! `config show`: the resolved file with each value's origin, and each pipeline's fingerprint.

use serde_json::Value;

use super::Loaded;
use super::origins::Origins;
use super::pointer::join;

/// The configuration as YAML that loads again, with the origin of each value behind it.
pub fn show(loaded: &Loaded) -> String {
    let mut text = String::new();
    for pipeline in &loaded.config.pipelines {
        let fingerprint = crate::host::fingerprint(pipeline);
        text.push_str(&format!("# fingerprint of {}: {fingerprint}\n", pipeline.name));
    }
    let value = serde_json::to_value(&loaded.config).unwrap_or_default();
    if let Value::Object(map) = &value {
        write_map(&mut text, map, "", 0, &loaded.origins);
    }
    text
}

fn write_map(text: &mut String, map: &serde_json::Map<String, Value>, pointer: &str, indent: usize, origins: &Origins) {
    for (key, value) in map {
        text.push_str(&" ".repeat(indent));
        write_entry(text, key, value, &join(pointer, key), indent, origins);
    }
}

fn write_entry(text: &mut String, key: &str, value: &Value, pointer: &str, indent: usize, origins: &Origins) {
    text.push_str(key);
    text.push(':');
    match value {
        Value::Object(map) if !map.is_empty() => {
            text.push('\n');
            write_map(text, map, pointer, indent + 2, origins);
        }
        Value::Array(list) if list.iter().any(Value::is_object) => {
            text.push('\n');
            for (at, element) in list.iter().enumerate() {
                write_element(text, element, &format!("{pointer}/{at}"), indent + 2, origins);
            }
        }
        scalar => {
            let origin = origins.of(pointer).unwrap_or_else(|| "default".to_owned());
            text.push_str(&format!(" {scalar}  # {origin}\n"));
        }
    }
}

fn write_element(text: &mut String, element: &Value, pointer: &str, indent: usize, origins: &Origins) {
    let Value::Object(map) = element else {
        text.push_str(&format!("{}- {element}\n", " ".repeat(indent)));
        return;
    };
    for (at, (key, value)) in map.iter().enumerate() {
        text.push_str(&" ".repeat(indent));
        text.push_str(if at == 0 { "- " } else { "  " });
        write_entry(text, key, value, &join(pointer, key), indent + 2, origins);
    }
}
