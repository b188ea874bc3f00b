//! One file: read strictly, and offered to figment with `pipelines` as a map by name, so that an overlay meets the
//! pipeline it means whatever its position.

use std::collections::HashSet;
use std::io::Read;
use std::path::{Path, PathBuf};

use figment::value::{Dict, Map};
use figment::{Metadata, Profile, Provider};
use serde_json::{Number, Value};

use super::finding::Finding;
use super::place::Places;
use crate::files::{self, FileError};

/// Larger files are no configuration.
const MAX_FILE: u64 = 1 << 20;
/// How the name of a pipeline begins that has none, or another one's: no name of the file can begin like that.
pub(super) const UNNAMED: char = '#';
/// Floats below this are whole numbers exactly.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// A file that could be read.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) name: String,
    pub(super) places: Places,
    /// Names of its pipelines, in order.
    pub(super) order: Vec<String>,
    /// What is wrong with the file as one of several; its values are judged with those of the others.
    pub(super) findings: Vec<Finding>,
    value: Value,
}

// === impl Source ===

impl Source {
    /// Reads a file, the `at`-th of all; what keeps it from being read is a finding.
    pub(super) fn read(at: usize, path: &Path) -> Result<Self, Box<Finding>> {
        let name = path.display().to_string();
        let refuse = |message: String, help: &str| Err(Box::new(whole(&name, (0, 0), message, help)));
        let mut text = String::new();
        let opened = match files::open(path) {
            Ok(file) => file,
            Err(FileError::NotAFile { .. }) => {
                return refuse("is not a regular file".to_owned(), "name a file after --config");
            }
            Err(FileError::Io { source, .. }) => return unreadable(&name, &source),
            Err(error) => return refuse(error.to_string(), "name another file after --config"),
        };
        if let Err(error) = opened.take(MAX_FILE + 1).read_to_string(&mut text) {
            return unreadable(&name, &error);
        }
        if text.len() as u64 > MAX_FILE {
            return refuse("is larger than 1 MiB".to_owned(), "this is no configuration file; name another one");
        }
        Self::parse(at, name, &text)
    }

    /// The same for a text.
    pub(super) fn parse(at: usize, name: String, text: &str) -> Result<Self, Box<Finding>> {
        let mut value: Value = match serde_saphyr::from_str(text) {
            Ok(value) => value,
            Err(error) => {
                let place = error.location().map_or((0, 0), |at| (at.line() as usize, at.column() as usize));
                // The reader's own words show the lines around the fault, which may hold anything.
                let message = error.without_snippet().to_string();
                let message = message.lines().next().unwrap_or("is not YAML").to_owned();
                let help = "correct the YAML; every key may stand only once";
                return Err(Box::new(whole(&name, place, message, help)));
            }
        };
        if !value.is_object() {
            let help = "begin with `configVersion: v1`";
            return Err(Box::new(whole(&name, (1, 1), "is not a map of keys".to_owned(), help)));
        }
        make_whole(&mut value);
        let mut source = Self { name, places: Places::default(), order: Vec::new(), findings: Vec::new(), value };
        source.name_pipelines(at, text);
        Ok(source)
    }

    /// Turns the list `pipelines` into a map by `name`, and finds the places.
    fn name_pipelines(&mut self, file: usize, text: &str) {
        let written = self.value.get("pipelines").cloned();
        let list = match &written {
            Some(Value::Array(list)) => list.as_slice(),
            _ => &[],
        };
        let (mut map, mut taken, mut twice) = (serde_json::Map::new(), HashSet::new(), Vec::new());
        for (at, pipeline) in list.iter().enumerate() {
            let name = pipeline.get("name").and_then(Value::as_str).filter(|name| !name.starts_with(UNNAMED));
            let unnamed = format!("{UNNAMED}{file}.{at}");
            if let Some(name) = name.filter(|name| !taken.insert(*name)) {
                twice.push((unnamed.clone(), name.to_owned()));
            }
            let key = name.filter(|name| !map.contains_key(*name)).map_or(unnamed, str::to_owned);
            map.insert(key.clone(), pipeline.clone());
            self.order.push(key);
        }
        self.places = Places::of(text, &self.order);
        for (key, name) in twice {
            let help = "give each pipeline a name of its own";
            let pointer = format!("/pipelines/{key}/name");
            self.find(&pointer, format!("pipelines[{name}].name"), "stands twice in this file", help);
        }
        match written {
            Some(Value::Array(_)) => self.value["pipelines"] = Value::Object(map),
            Some(_) => {
                let help = "write a list, in which each pipeline begins with `- name: ...`";
                self.find("/pipelines", "pipelines".to_owned(), "is not a list", help);
                // Merged, it would take the place of the lists of the other files.
                self.value.as_object_mut().map(|map| map.shift_remove("pipelines"));
            }
            None => {}
        }
    }

    fn find(&mut self, pointer: &str, path: String, message: &str, help: &str) {
        let place = self.places.nearest(pointer).unwrap_or((0, 0));
        self.findings.push(Finding { path, ..whole(&self.name, place, message.to_owned(), help) });
    }

    /// Whether this file says something at a pointer, by itself or through an anchor.
    pub(super) fn says(&self, pointer: &str) -> bool {
        self.value.pointer(pointer).is_some()
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

fn unreadable<T>(name: &str, error: &std::io::Error) -> Result<T, Box<Finding>> {
    let help = "check the path after --config and the file's mode";
    Err(Box::new(whole(name, (0, 0), format!("cannot be read: {error}"), help)))
}

/// A finding about a file as a whole.
fn whole(name: &str, (line, column): (usize, usize), message: String, help: &str) -> Finding {
    Finding { file: name.to_owned(), line, column, path: String::new(), message, value: None, help: help.to_owned() }
}

/// `8192.0` is a whole number to a schema and none to serde: here it becomes one for both.
fn make_whole(value: &mut Value) {
    match value {
        Value::Object(map) => map.values_mut().for_each(make_whole),
        Value::Array(list) => list.iter_mut().for_each(make_whole),
        Value::Number(number) => {
            let float = number.as_f64().filter(|float| number.is_f64() && float.fract() == 0.0 && float.abs() < EXACT);
            if let Some(float) = float {
                *number = Number::from(float as i64);
            }
        }
        _ => {}
    }
}
