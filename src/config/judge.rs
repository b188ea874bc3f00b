//! A document against the schema: everything in which it differs, each difference once, with a sentence that helps.

use boon::{Compiler, ErrorKind, SchemaIndex, Schemas, Type, Types, ValidationError};
use serde_json::Value;

use super::finding::Finding;
use super::nearest::{Guess, nearest};
use super::origins::Origins;
use super::outline::{self, Row};
use super::pointer::join;
use super::schema;
use crate::units;

/// The address under which the compiler knows the schema; nothing is fetched.
const NAME: &str = "bao-kms-provider.schema.json";
/// Where to look when there is nothing better to say.
const REFERENCE: &str = "docs/configuration.md says what may stand here";

/// Whether all of the configuration could be read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// What is required and not there is missing.
    Whole,
    /// A file could not be read: it may have held what is not there.
    Part,
}

/// What became of a document.
pub(super) struct Judged {
    pub(super) findings: Vec<Finding>,
    /// The document as it was probably meant, for the checks that follow: misspelt keys under their right names, other
    /// unknown keys left out.
    pub(super) document: Value,
}

/// Everything in which a document differs from the schema.
pub(super) fn validate(document: &Value, origins: &Origins, extent: Extent) -> Judged {
    let schema = if extent == Extent::Whole { schema::whole() } else { schema::overlay() };
    let mut judge = Judge {
        outline: outline::rows(&schema),
        schema: &schema,
        document,
        origins,
        findings: Vec::new(),
        missing: Vec::new(),
        unknown: Vec::new(),
    };
    let mut schemas = Schemas::new();
    match compile(&schema, &mut schemas) {
        Ok(index) => {
            if let Err(error) = schemas.validate(document, index) {
                judge.collect(&error);
            }
        }
        Err(error) => {
            let help = "this is a defect of the program; please report it";
            judge.findings.push(origins.finding("", format!("the schema does not compile: {error}"), None, help));
        }
    }
    judge.finish()
}

fn compile(schema: &Value, schemas: &mut Schemas) -> Result<SchemaIndex, String> {
    let mut compiler = Compiler::new();
    compiler.add_resource(NAME, schema.clone()).map_err(|error| error.to_string())?;
    compiler.compile(NAME, schemas).map_err(|error| error.to_string())
}

struct Judge<'a> {
    schema: &'a Value,
    outline: Vec<Row>,
    document: &'a Value,
    origins: &'a Origins,
    findings: Vec<Finding>,
    /// Sections with a key that they must have.
    missing: Vec<(String, String)>,
    /// Sections with a key that they do not know, and what was meant.
    unknown: Vec<(String, String, Option<String>)>,
}

// === impl Judge ===

