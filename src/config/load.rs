//! From files to a [`Config`]: read each, merge in order, lay the environment over it, validate, deserialize, check.

use std::net::SocketAddr;
use std::path::PathBuf;

use figment::Figment;
use serde_json::{Map, Value, json};

use super::finding::{Finding, Findings};
use super::source::Source;
use super::{Config, checks, schema};

/// The environment variables that are heard, with the key path that each sets. Nothing that carries identity or secrets.
pub const ENVIRONMENT: [(&str, &str); 2] =
    [("BAO_KMS_LOG_LEVEL", "telemetry.logs.level"), ("BAO_KMS_ADMIN_LISTEN", "admin.listen")];

/// A configuration that holds, with where each value came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration, with every default.
    pub config: Config,
    pub(super) origins: Origins,
}

/// Where values come from.
#[derive(Clone, Debug, Default)]
pub(super) struct Origins {
    sources: Vec<Source>,
    environment: Vec<(&'static str, &'static str)>,
    names: Vec<String>,
}

/// Loads the files in order, the last one winning.
///
/// # Errors
/// Everything that is wrong, at once.
pub fn load(files: &[PathBuf]) -> Result<Loaded, Findings> {
    let (mut sources, mut findings) = (Vec::new(), Vec::new());
    for file in files {
        match Source::read(file) {
            Ok(source) => sources.push(source),
            Err(found) => findings.extend(found),
        }
    }
    if !findings.is_empty() {
        return Err(Findings(findings));
    }
    let environment: Vec<_> =
        ENVIRONMENT.iter().filter_map(|(variable, _)| Some((*variable, std::env::var(variable).ok()?))).collect();
    resolve(sources, &environment)
}

