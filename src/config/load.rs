//! From files to a [`Config`]: read each, merge in order, lay the environment over it, validate, check, deserialize. No
//! step hides the findings of a later one.

use std::path::PathBuf;

use figment::Figment;
use figment::error::Kind;
use serde_json::{Map, Value, json};

use super::finding::{Finding, Findings};
use super::judge::{self, Extent};
use super::origins::Origins;
use super::pointer::join;
use super::source::Source;
use super::{Config, checks};

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

/// A variable with the key path that it sets, and its value.
type Variable = ((&'static str, &'static str), String);

/// Loads the files in order, the last one winning.
///
/// # Errors
/// Everything that is wrong, at once.
pub fn load(files: &[PathBuf]) -> Result<Loaded, Findings> {
    let (mut sources, mut findings) = (Vec::new(), Vec::new());
    for (at, file) in files.iter().enumerate() {
        match Source::read(at, file) {
            Ok(source) => sources.push(source),
            Err(finding) => findings.push(*finding),
        }
    }
    // What an unreadable file would have said is not missing.
    let extent = if findings.is_empty() { Extent::Whole } else { Extent::Part };
    findings.extend(sources.iter().flat_map(|source| source.findings.iter().cloned()));
    let environment = environment(&mut findings);
    if sources.is_empty() && !findings.is_empty() {
        return Err(Findings(findings));
    }
    resolve(sources, environment, extent, findings)
}

fn environment(findings: &mut Vec<Finding>) -> Vec<Variable> {
    let mut heard = Vec::new();
    for (variable, path) in ENVIRONMENT {
        match std::env::var(variable) {
            Ok(value) => heard.push(((variable, path), value)),
            Err(std::env::VarError::NotPresent) => {}
            Err(std::env::VarError::NotUnicode(_)) => findings.push(Finding {
                file: format!("${variable}"),
                line: 0,
                column: 0,
                path: path.to_owned(),
                message: "is not UTF-8".to_owned(),
                value: None,
                help: "set the variable to text, or unset it".to_owned(),
            }),
        }
    }
    heard
}

/// The same for what was read already.
fn resolve(
    sources: Vec<Source>,
    environment: Vec<Variable>,
    extent: Extent,
    mut findings: Vec<Finding>,
) -> Result<Loaded, Findings> {
    let (document, origins) = merge(sources, environment)?;
    let judged = judge::validate(&document, &origins, extent);
    findings.extend(judged.findings);
    findings.extend(checks::check(&judged.document, &origins));
    let config = serde_json::from_value::<Config>(document.clone());
    match config {
        Ok(config) if findings.is_empty() => return Ok(Loaded { config, origins }),
        Err(_) if findings.is_empty() => findings.push(unfit(&document, &origins)),
        _ => {}
    }
    findings.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
    findings.dedup();
    Err(Findings(findings))
}

/// What serde refuses although the schema takes it. That is a defect, but the operator still learns which value it is.
fn unfit(document: &Value, origins: &Origins) -> Finding {
    // serde_json does not say where; figment's reader keeps the path.
    let refused = match figment::value::Value::serialize(document) {
        Ok(value) => value.deserialize::<Config>().err(),
        Err(error) => Some(error),
    };
    let (path, kind) = refused.map_or((Vec::new(), None), |error| (error.path.clone(), Some(error.kind)));
    let pointer = path.iter().fold(String::new(), |above, key| join(&above, key));
    // Never the value that it names: that is shown, or not, as every other is.
    let message = match kind {
        Some(Kind::InvalidType(_, wanted) | Kind::InvalidValue(_, wanted) | Kind::InvalidLength(_, wanted)) => {
            format!("cannot be used: it should be {wanted}")
        }
        _ => "cannot be used".to_owned(),
    };
    let help = "write another value; the schema should have refused this one, so please report it";
    origins.finding(&pointer, message, document.pointer(&pointer), help)
}

/// One document out of all files and the environment.
fn merge(sources: Vec<Source>, environment: Vec<Variable>) -> Result<(Value, Origins), Findings> {
    let mut figment = Figment::new();
    for source in &sources {
        figment = figment.merge(source);
    }
    let mut document: Value = figment.extract().map_err(|_| {
        let origins = Origins { sources: sources.clone(), ..Origins::default() };
        let message = "cannot be merged with the files before it".to_owned();
        Findings(vec![origins.finding("", message, None, "correct the file; every section must be a map of keys")])
    })?;
    keep_last_choice(&mut document, &sources);
    let mut names: Vec<String> = Vec::new();
    for name in sources.iter().flat_map(|source| &source.order) {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    if let Some(pipelines) = document.get_mut("pipelines")
        && let Value::Object(map) = pipelines
    {
        *pipelines = names.iter().filter_map(|name| map.remove(name)).collect();
    }
    for ((_, path), value) in &environment {
        set(&mut document, path, value);
    }
    let environment = environment.into_iter().map(|(known, _)| known).collect();
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

/// Sets a value, through sections that are absent or null. A section of another type stays, for the schema to refuse.
fn set(document: &mut Value, path: &str, value: &str) {
    let mut at = document;
    let mut keys = path.split('.').peekable();
    while let Some(key) = keys.next() {
        if at.is_null() {
            *at = Value::Object(Map::new());
        }
        let Some(map) = at.as_object_mut() else { return };
        if keys.peek().is_none() {
            map.insert(key.to_owned(), json!(value));
            return;
        }
        at = map.entry(key).or_insert(Value::Null);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_serde_alone_refuses_has_its_place_and_not_its_value() {
        let text = "configVersion: v1\npipelines:\n  - name: a\n    socket: { path: /a, mode: hunter2 }\n";
        let source = Source::parse(0, "file".to_owned(), text).expect("YAML");
        let (document, origins) = merge(vec![source], Vec::new()).expect("merged");
        let finding = unfit(&document, &origins);
        assert_eq!((finding.line, finding.column), (4, 25), "{finding}");
        assert_eq!(finding.path, "pipelines[a].socket.mode");
        assert!(!finding.message.contains("hunter2"));
    }
}
