//! The configuration: examples load and validate, generated files are current, and every mistake is said with its place.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use bao_kms_provider::config::{self, Config, document, schema};
use proptest::prelude::*;
use serde_json::{Value, json};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn example(name: &str) -> PathBuf {
    root().join("config-examples").join(name)
}

fn yaml(path: &Path) -> Value {
    serde_saphyr::from_str(&std::fs::read_to_string(path).expect("a file")).expect("YAML")
}

/// Fails when a committed file is not what the program makes; `BLESS=1` writes it.
pub fn current(path: &str, made: &str) {
    let file = root().join(path);
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&file, made).expect("written");
    }
    let known = std::fs::read_to_string(&file).expect("the committed file");
    assert!(known == made, "{path} is not what the program makes; run the test once with BLESS=1");
}

#[test]
fn generated_files_are_current() {
    current("schema/bao-kms-provider.schema.json", &schema::text(&schema::whole()));
    current("schema/bao-kms-provider.overlay.schema.json", &schema::text(&schema::overlay()));
    current("config-examples/full.yaml", &document::full_example());
    current("docs/configuration.md", &document::reference());
}

#[test]
fn every_example_loads_and_validates() {
    let whole = jsonschema::validator_for(&schema::whole()).expect("the schema compiles");
    for name in ["minimal.yaml", "certificate.yaml", "full.yaml", "two-pipelines.yaml", "base.yaml"] {
        let path = example(name);
        let errors: Vec<_> = whole.iter_errors(&yaml(&path)).map(|error| error.to_string()).collect();
        assert_eq!(errors, Vec::<String>::new(), "{name}");
        config::load(std::slice::from_ref(&path)).unwrap_or_else(|findings| panic!("{name}: {findings}"));
    }
    let overlay = jsonschema::validator_for(&schema::overlay()).expect("the schema compiles");
    assert!(overlay.is_valid(&yaml(&example("node.overlay.yaml"))));
    assert!(!whole.is_valid(&yaml(&example("node.overlay.yaml"))));
    let merged = config::load(&[example("base.yaml"), example("node.overlay.yaml")]).expect("they merge").config;
    let bao_kms_provider::backend::Config::Transit(transit) = &merged.pipelines[0].backend;
    assert_eq!(transit.endpoints[0], "https://bao-near.example:8200");
    assert_eq!(transit.key, "k8s-workload-a-etcd");
    assert!(merged.admin.is_some());
}

#[test]
fn the_full_example_shows_every_key() {
    let shown = std::fs::read_to_string(example("full.yaml")).expect("full.yaml");
    let reference = document::reference();
    for row in reference.lines().filter(|line| line.starts_with("| `")) {
        let path = row.split('`').nth(1).unwrap_or_default();
        let key = path.rsplit('.').next().unwrap_or_default().trim_end_matches("[]");
        if !path.contains("auth.cert") && !key.starts_with("BAO_") {
            assert!(shown.contains(&format!("{key}:")), "{path}");
        }
    }
}

fn load_text(text: &str) -> Result<Config, String> {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("config.yaml");
    std::fs::write(&file, text).expect("written");
    config::load(&[file]).map(|loaded| loaded.config).map_err(|findings| findings.to_string())
}

fn minimal() -> String {
    std::fs::read_to_string(example("minimal.yaml")).expect("minimal.yaml")
}