impl Judge<'_> {
    fn collect(&mut self, error: &ValidationError<'_, '_>) {
        let at = error.instance_location.to_string();
        match &error.kind {
            ErrorKind::OneOf(_) | ErrorKind::Enum { .. } if self.words(error).is_some() => self.tell(&at, error),
            // An optional section is this or null. Who wrote something did not mean null.
            ErrorKind::AnyOf => {
                error.causes.iter().filter(|cause| !wants_null(cause)).for_each(|one| self.collect(one))
            }
            _ if error.causes.is_empty() => self.tell(&at, error),
            _ => error.causes.iter().for_each(|cause| self.collect(cause)),
        }
    }

    /// The part of the schema that refused.
    fn part(&self, error: &ValidationError<'_, '_>) -> &Value {
        let pointer = error.schema_url.split_once('#').map_or("", |(_, pointer)| pointer);
        self.schema.pointer(pointer).unwrap_or(&Value::Null)
    }

    fn words(&self, error: &ValidationError<'_, '_>) -> Option<Vec<String>> {
        outline::words(self.part(error))
    }

    /// The keys that the section may have.
    fn own<'s>(&'s self, error: &ValidationError<'_, '_>) -> Vec<&'s str> {
        let properties = self.part(error).get("properties").and_then(Value::as_object);
        properties.map(|map| map.keys().map(String::as_str).collect()).unwrap_or_default()
    }

    fn tell(&mut self, at: &str, error: &ValidationError<'_, '_>) {
        let value = self.document.pointer(at);
        let (message, shown, help) = match &error.kind {
            ErrorKind::AdditionalProperties { got } => {
                for key in got {
                    let guess = Guess::of(key, &self.own(error), &self.outline);
                    let message = "is no key of this section".to_owned();
                    // Nobody knows what stands under an unknown key: a token, perhaps.
                    self.findings.push(self.origins.finding(&join(at, key), message, None, &guess.help));
                    self.unknown.push((at.to_owned(), key.to_string(), guess.meant));
                }
                return;
            }
            ErrorKind::Required { want } => {
                // Without a name it is not known which pipeline this is, so nothing else of it is known to be missing.
                let name = want.iter().filter(|key| at.starts_with("/pipelines/") && **key == "name");
                let nameless = name.count() > 0;
                let keys = want.iter().filter(|key| !nameless || **key == "name");
                self.missing.extend(keys.map(|key| (at.to_owned(), (*key).to_owned())));
                return;
            }
            ErrorKind::Pattern { want, .. } => {
                let help = units::form(want).map_or_else(|| format!("it must fit {want}"), str::to_owned);
                ("does not have the right form".to_owned(), value, help)
            }
            ErrorKind::Type { want, .. } => {
                // Where a section belongs, a single word may be anything: a token, perhaps.
                let section = want.iter().all(|kind| matches!(kind, Type::Object | Type::Array | Type::Null));
                let help = self.type_help(*want, value, error);
                (format!("has the wrong type: {}", error.kind), value.filter(|_| !section), help)
            }
            ErrorKind::OneOf(_) | ErrorKind::Enum { .. } | ErrorKind::Const { .. } => {
                let words = match &error.kind {
                    // The validator leaves the choice out when it has one word only.
                    ErrorKind::Const { want } => want.as_str().map(str::to_owned).into_iter().collect(),
                    _ => self.words(error).unwrap_or_default(),
                };
                let near =
                    value.and_then(Value::as_str).and_then(|word| nearest(word, words.iter().map(String::as_str)));
                let help = match near {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("write one of {}", quoted(words.iter().map(String::as_str))),
                };
                ("is no word of this key".to_owned(), value, help)
            }
            ErrorKind::MinProperties { .. } | ErrorKind::MaxProperties { .. } => {
                let help = format!("keep exactly one of {}", quoted(self.own(error).into_iter()));
                ("is a choice of one".to_owned(), None, help)
            }
            kind => (kind.to_string(), value, REFERENCE.to_owned()),
        };
        self.findings.push(self.origins.finding(at, message, shown, &help));
    }

    fn type_help(&self, want: Types, value: Option<&Value>, error: &ValidationError<'_, '_>) -> String {
        let wants = |kind: Type| want.contains(kind);
        let pattern = self.part(error).get("pattern").and_then(Value::as_str);
        match value {
            Some(Value::Null) => "give it a value, or take the key out".to_owned(),
            Some(Value::Number(_) | Value::Bool(_)) if wants(Type::String) => match pattern.and_then(units::form) {
                Some(form) => form.to_owned(),
                None => "put it in quotes".to_owned(),
            },
            Some(Value::String(text)) if wants(Type::Integer) || wants(Type::Number) => match text.parse::<f64>() {
                Ok(_) => "write the number without quotes".to_owned(),
                Err(_) => "write a number, without quotes and without a unit".to_owned(),
            },
            _ if wants(Type::Boolean) => "write true or false, without quotes".to_owned(),
            _ if wants(Type::Array) => "write a list: [ a, b ], or a line with `- ` for each".to_owned(),
            _ if wants(Type::Object) => match self.own(error).as_slice() {
                [] => REFERENCE.to_owned(),
                own => format!("write a section here, with keys out of {}", quoted(own.iter().copied())),
            },
            _ => REFERENCE.to_owned(),
        }
    }

    fn finish(mut self) -> Judged {
        for (section, key) in &self.missing {
            let pointer = join(section, key);
            let misspelt = |one: &(String, String, Option<String>)| one.0 == *section && one.2.as_ref() == Some(key);
            // One mistake, one finding: under another name, or of a shape that was refused before.
            if self.unknown.iter().any(misspelt) || self.origins.says(&pointer) {
                continue;
            }
            let help = if key == "name" && section.starts_with("/pipelines/") {
                "give each pipeline a `name`; overlays meet it by that".to_owned()
            } else {
                format!("add `{key}`; docs/configuration.md says what it is")
            };
            self.findings.push(self.origins.finding(&pointer, "is missing".to_owned(), None, &help));
        }
        let mut document = self.document.clone();
        for (section, key, meant) in self.unknown {
            let Some(map) = document.pointer_mut(&section).and_then(Value::as_object_mut) else { continue };
            if let (Some(value), Some(meant)) = (map.shift_remove(&key), meant)
                && !map.contains_key(&meant)
            {
                map.insert(meant, value);
            }
        }
        Judged { findings: self.findings, document }
    }
}

/// Whether this branch would have taken null and nothing else.
fn wants_null(error: &ValidationError<'_, '_>) -> bool {
    match &error.kind {
        ErrorKind::Type { want, .. } => want.iter().all(|kind| kind == Type::Null),
        _ => !error.causes.is_empty() && error.causes.iter().all(wants_null),
    }
}

fn quoted<'a>(words: impl Iterator<Item = &'a str>) -> String {
    words.map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}
