//! `config explain`: each pipeline's stack from top to bottom, with effective settings and why each layer stands there.

use serde_json::Value;

use super::{Config, Pipeline};
use crate::layers;

/// The stacks of all pipelines as text.
pub fn explain(config: &Config) -> String {
    config.pipelines.iter().map(pipeline).collect::<Vec<_>>().join("\n")
}

fn pipeline(pipeline: &Pipeline) -> String {
    let crate::backend::Config::Transit(transit) = &pipeline.backend;
    let settings = serde_json::to_value(&pipeline.layers).unwrap_or_default();
    let mut text = format!("pipeline {}\n  kube-apiserver -> {}\n", pipeline.name, pipeline.socket.path.display());
    for layer in layers::TABLE.iter().filter(|layer| !is_below_transit(layer.name)) {
        text.push_str(&row(layer.name, settings.get(layer.name), layer.why));
    }
    text.push_str(&format!(
        "    transit    key {} at {}, login by {}\n",
        transit.key,
        transit.mount,
        pipeline.auth.name()
    ));
    for layer in layers::TABLE.iter().filter(|layer| is_below_transit(layer.name)) {
        text.push_str(&row(layer.name, settings.get(layer.name), layer.why));
    }
    text.push_str(&format!("  -> {}\n", transit.endpoints.join(", ")));
    text
}

fn is_below_transit(layer: &str) -> bool {
    matches!(layer, "token" | "endpoint")
}

fn row(name: &str, settings: Option<&Value>, why: &str) -> String {
    let says = |key: &str, value: Value| settings.and_then(|map| map.get(key)) == Some(&value);
    let off = says("enabled", false.into()) || says("maxItems", 1.into());
    let settings = settings.and_then(Value::as_object).map(|map| {
        map.iter()
            .map(|(key, value)| format!("{key} {}", value.to_string().trim_matches('"')))
            .collect::<Vec<_>>()
            .join(", ")
    });
    let head = format!("    {name:<10} {}", settings.unwrap_or_else(|| "nothing to set".to_owned()));
    format!("{head}{}\n               {why}\n", if off { "  [off]" } else { "" })
}