#[test]
fn every_mistake_is_said_with_place_and_help() {
    let cases = [
        (
            "socket: {",
            "sockte: {",
            ":5:5: pipelines[workload-a].sockte: is no key of this section",
            "did you mean `socket`?",
        ),
        ("configVersion: v1\n", "", "configVersion: is missing", "add `configVersion`"),
        ("role: kms", "role: kms, role: b", "duplicate", "every key may stand only once"),
        ("group: openbao-kms-socket", "mode: 0660", "pipelines[workload-a].socket.mode", "quoted strings"),
        (
            "group: openbao-kms-socket",
            "mode: \"660\"",
            "socket.mode: does not have the right form (found \"660\")",
            "\"0660\"",
        ),
        ("configVersion: v1", "configVersion: v2", "configVersion", "docs/configuration.md"),
        ("https://bao.example:8200", "http://bao.example:8200", "endpoints[0]: does not have the right form", "https"),
        ("/var/lib/openbao-kms/identity.jwt", "identity.jwt", "auth.jwt.file: is a relative path", "absolute path"),
        (
            "mount: transit",
            "mount: transit\n        namespace: kms/..",
            "namespace: is not in its canonical spelling",
            "canonical",
        ),
        (
            "providerName: openbao-kms-workload-a",
            "providerName: \"a b\"",
            "providerName: does not have the right form",
            "A-Za-z0-9._-",
        ),
        (
            "    identity:",
            "    rotation: { activationDelay: 30s, metadataInterval: 30s }\n    identity:",
            "activationDelay: is shorter than twice",
            "at least twice",
        ),
        (
            "    identity:",
            "    rotation: { activationDelay: 30 }\n    identity:",
            "rotation.activationDelay: has the wrong type",
            "quoted strings",
        ),
        (
            "    identity:",
            "    rotation: { activationDelay: \"2 fortnights\" }\n    identity:",
            "activationDelay: does not have the right form",
            "30s",
        ),
        (
            "    identity:",
            "    layers: { retry: { maxAttempts: 0 } }\n    identity:",
            "layers.retry.maxAttempts",
            "docs/configuration.md",
        ),
        (
            "group: openbao-kms-socket",
            "mode: \"0666\"",
            ":5:48: pipelines[workload-a].socket.mode: is open to every user, and allowPeers is empty (found \"0666\")",
            "socket.allowPeers",
        ),
        (
            "group: openbao-kms-socket",
            "mode: \"0661\", allowPeers: { uids: [], gids: [] }",
            "socket.mode: is open to every user",
            "\"0660\"",
        ),
        (
            "configVersion: v1",
            "configVersion: v1\nadmin: { listen: \"0.0.0.0:8081\" }",
            ":3:10: admin.listen: is not loopback, and there is no tls (found \"0.0.0.0:8081\")",
            "listen on 127.0.0.1, or add admin.tls",
        ),
        (
            "configVersion: v1",
            "configVersion: v1\nadmin: { listen: \"[::]:8081\" }",
            "admin.listen: is not loopback",
            "clientCaFile",
        ),
    ];
    for (from, to, place, help) in cases {
        let text = minimal().replacen(from, to, 1);
        assert_ne!(text, minimal(), "{from} stands in the example");
        let said = load_text(&text).expect_err(&text);
        assert!(said.contains(place) && said.contains(help), "{to}\n{said}");
    }
}

#[test]
fn what_opens_a_door_to_more_than_the_api_server_is_never_a_default() {
    let config = load_text(&minimal()).expect("loads");
    assert_eq!(config.admin, None, "no port unless the file names one");
    assert_eq!(config.pipelines[0].socket.mode.bits() & 0o007, 0);
    for peers in ["uids: [ 0 ]", "gids: [ 0 ]"] {
        let listed = format!("mode: \"0666\", allowPeers: {{ {peers} }}");
        let text = minimal().replacen("group: openbao-kms-socket", &listed, 1);
        assert_eq!(load_text(&text).expect("a list says who").pipelines[0].socket.mode.bits(), 0o666);
    }
}

#[test]
fn all_findings_come_at_once_and_secrets_stay_out() {
    let text = minimal().replacen("socket: {", "socket: { mode: 7,", 1).replacen("role: kms", "role: [ hunter2 ]", 1);
    let said = load_text(&text).expect_err("two mistakes");
    assert!(said.contains("socket.mode") && said.contains("auth.jwt.role"), "{said}");
    assert!(!said.contains("hunter2"), "{said}");
}

#[test]
fn an_overlay_of_another_login_replaces_the_one_below() {
    let dir = tempfile::tempdir().expect("a folder");
    let overlay = dir.path().join("overlay.yaml");
    let text = "pipelines: [ { name: workload-a, auth: { cert: { certFile: /a.pem, keyFile: /a.key } } } ]";
    std::fs::write(&overlay, text).expect("written");
    let config = config::load(&[example("base.yaml"), overlay]).expect("they merge").config;
    assert_eq!(config.pipelines[0].auth.name(), "cert");
}

#[test]
fn what_show_prints_loads_again_as_the_same() {
    let loaded = config::load(&[example("base.yaml"), example("node.overlay.yaml")]).expect("loads");
    let shown = config::show(&loaded);
    assert!(shown.contains("node.overlay.yaml:6") && shown.contains("# default"), "{shown}");
    assert!(shown.starts_with("# fingerprint of workload-a: obf1."), "{shown}");
    assert_eq!(load_text(&shown).expect("loads again"), loaded.config);
}

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bao-kms-provider")).args(arguments).env("NO_COLOR", "1").output().expect("it runs")
}

