//! The rules of the house, read from the sources: who may import whom, who names which crate, how long a file may be.

use std::path::{Path, PathBuf};

/// What each room may name with `crate::`, as docs/architecture.md says.
const RULES: [(&str, &[&str]); 8] = [
    ("front", &["request", "error", "units", "key", "telemetry", "front"]),
    ("layers", &["request", "error", "units", "plugin", "key", "telemetry", "auth", "layers"]),
    ("backend", &["request", "error", "units", "plugin", "plugin_choice", "http", "key", "telemetry", "backend"]),
    ("http", &["request", "error", "units", "files", "telemetry", "http"]),
    ("auth", &["request", "error", "units", "plugin_choice", "files", "telemetry", "auth"]),
    ("key", &["error", "units", "key"]),
    ("telemetry", &["request", "error", "units", "plugin", "files", "key", "telemetry"]),
    ("dev", &["dev"]),
];

/// Crates that stand in one room on the path only.
const CRATES: [(&str, &[&str]); 4] = [
    ("tonic", &["front", "telemetry"]),
    ("reqwest", &["http", "dev"]),
    ("rustls", &["http", "dev", "host", "telemetry"]),
    ("axum", &["host"]),
];

/// Each may be named by the function that composes them and by no other.
const LAYERS: [&str; 10] =
    ["trace", "limits", "deadline", "aad", "coalesce", "retry", "batch", "admit", "token", "endpoint"];

/// Words that mean a way to the API server: it waits for us when it starts, so that we must never wait for it.
const API_SERVER: [&str; 4] = ["serviceaccount", "kubernetes_service", "k8s_openapi", "kubeconfig"];

/// The longest a file may be without its tests.
const LONGEST: usize = 400;

fn sources(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            out.push(path);
        }
    }
}

/// Every source file of a room, with the code above its tests.
fn room(name: &str) -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(name), &mut files);
    files.retain(|path| {
        let name = path.file_name().expect("a name").to_string_lossy();
        !name.ends_with("_tests.rs") && name != "tests.rs" && name != "testing.rs" && name != "v2.rs"
    });
    files
        .into_iter()
        .map(|path| {
            let text = std::fs::read_to_string(&path).expect("a source");
            let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned();
            (path, code)
        })
        .collect()
}

/// The words that follow `crate::` in code, comments left out.
fn imports(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in code.lines().filter(|line| !line.trim_start().starts_with("//")) {
        for (at, _) in line.match_indices("crate::") {
            let rest = &line[at + "crate::".len()..];
            if let Some(group) = rest.strip_prefix('{') {
                let inner = group.split('}').next().unwrap_or_default();
                found
                    .extend(inner.split(',').map(|part| part.trim().split("::").next().unwrap_or_default().to_owned()));
            } else {
                found.push(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
            }
        }
    }
    found.retain(|word| !word.is_empty());
    found
}

#[test]
fn rooms_import_what_they_may() {
    for (name, allowed) in RULES {
        for (path, code) in room(name) {
            for import in imports(&code) {
                assert!(allowed.contains(&import.as_str()), "{} names crate::{import}", path.display());
            }
        }
    }
}

#[test]
fn only_token_knows_auth_and_no_layer_knows_another() {
    for plugin in bao_kms_provider::layers::TABLE {
        assert!(LAYERS.contains(&plugin.name), "{} is a layer that the rule below does not look for", plugin.name);
    }
    for (path, code) in room("layers") {
        let own = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let composes = own == "mod" && path.parent().is_some_and(|folder| folder.ends_with("layers"));
        if own != "token" && !composes {
            assert!(!imports(&code).iter().any(|word| word == "auth"), "{} names auth", path.display());
        }
        for other in LAYERS.iter().filter(|other| **other != own && !composes) {
            for path_of_other in [format!("super::{other}::"), format!("layers::{other}::")] {
                let inside = path.parent().is_some_and(|folder| folder.ends_with(other));
                assert!(inside || !code.contains(&path_of_other), "{} names the layer {other}", path.display());
            }
        }
    }
}

#[test]
fn crates_stay_in_their_rooms() {
    for (krate, rooms) in CRATES {
        for name in ["front", "layers", "backend", "http", "auth", "key", "telemetry", "host", "config", "cli"] {
            if rooms.contains(&name) {
                continue;
            }
            for (path, code) in room(name) {
                let named = code.lines().any(|line| {
                    let line = line.trim_start();
                    !line.starts_with("//")
                        && (line.contains(&format!("{krate}::")) || line.starts_with(&format!("use {krate}")))
                        && !line.contains(&format!("_{krate}::"))
                });
                assert!(!named, "{} names the crate {krate}", path.display());
            }
        }
    }
}

#[test]
fn nothing_asks_the_api_server_that_waits_for_us() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    // The lock file, so that no dependency brings one along either.
    let lock = std::fs::read_to_string(root.join("Cargo.lock")).expect("the lock file");
    let names: Vec<_> = lock.lines().filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"')).collect();
    assert!(names.contains(&"tonic"), "the lock file is read");
    for name in names {
        let asks = name == "kube" || name.starts_with("kube-") || name.starts_with("k8s-");
        assert!(!asks, "{name} is a client of the API server");
    }
    let mut files = Vec::new();
    sources(&root.join("src"), &mut files);
    for path in files {
        let text = std::fs::read_to_string(&path).expect("a source").to_lowercase();
        for word in API_SERVER {
            assert!(!text.contains(word), "{} speaks of {word}", path.display());
        }
    }
}

#[test]
fn files_have_one_idea_each() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for folder in ["src", "tests", "fuzz", "benches"] {
        sources(&root.join(folder), &mut files);
    }
    for path in files.iter().filter(|path| !path.ends_with("v2.rs")) {
        let text = std::fs::read_to_string(path).expect("a source");
        let lines = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default().lines().count();
        assert!(lines <= LONGEST, "{} has {lines} lines", path.display());
        let target = path.parent().is_some_and(|folder| folder.ends_with("fuzz_targets"));
        assert!(target || text.starts_with("//!"), "{} does not say what it promises", path.display());
    }
}
