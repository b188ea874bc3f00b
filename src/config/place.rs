//! Where each key of a file stands. The values come from the strict YAML reader; the places come from the events of the
//! same parser, keyed by JSON pointer, with the elements of `pipelines` under their names.

use std::collections::HashMap;

use serde_saphyr::granit_parser::{Event, Parser};

use super::pointer::join;

/// Line and column, both from 1.
pub(super) type Place = (usize, usize);

/// Pointer to place.
#[derive(Clone, Debug, Default)]
pub(super) struct Places(HashMap<String, Place>);

/// One open collection.
enum Open {
    Map { path: String, key: Option<(String, Place)> },
    List { path: String, next: usize },
}

// === impl Places ===

impl Places {
    /// The places of a text that the strict reader has accepted; of any other text, those before the fault. `names` are
    /// those of its pipelines, in order.
    pub(super) fn of(text: &str, names: &[String]) -> Self {
        let mut found: Vec<(String, Place)> = Vec::new();
        let mut open: Vec<Open> = Vec::new();
        for event in Parser::new_from_str(text) {
            let Ok((event, span)) = event else { break };
            let place = (span.start.line(), span.start.col() + 1);
            match event {
                Event::MappingStart(..) => {
                    let path = step(&mut open, place, &mut found, None);
                    open.push(Open::Map { path, key: None });
                }
                Event::SequenceStart(..) => {
                    let path = step(&mut open, place, &mut found, None);
                    open.push(Open::List { path, next: 0 });
                }
                Event::MappingEnd | Event::SequenceEnd => {
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
        Self(found.into_iter().map(|(path, place)| (by_name(path, names), place)).collect())
    }

    /// The place of a pointer, or of the nearest thing above it: what an anchor brought in stands where its alias does.
    pub(super) fn nearest(&self, pointer: &str) -> Option<Place> {
        if let Some(place) = self.0.get(pointer) {
            return Some(*place);
        }
        let (above, _) = pointer.rsplit_once('/')?;
        self.nearest(above)
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
        Some(Open::Map { path, key }) => match key.take() {
            None => {
                *key = Some((scalar.unwrap_or_default().to_owned(), place));
                path.clone()
            }
            Some((name, at)) => {
                let path = join(path, &name);
                found.push((path.clone(), at));
                path
            }
        },
    }
}

/// `/pipelines/0/...` becomes `/pipelines/<name>/...`.
pub(super) fn by_name(pointer: String, names: &[String]) -> String {
    let Some(rest) = pointer.strip_prefix("/pipelines/") else { return pointer };
    let (index, below) = rest.split_once('/').map_or((rest, None), |(index, below)| (index, Some(below)));
    let Some(name) = index.parse::<usize>().ok().and_then(|index| names.get(index)) else { return pointer };
    let named = join("/pipelines", name);
    below.map_or_else(|| named.clone(), |below| format!("{named}/{below}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_their_places() {
        let text = "configVersion: v1\npipelines:\n  - socket: { path: /a, mode: \"0660\" }\n    name: x\n    a/b: 1\n";
        let places = Places::of(text, &["x".to_owned()]);
        assert_eq!(places.nearest("/configVersion"), Some((1, 1)));
        assert_eq!(places.nearest("/pipelines/x/socket/mode"), Some((3, 25)));
        assert_eq!(places.nearest("/pipelines/x/socket/none/below"), Some((3, 5)));
        assert_eq!(places.nearest("/pipelines/x/a~1b"), Some((5, 5)));
        assert_eq!(places.nearest("/admin"), None);
    }
}
