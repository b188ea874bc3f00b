//! Where each key of a file stands. The values come from the strict YAML reader; the places come from the events of the
//! same parser, keyed by path, with the elements of `pipelines` under their names.

use std::collections::HashMap;

use serde_saphyr::granit_parser::{Event, Parser};

/// Line and column, both from 1.
pub(super) type Place = (usize, usize);

/// Path, segments joined by `/`, to place.
#[derive(Clone, Debug, Default)]
pub(super) struct Places(HashMap<String, Place>);

/// One open collection.
enum Open {
    Map { path: String, key: Option<(String, Place)>, named: Option<String> },
    List { path: String, next: usize },
}

// === impl Places ===

impl Places {
    /// The places of a text that the strict reader has accepted; of any other text, those before the fault.
    pub(super) fn of(text: &str) -> Self {
        let mut found: Vec<(String, Place)> = Vec::new();
        let mut open: Vec<Open> = Vec::new();
        let mut names: HashMap<String, String> = HashMap::new();
        for event in Parser::new_from_str(text) {
            let Ok((event, span)) = event else { break };
            let place = (span.start.line(), span.start.col() + 1);
            match event {
                Event::MappingStart(..) => {
                    let path = step(&mut open, place, &mut found, None);
                    open.push(Open::Map { path, key: None, named: None });
                }
                Event::SequenceStart(..) => {
                    let path = step(&mut open, place, &mut found, None);
                    open.push(Open::List { path, next: 0 });
                }
                Event::MappingEnd => {
                    if let Some(Open::Map { path, named: Some(name), .. }) = open.pop() {
                        names.insert(path, name);
                    }
                }
                Event::SequenceEnd => {
                    open.pop();
                }
                Event::Scalar(text, ..) => {
                    step(&mut open, place, &mut found, Some(&text));
                }
                Event::Alias(..) => {
                    step(&mut open, place, &mut found, None);
                }
                _ => {}
            }
        }
        Self(found.into_iter().map(|(path, place)| (by_name(&path, &names), place)).collect())
    }

    /// The place of a path, or of the nearest thing above it.
    pub(super) fn nearest(&self, path: &str) -> Option<(Place, bool)> {
        if let Some(place) = self.0.get(path) {
            return Some((*place, true));
        }
        let (above, _) = path.rsplit_once('/')?;
        self.nearest(above).map(|(place, _)| (place, false))
    }

    /// Whether the file says something at this very path.
    pub(super) fn has(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }

    /// The place of this very path.
    pub(super) fn at(&self, path: &str) -> Option<Place> {
        self.0.get(path).copied()
    }
}

/// Takes one node into the collection that is open; returns its path. A scalar in the place of a key becomes the key.
fn step(open: &mut [Open], place: Place, found: &mut Vec<(String, Place)>, scalar: Option<&str>) -> String {
    match open.last_mut() {
        None => String::new(),
        Some(Open::List { path, next }) => {
            let path = format!("{path}/{next}");
            *next += 1;
            found.push((path.clone(), place));
            path
        }
        Some(Open::Map { path, key, named }) => match key.take() {
            None => {
                *key = Some((scalar.unwrap_or_default().to_owned(), place));
                path.clone()
            }
            Some((name, at)) => {
                if let (true, Some(value)) = (name == "name", scalar) {
                    *named = Some(value.to_owned());
                }
                let path = format!("{path}/{name}");
                found.push((path.clone(), at));
                path
            }
        },
    }
}

/// `/pipelines/0/...` becomes `/pipelines/<name>/...`.
fn by_name(path: &str, names: &HashMap<String, String>) -> String {
    let mut parts = path.splitn(4, '/').skip(1);
    if let (Some("pipelines"), Some(index)) = (parts.next(), parts.next())
        && let Some(name) = names.get(&format!("/pipelines/{index}"))
    {
        return match parts.next() {
            Some(rest) => format!("/pipelines/{name}/{rest}"),
            None => format!("/pipelines/{name}"),
        };
    }
    path.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_their_places() {
        let places =
            Places::of("configVersion: v1\npipelines:\n  - socket: { path: /a, mode: \"0660\" }\n    name: x\n");
        assert_eq!(places.at("/configVersion"), Some((1, 1)));
        assert_eq!(places.at("/pipelines/x/socket/mode"), Some((3, 25)));
        assert_eq!(places.nearest("/pipelines/x/socket/none/below"), Some(((3, 5), false)));
        assert!(!places.has("/admin"));
    }
}
