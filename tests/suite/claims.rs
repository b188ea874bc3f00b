//! What the pages of the book claim, as far as a machine can check it: links lead somewhere, each test that is named is a
//! test, each metric, event and word is one that the program has.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use bao_kms_provider::error::Class;
use bao_kms_provider::telemetry::events;

/// Which words of docs/failure.md say what kube-apiserver sees; the page explains each.
const SEEN: [&str; 4] = ["untouched", "waiting", "closing", "coasting"];

/// Name and text of every page.
fn pages() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages: Vec<_> = std::fs::read_dir(root.join("docs")).expect("docs").flatten().map(|e| e.path()).collect();
    pages.push(root.join("README.md"));
    pages.retain(|page| page.extension().is_some_and(|extension| extension == "md"));
    pages.into_iter().map(|page| (page.clone(), std::fs::read_to_string(page).expect("a page"))).collect()
}

fn page(name: &str) -> String {
    let found = pages().into_iter().find(|(path, _)| path.ends_with(format!("docs/{name}")));
    found.unwrap_or_else(|| panic!("docs/{name} is missing")).1
}

/// The rows of every table whose last column is headed `test`, as cells.
fn shown(text: &str) -> Vec<Vec<String>> {
    let (mut rows, mut inside) = (Vec::new(), false);
    for line in text.lines() {
        let Some(row) = line.strip_prefix("| ").and_then(|line| line.strip_suffix(" |")) else {
            inside = inside && line.starts_with("|---");
            continue;
        };
        let cells: Vec<_> = row.split(" | ").map(str::to_owned).collect();
        match cells.last() {
            Some(last) if last == "test" => inside = true,
            _ if inside => rows.push(cells),
            _ => {}
        }
    }
    rows
}

/// What stands between backticks.
fn code(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// The functions that are tests, of every source.
fn tests() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut tests, mut folders) = (BTreeSet::new(), vec![root.join("tests"), root.join("src")]);
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).expect("a folder").flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(path).expect("a source");
                let mut marked = false;
                for line in text.lines().map(str::trim) {
                    if let Some((_, rest)) = line.split_once("fn ").filter(|_| marked) {
                        tests.insert(rest.split('(').next().unwrap_or_default().to_owned());
                    }
                    let attribute = line.starts_with("#[") || line.starts_with("//");
                    marked = line == "#[test]" || line.starts_with("#[tokio::test") || (marked && attribute);
                }
            }
        }
    }
    tests
}

#[test]
fn links_between_pages_lead_somewhere() {
    for (page, text) in pages() {
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = link.split('#').next().unwrap_or_default();
            if path.is_empty() || link.contains("://") {
                continue;
            }
            let target = page.parent().expect("a folder").join(path);
            assert!(target.exists(), "{}: {link}", page.display());
        }
    }
}

#[test]
fn every_page_is_in_the_table_of_contents() {
    let contents = page("README.md");
    for (path, _) in pages() {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        assert!(name == "README.md" || contents.contains(&format!("]({name})")), "docs/README.md does not list {name}");
    }
}

#[test]
fn every_test_that_a_page_names_is_a_test() {
    let tests = tests();
    assert!(tests.contains("every_test_that_a_page_names_is_a_test"), "tests are found");
    for (name, least) in [("failure.md", 40), ("rotation.md", 8), ("recovery.md", 8)] {
        let rows = shown(&page(name));
        assert!(rows.len() >= least, "docs/{name}: {} rows", rows.len());
        for row in rows {
            let last = row.last().expect("a last cell");
            assert!(!code(last).is_empty(), "docs/{name} names no test for: {}", row[0]);
            for test in code(last) {
                assert!(tests.contains(test), "docs/{name} names {test}, which is no test");
            }
        }
    }
}

#[test]
fn every_metric_that_a_page_names_is_one() {
    let metrics: BTreeSet<_> = super::pages::metrics().into_iter().map(|row| row.0).collect();
    let mut named = BTreeSet::new();
    for (path, text) in pages() {
        for (at, _) in text.match_indices("bao_kms_") {
            let name: String = text[at..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            // What Prometheus makes of a histogram.
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
            let known = metrics.contains(&name) || base.is_some_and(|base| metrics.contains(base));
            assert!(known || name == "bao_kms_provider", "{}: {name} is no metric", path.display());
            named.insert(name);
        }
    }
    assert!(named.len() > 25, "{named:?}");
}

/// One row for each fault, each cell in words that mean something.
#[test]
fn every_row_of_the_failure_page_is_whole() {
    let text = page("failure.md");
    for word in SEEN {
        assert!(text.contains(&format!("| *{word}* |")), "{word} is not explained");
    }
    let statuses: BTreeSet<_> = Class::ALL.iter().map(|class| class.name()).chain(["ok"]).collect();
    let mut faults = BTreeSet::new();
    for row in shown(&text) {
        let [fault, seen, status, moves, _, _] = &row[..] else { panic!("{} cells: {row:?}", row.len()) };
        assert!(faults.insert(fault.clone()), "twice: {fault}");
        assert!(SEEN.iter().any(|word| seen.starts_with(word)), "{fault}: kube-apiserver sees {seen}");
        let said = code(status);
        assert!(!said.is_empty() || status == "nobody answers", "{fault}: Status says {status}");
        for word in said.iter().filter(|word| !word.contains('.')) {
            assert!(statuses.contains(word), "{fault}: Status never says {word}");
        }
        let events: BTreeSet<_> = events::ALL.iter().map(|(name, _)| *name).collect();
        let moved = code(moves);
        let fits = |word: &&str| word.starts_with("bao_kms_") || events.contains(word);
        assert!(!moved.is_empty() || moves.starts_with("none"), "{fault}: {moves}");
        assert!(moved.iter().all(fits), "{fault}: {moves} is neither a metric nor an event");
    }
}
