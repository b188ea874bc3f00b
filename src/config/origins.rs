//! Where values come from, so that a finding has its place and `config show` says who set what.

use serde_json::Value;

use super::finding::Finding;
use super::place::by_name;
use super::pointer::unescape;
use super::source::{Source, UNNAMED};

/// How much of a value is shown, in characters.
const MOST: usize = 80;

/// The files, the environment and the names of the pipelines.
#[derive(Clone, Debug, Default)]
pub(super) struct Origins {
    pub(super) sources: Vec<Source>,
    /// Variables that are set, with the key path that each sets.
    pub(super) environment: Vec<(&'static str, &'static str)>,
    /// The pipelines in the order of the document.
    pub(super) names: Vec<String>,
}

// === impl Origins ===

impl Origins {
    /// The key path as one writes it.
    fn readable(&self, pointer: &str) -> String {
        let named = by_name(pointer.to_owned(), &self.names);
        let mut text = String::new();
        for (at, part) in named.split('/').skip(1).enumerate() {
            let part = unescape(part);
            let unnamed = part.strip_prefix(UNNAMED).and_then(|rest| rest.split_once('.')).map(|(_, index)| index);
            match (at, text.as_str()) {
                (1, "pipelines") => text.push_str(&format!("[{}]", unnamed.unwrap_or(&part))),
                (0, _) => text.push_str(&part),
                _ if part.parse::<usize>().is_ok() => text.push_str(&format!("[{part}]")),
                _ => text.push_str(&format!(".{part}")),
            }
        }
        text
    }

    /// The variable that sets the value at this pointer.
    fn variable(&self, pointer: &str) -> Option<&'static str> {
        let dotted = pointer.trim_start_matches('/').replace('/', ".");
        self.environment.iter().find(|(_, path)| *path == dotted).map(|(variable, _)| *variable)
    }

    /// Whether a file says something at this pointer, whatever became of it.
    pub(super) fn says(&self, pointer: &str) -> bool {
        let named = by_name(pointer.to_owned(), &self.names);
        // `pipelines` that are no list are left out of the document, and stand in the file all the same.
        let written = named.trim_start_matches('/');
        self.sources.iter().any(|one| one.says(&named) || one.findings.iter().any(|finding| finding.path == written))
    }

    /// Where the value at this pointer comes from: a file with line, a variable, or nowhere (a default).
    pub(super) fn of(&self, pointer: &str) -> Option<String> {
        if let Some(variable) = self.variable(pointer) {
            return Some(format!("${variable}"));
        }
        let named = by_name(pointer.to_owned(), &self.names);
        let source = self.sources.iter().rev().find(|source| source.says(&named))?;
        let (line, _) = source.places.nearest(&named)?;
        Some(format!("{}:{line}", source.name))
    }

    /// A finding about the value at this pointer, in the file that has the last word on it or on what it belongs to.
    pub(super) fn finding(&self, pointer: &str, message: String, value: Option<&Value>, help: &str) -> Finding {
        let named = by_name(pointer.to_owned(), &self.names);
        let mut above = named.as_str();
        let source = loop {
            let says = |source: &&Source| !above.is_empty() && source.says(above);
            if let Some(source) = self.sources.iter().rev().find(says) {
                break Some(source);
            }
            match above.rsplit_once('/') {
                Some((next, _)) => above = next,
                None => break None,
            }
        };
        let place = source.and_then(|source| source.places.nearest(&named)).unwrap_or((0, 0));
        let file = source.or(self.sources.first());
        let (file, (line, column)) = match (self.variable(pointer), file) {
            (Some(variable), _) => (format!("${variable}"), (0, 0)),
            (None, Some(source)) => (source.name.clone(), place),
            (None, None) => ("configuration".to_owned(), place),
        };
        let secret = named.split('/').any(|part| part == "auth" || part == "fingerprint");
        Finding {
            file,
            line,
            column,
            path: self.readable(pointer),
            message,
            value: value.filter(|_| !secret).and_then(shown),
            help: help.to_owned(),
        }
    }
}

/// A value as it fits in a sentence. What could hold a secret by mistake is left out: whole sections, and the user and the
/// query of an address.
fn shown(value: &Value) -> Option<String> {
    let text = match value {
        Value::Object(_) | Value::Array(_) => return None,
        Value::String(text) => Value::from(without_credentials(text)).to_string(),
        other => other.to_string(),
    };
    Some(if text.chars().count() <= MOST { text } else { text.chars().take(MOST).chain("...".chars()).collect() })
}

fn without_credentials(text: &str) -> String {
    let (scheme, rest) = text.split_once("://").map_or(("", text), |(scheme, rest)| (&text[..scheme.len() + 3], rest));
    // The last one: a password that nobody escaped may hold more of them.
    let rest = rest.rsplit_once('@').map_or(rest.to_owned(), |(_, host)| format!("***@{host}"));
    let cut = rest.find(['?', '#']).filter(|_| !scheme.is_empty());
    match cut {
        Some(at) => format!("{scheme}{}***", &rest[..=at]),
        None => format!("{scheme}{rest}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_hold_a_secret_is_not_shown() {
        for (text, said) in [
            ("https://user:hunter2@bao:8200", "https://***@bao:8200"),
            ("https://user:hun@ter2@bao", "https://***@bao"),
            ("user:hunter2@bao", "***@bao"),
            ("https://bao/?token=hunter2", "https://bao/?***"),
            ("/a/path?", "/a/path?"),
        ] {
            assert_eq!(without_credentials(text), said);
        }
        assert_eq!(shown(&serde_json::json!(["hunter2"])), None);
        assert_eq!(shown(&serde_json::json!({ "token": "hunter2" })), None);
        assert_eq!(shown(&serde_json::json!(7)).as_deref(), Some("7"));
    }
}