/// The same for what was read already.
pub(super) fn resolve(sources: Vec<Source>, environment: &[(&'static str, String)]) -> Result<Loaded, Findings> {
    let (document, origins) = merge(sources, environment)?;
    let mut findings = schema::validate(&document, &origins);
    if !findings.is_empty() {
        findings.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
        findings.dedup();
        return Err(Findings(findings));
    }
    let config: Config = serde_json::from_value(document.clone())
        .map_err(|error| Findings(vec![origins.finding("", error.to_string(), None, "correct the value")]))?;
    let findings = checks::check(&config, &origins);
    if findings.is_empty() { Ok(Loaded { config, origins }) } else { Err(Findings(findings)) }
}

/// One document out of all files and the environment.
fn merge(sources: Vec<Source>, environment: &[(&'static str, String)]) -> Result<(Value, Origins), Findings> {
    let mut figment = Figment::new();
    for source in &sources {
        figment = figment.merge(source);
    }
    let mut document: Value = figment.extract().map_err(|error| {
        let origins = Origins { sources: sources.clone(), ..Origins::default() };
        Findings(vec![origins.finding("", error.to_string(), None, "correct the file")])
    })?;
    keep_last_choice(&mut document, &sources);
    let mut names: Vec<String> = Vec::new();
    for name in sources.iter().flat_map(|source| &source.order) {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    if let Some(Value::Object(map)) = document.get_mut("pipelines").map(Value::take) {
        let mut map = map;
        document["pipelines"] = names.iter().filter_map(|name| map.remove(name)).collect();
    }
    for (variable, value) in environment {
        if let Some((_, path)) = ENVIRONMENT.iter().find(|(known, _)| known == variable) {
            set(&mut document, path, value);
        }
    }
    let environment = environment
        .iter()
        .filter_map(|(variable, _)| ENVIRONMENT.iter().find(|(known, _)| known == variable).copied())
        .collect();
    Ok((document, Origins { sources, environment, names }))
}

/// Where several files choose, the last one's choice stands alone.
fn keep_last_choice(document: &mut Value, sources: &[Source]) {
    for source in sources {
        for (pipeline, key) in source.choices() {
            let wanted = source.choice(&pipeline, key);
            let later =
                sources.iter().rev().find(|later| later.choices().iter().any(|(p, k)| *p == pipeline && *k == key));
            let wanted = later.map_or(wanted, |later| later.choice(&pipeline, key));
            let chosen =
                document.get_mut("pipelines").and_then(|all| all.get_mut(&pipeline)).and_then(|one| one.get_mut(key));
            if let Some(Value::Object(map)) = chosen {
                map.retain(|name, _| wanted.contains(name));
            }
        }
    }
}

fn set(document: &mut Value, path: &str, value: &str) {
    let mut at = document;
    let mut keys = path.split('.').peekable();
    while let Some(key) = keys.next() {
        let Some(map) = at.as_object_mut() else { return };
        if keys.peek().is_none() {
            map.insert(key.to_owned(), json!(value));
            return;
        }
        at = map.entry(key).or_insert_with(|| Value::Object(Map::new()));
    }
}

// === impl Origins ===

impl Origins {
    /// `/pipelines/0/x` as files are searched for it: `/pipelines/<name>/x`.
    fn by_name(&self, pointer: &str) -> String {
        let mut parts = pointer.splitn(4, '/').skip(1);
        let name = match (parts.next(), parts.next().and_then(|index| index.parse::<usize>().ok())) {
            (Some("pipelines"), Some(index)) => self.names.get(index),
            _ => None,
        };
        match (name, parts.next()) {
            (Some(name), Some(rest)) => format!("/pipelines/{name}/{rest}"),
            (Some(name), None) => format!("/pipelines/{name}"),
            (None, _) => pointer.to_owned(),
        }
    }

    /// The key path as one writes it.
    pub(super) fn readable(&self, pointer: &str) -> String {
        let named = self.by_name(pointer);
        let mut text = String::new();
        for (at, part) in named.split('/').skip(1).enumerate() {
            match (at, text.as_str()) {
                (1, "pipelines") => text.push_str(&format!("[{part}]")),
                (0, _) => text.push_str(part),
                _ if part.parse::<usize>().is_ok() => text.push_str(&format!("[{part}]")),
                _ => text.push_str(&format!(".{part}")),
            }
        }
        text
    }

    /// Where the value at this pointer comes from: a file with line, a variable, or nowhere (a default).
    pub(super) fn of(&self, pointer: &str) -> Option<String> {
        let dotted = pointer.trim_start_matches('/').replace('/', ".");
        if let Some((variable, _)) = self.environment.iter().find(|(_, path)| *path == dotted) {
            return Some(format!("${variable}"));
        }
        let named = self.by_name(pointer);
        let source = self.sources.iter().rev().find(|source| source.places.has(&named))?;
        let (line, _) = source.places.at(&named)?;
        Some(format!("{}:{line}", source.name))
    }

    /// A finding about the value at this pointer, in the file that has the last word on it.
    pub(super) fn finding(&self, pointer: &str, message: String, value: Option<&Value>, help: &str) -> Finding {
        let named = self.by_name(pointer);
        let dotted = pointer.trim_start_matches('/').replace('/', ".");
        let variable = self.environment.iter().find(|(_, path)| *path == dotted);
        let exact = self.sources.iter().rev().find(|source| source.places.has(&named));
        let source = exact.or(self.sources.iter().rev().find(|source| source.places.nearest(&named).is_some()));
        let place = source.and_then(|source| source.places.nearest(&named)).map_or((0, 0), |(place, _)| place);
        let first = self.sources.first();
        let file = source.or(first).map_or_else(|| "configuration".to_owned(), |source| source.name.clone());
        let secret = named.contains("/auth/") || named.contains("/fingerprint");
        let (file, (line, column)) = match variable {
            Some((variable, _)) => (format!("${variable}"), (0, 0)),
            None => (file, place),
        };
        Finding {
            file,
            line,
            column,
            path: self.readable(pointer),
            message,
            value: value.filter(|_| !secret).map(shorten),
            help: help.to_owned(),
        }
    }
}

/// A value as it fits in a sentence.
fn shorten(value: &Value) -> String {
    const MOST: usize = 80;
    let text = value.to_string();
    if text.chars().count() <= MOST { text } else { text.chars().take(MOST).chain("...".chars()).collect() }
}

/// Whether an address is loopback; for the checks.
pub(super) fn is_loopback(address: &SocketAddr) -> bool {
    address.ip().is_loopback()
}
