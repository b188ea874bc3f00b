//! One file: read strictly, and offered to figment with `pipelines` as a map by name, so that an overlay meets the
//! pipeline it means whatever its position.

use std::path::{Path, PathBuf};

use figment::value::{Dict, Map};
use figment::{Metadata, Profile, Provider};
use serde_json::Value;

use super::finding::Finding;
use super::place::Places;

/// Larger files are no configuration.
const MAX_FILE: u64 = 1 << 20;

/// A file that could be read.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) name: String,
    pub(super) places: Places,
    /// Names of its pipelines, in order.
    pub(super) order: Vec<String>,
    value: Value,
}

// === impl Source ===

impl Source {
    /// Reads a file; what keeps it from being read is a finding.
    pub(super) fn read(path: &Path) -> Result<Self, Vec<Finding>> {
        use std::io::Read;
        let name = path.display().to_string();
        let whole = |message: String, help: &str| {
            vec![Finding {
                file: name.clone(),
                line: 0,
                column: 0,
                path: String::new(),
                message,
                value: None,
                help: help.to_owned(),
            }]
        };
        let mut text = String::new();
        let read = std::fs::File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text));
        if let Err(error) = read {
            return Err(whole(format!("cannot be read: {error}"), "check the path after --config and the file's mode"));
        }
        if text.len() as u64 > MAX_FILE {
            return Err(whole("is larger than 1 MiB".to_owned(), "this is no configuration file"));
        }
        Self::parse(name, &text)
    }

    /// The same for a text.
    pub(super) fn parse(name: String, text: &str) -> Result<Self, Vec<Finding>> {
        let places = Places::of(text);
        let value: Value = match serde_saphyr::from_str(text) {
            Ok(value) => value,
            Err(error) => {
                let (line, column) = error.location().map_or((0, 0), |at| (at.line() as usize, at.column() as usize));
                let message = error.to_string().lines().next().unwrap_or("is not YAML").to_owned();
                let help = "correct the YAML; every key may stand only once".to_owned();
                let finding = Finding { file: name, line, column, path: String::new(), message, value: None, help };
                return Err(vec![finding]);
            }
        };
        if !value.is_object() {
            let (message, help) = ("is not a map of keys".to_owned(), "begin with `configVersion: v1`".to_owned());
            return Err(vec![Finding {
                file: name,
                line: 1,
                column: 1,
                path: String::new(),
                message,
                value: None,
                help,
            }]);
        }
        let mut source = Self { name, places, order: Vec::new(), value };
        let findings = source.name_pipelines();
        if findings.is_empty() { Ok(source) } else { Err(findings) }
    }

    /// Turns the list `pipelines` into a map by `name`.
    fn name_pipelines(&mut self) -> Vec<Finding> {
        let Some(Value::Array(list)) = self.value.get_mut("pipelines").map(Value::take) else {
            return Vec::new();
        };
        let (mut map, mut findings) = (serde_json::Map::new(), Vec::new());
        for (at, pipeline) in list.into_iter().enumerate() {
            let path = format!("/pipelines/{at}");
            let Some(name) = pipeline.get("name").and_then(Value::as_str).map(str::to_owned) else {
                findings.push(self.finding(
                    &path,
                    "has no name",
                    "give each pipeline a `name`; overlays meet it by that",
                ));
                continue;
            };
            if map.insert(name.clone(), pipeline).is_some() {
                let path = format!("/pipelines/{name}");
                findings.push(self.finding(&path, "stands twice in this file", "give each pipeline a name of its own"));
            }
            self.order.push(name);
        }
        self.value["pipelines"] = Value::Object(map);
        findings
    }

    fn finding(&self, path: &str, message: &str, help: &str) -> Finding {
        let ((line, column), _) = self.places.nearest(path).unwrap_or(((0, 0), false));
        Finding {
            file: self.name.clone(),
            line,
            column,
            path: path.trim_start_matches('/').replace('/', "."),
            message: message.to_owned(),
            value: None,
            help: help.to_owned(),
        }
    }

    /// Choices that this file makes: an overlay's choice replaces the one below it instead of standing beside it.
    pub(super) fn choices(&self) -> Vec<(String, &'static str)> {
        let pipelines = self.value.get("pipelines").and_then(Value::as_object).into_iter().flatten();
        pipelines
            .flat_map(|(name, pipeline)| {
                ["auth", "backend"].into_iter().filter(|key| pipeline.get(key).is_some()).map(|key| (name.clone(), key))
            })
            .collect()
    }

    /// The keys of a choice in this file.
    pub(super) fn choice(&self, pipeline: &str, key: &str) -> Vec<String> {
        let chosen = self.value.get("pipelines").and_then(|all| all.get(pipeline)).and_then(|one| one.get(key));
        chosen.and_then(Value::as_object).map(|map| map.keys().cloned().collect()).unwrap_or_default()
    }
}

impl Provider for Source {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone()).source(PathBuf::from(&self.name).as_path())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let dict = figment::value::Value::serialize(&self.value)?.into_dict().unwrap_or_default();
        Ok(Map::from([(Profile::Default, dict)]))
    }
}