#[test]
fn exit_codes_are_a_contract() {
    let good = example("minimal.yaml");
    let good = good.to_str().expect("text");
    let dir = tempfile::tempdir().expect("a folder");
    let bad = dir.path().join("bad.yaml");
    std::fs::write(&bad, "configVersion: v9").expect("written");
    let cases: [(&[&str], i32); 9] = [
        (&["config", "validate", "--config", good], 0),
        (&["config", "explain", "--config", good], 0),
        (&["plugins", "list", "--json"], 0),
        (&["version"], 0),
        (&["man"], 0),
        (&["config", "validate", "--config", bad.to_str().expect("text")], 3),
        (&["serve", "--config", "/nonexistent/config.yaml"], 3),
        (&["nonsense"], 2),
        (&["probe", "--socket", "/nonexistent/kms.sock"], 4),
    ];
    for (arguments, code) in cases {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let explained = String::from_utf8(run(&["config", "explain", "--config", good]).stdout).expect("text");
    let order =
        ["trace", "limits", "deadline", "aad", "coalesce", "retry", "batch", "admit", "transit", "token", "endpoint"];
    let places: Vec<_> = order.iter().map(|name| explained.find(&format!("\n    {name} ")).expect(name)).collect();
    assert!(places.is_sorted(), "{explained}");
}

#[test]
fn help_shows_an_example_and_no_colour_where_none_is_wanted() {
    for command in ["serve", "probe", "completions", "man"] {
        let output = run(&[command, "--help"]);
        let text = String::from_utf8(output.stdout).expect("text");
        assert_eq!(output.status.code(), Some(0));
        assert!(text.contains(&format!("Example:\n  bao-kms-provider {command}")), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(String::from_utf8_lossy(&run(&["completions", shell]).stdout).contains("bao-kms-provider"), "{shell}");
    }
}

#[cfg(feature = "dev")]
#[test]
fn the_quick_start_tells_its_story_and_ends() {
    let output = run(&["dev", "--once"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{text}{}", String::from_utf8_lossy(&output.stderr));
    for wanted in ["EncryptionConfiguration", "obk2.", "under key version 1", "under version 2", "kms.sock"] {
        assert!(text.contains(wanted), "{wanted}:\n{text}");
    }
    assert!(!text.contains('\u{1b}'), "{text}");
}

/// Everything that serde and the schema can be asked about a document.
fn both(document: &Value, validator: &jsonschema::Validator) -> (bool, bool) {
    (serde_json::from_value::<Config>(document.clone()).is_ok(), validator.is_valid(document))
}

/// Pointers to every value of a document.
fn pointers(value: &Value, at: &str, out: &mut Vec<String>) {
    out.push(at.to_owned());
    match value {
        Value::Object(map) => map.iter().for_each(|(key, inner)| pointers(inner, &format!("{at}/{key}"), out)),
        Value::Array(list) => list.iter().enumerate().for_each(|(i, inner)| pointers(inner, &format!("{at}/{i}"), out)),
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Mutations of shape (a key dropped, added, of another type): the schema and serde agree about each.
    #[test]
    fn schema_and_serde_agree(which in 0usize..1000, how in 0usize..6) {
        let validator = jsonschema::validator_for(&schema::whole()).expect("the schema compiles");
        let mut document = yaml(&example("full.yaml"));
        let mut all = Vec::new();
        pointers(&document, "", &mut all);
        let pointer = all[which % all.len()].clone();
        let (parent, key) = pointer.rsplit_once('/').unwrap_or(("", ""));
        match how {
            0 => {
                if let Some(map) = document.pointer_mut(parent).and_then(Value::as_object_mut) {
                    map.remove(key);
                }
            }
            1 => {
                if let Some(map) = document.pointer_mut(&pointer).and_then(Value::as_object_mut) {
                    map.insert("surprise".to_owned(), json!(1));
                }
            }
            2..=5 => {
                let other = [json!(null), json!(true), json!([[1]]), json!({ "surprise": 1 })][how - 2].clone();
                if let Some(value) = document.pointer_mut(&pointer) {
                    *value = other;
                }
            }
            _ => {}
        }
        let (serde, schema) = both(&document, &validator);
        // serde reads a sequence as a struct, field by field; the schema, which comes first, does not.
        let agree = if how == 4 { serde || !schema } else { serde == schema };
        prop_assert!(agree, "{} {}: {}", pointer, how, document);
    }
}
