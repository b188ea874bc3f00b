//! What an unknown key was meant to be: the nearest key of its own section, or the section where it belongs.

use super::outline::Row;

/// What to make of an unknown key.
pub(super) struct Guess {
    /// The key of the same section that was meant.
    pub(super) meant: Option<String>,
    pub(super) help: String,
}

// === impl Guess ===

impl Guess {
    /// For a key that stands in a section with these keys of its own.
    pub(super) fn of(key: &str, own: &[&str], outline: &[Row]) -> Self {
        if let Some(near) = nearest(key, own.iter().copied()) {
            return Self { meant: Some(near.to_owned()), help: format!("did you mean `{near}`?") };
        }
        let help = match nearest(key, outline.iter().map(|row| row.key.as_str())) {
            Some(known) if folded(known) == folded(key) => format!("`{known}` belongs in {}", homes(known, outline)),
            Some(near) => format!("did you mean `{near}`? It belongs in {}", homes(near, outline)),
            None => "remove it; `config schema` lists every key".to_owned(),
        };
        Self { meant: None, help }
    }
}

/// The sections that have this key.
fn homes(key: &str, outline: &[Row]) -> String {
    let sections = outline.iter().filter(|row| row.key == key).map(|row| match row.section.as_str() {
        "" => "the top of the file".to_owned(),
        section => section.to_owned(),
    });
    sections.collect::<Vec<_>>().join(" or ")
}

/// The known word that a typing error made this of: at most a third of its letters differ. Letter case and separators
/// alone make the nearest of all.
pub(super) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let best = known.map(|name| (distance(&folded(word), &folded(name)), name)).min()?;
    (best.0 <= (word.chars().count() / 3).max(1)).then_some(best.1)
}

/// A word without what people write differently: `metadata_interval` is `metadataInterval`.
fn folded(word: &str) -> String {
    word.chars().filter(|c| !matches!(c, '_' | '-')).flat_map(char::to_lowercase).collect()
}

/// Insertions, deletions, replacements and swaps of neighbours between two words.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let replaced = rows[i][j] + usize::from(x != y);
            let mut least = replaced.min(rows[i][j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                least = least.min(rows[i - 1][j - 1] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{outline, schema};

    #[test]
    fn typing_errors_find_their_key() {
        let known = ["socket", "jwt", "maxCalls", "metadataInterval"];
        for (key, meant) in [
            ("sockte", Some("socket")),
            ("jtw", Some("jwt")),
            ("maxcalls", Some("maxCalls")),
            ("MaxCalls", Some("maxCalls")),
            ("metadata_interval", Some("metadataInterval")),
            ("metadataIntervall", Some("metadataInterval")),
            ("zebra", None),
        ] {
            assert_eq!(nearest(key, known.into_iter()), meant, "{key}");
        }
    }

    #[test]
    fn a_key_of_its_own_section_comes_first_and_another_is_sent_home() {
        let outline = outline::rows(&schema::whole());
        for (key, own, help) in [
            ("uidz", ["uids", "gids"], "did you mean `uids`?"),
            // As near to a key of another section, which is exactly this one.
            ("gids", ["uids", "none"], "did you mean `uids`?"),
            ("tolerance", ["activationDelay", "metadataInterval"], "`tolerance` belongs in pipelines[].health"),
            ("toleranse", ["a", "b"], "did you mean `tolerance`? It belongs in pipelines[].health"),
            ("Admin", ["a", "b"], "`admin` belongs in the top of the file"),
            ("maxItems", ["enabled", "x"], "`maxItems` belongs in pipelines[].layers.batch"),
            ("zebrafish", ["a", "b"], "remove it; `config schema` lists every key"),
        ] {
            assert_eq!(Guess::of(key, &own, &outline).help, help, "{key}");
        }
    }
}
