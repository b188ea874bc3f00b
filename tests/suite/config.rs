//! The configuration: examples load and validate, generated files are current, and schema, structs, tables and pages say
//! the same.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use bao_kms_provider::config::{self, Config, Finding, document, schema};
use bao_kms_provider::plugin::Plugin;
use bao_kms_provider::{auth, backend, host, layers};
use proptest::prelude::*;
use serde_json::{Value, json};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn example(name: &str) -> PathBuf {
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

/// Key paths as the reference page writes them, with the values that stand there.
fn paths(value: &Value, at: &str, out: &mut Vec<(String, Value)>) {
    for (key, inner) in value.as_object().into_iter().flatten() {
        let path = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
        match inner {
            Value::Array(list) if list.iter().any(Value::is_object) => {
                out.push((format!("{path}[]"), Value::Null));
                list.iter().for_each(|element| paths(element, &format!("{path}[]"), out));
            }
            inner => {
                out.push((path.clone(), inner.clone()));
                paths(inner, &path, out);
            }
        }
    }
}

/// Rows of the reference page: path, default, meaning.
fn reference() -> Vec<(String, String, String)> {
    let page = document::reference();
    let rows = page.lines().filter(|line| line.starts_with("| `") && !line.contains("`BAO_"));
    let cells = |line: &str| line.split(" | ").map(|cell| cell.trim_matches(['|', ' ']).to_owned()).collect::<Vec<_>>();
    rows.map(|line| match cells(line).as_slice() {
        [path, default, meaning @ ..] => {
            let default = default.trim_matches('`').to_owned();
            (path.split('`').nth(1).expect("a path").to_owned(), default, meaning.join(" | "))
        }
        other => panic!("{other:?}"),
    })
    .collect()
}

#[test]
fn the_full_example_shows_every_key_with_its_default() {
    let text = std::fs::read_to_string(example("full.yaml")).expect("full.yaml");
    // The other choices stand there as comments.
    let text: String = text.lines().map(|line| line.replacen("#| ", "", 1) + "\n").collect();
    let mut shown = Vec::new();
    paths(&serde_saphyr::from_str(&text).expect("YAML"), "", &mut shown);
    let rows = reference();
    let known: Vec<_> = rows.iter().map(|(path, ..)| path).collect();
    let there: Vec<_> = shown.iter().map(|(path, _)| path).collect();
    for path in &known {
        assert!(there.contains(path), "full.yaml does not show {path}");
    }
    for path in &there {
        assert!(known.contains(path), "nobody knows {path}");
    }
    let mut compared = 0;
    for (path, default, _) in rows.iter().filter(|(_, default, _)| !default.is_empty()) {
        let value = &shown.iter().find(|(shown, _)| shown == path).expect("found above").1;
        assert_eq!(&value.to_string(), default, "{path}");
        compared += 1;
    }
    assert!(compared > 20, "{compared}");
}

#[test]
fn what_a_comment_calls_the_default_is_the_default() {
    let mut compared = 0;
    for (path, default, meaning) in reference() {
        let Some((_, said)) = meaning.split_once("Default ") else { continue };
        let said = said.split(['.', ' ']).next().unwrap_or_default().trim_matches('"');
        let value = default.trim_matches('"');
        let same = said.parse::<f64>().ok().zip(value.parse::<f64>().ok()).map_or(said == value, |(a, b)| a == b);
        assert!(same, "{path}: the comment says {said}, the program does {value}");
        compared += 1;
    }
    assert!(compared > 15, "{compared}");
}

#[test]
fn the_schema_knows_the_choices_of_the_tables() {
    let schema = schema::whole();
    let names = |table: &[Plugin]| table.iter().map(|row| row.name.to_owned()).collect::<BTreeSet<_>>();
    for (section, table) in [("Auth", auth::Config::TABLE), ("Backend", backend::Config::TABLE)] {
        let properties = schema["$defs"][section]["properties"].as_object().expect("a choice");
        assert_eq!(properties.keys().cloned().collect::<BTreeSet<_>>(), names(table), "{section}");
    }
    let properties = schema["$defs"]["Layers"]["properties"].as_object().expect("layers");
    assert!(properties.keys().all(|key| names(layers::TABLE).contains(key)));
}

#[test]
fn the_table_of_layers_has_the_order_of_the_stack() {
    let text = std::fs::read_to_string(root().join("src/layers/mod.rs")).expect("the source");
    let made = |line: &str, opening: &str| {
        let module = line.split(opening).nth(1)?.split("::").next()?;
        module.chars().all(char::is_alphanumeric).then(|| module.to_owned())
    };
    let mut order: Vec<_> = text.lines().filter_map(|line| made(line, ".layer_fn(|inner| ")).collect();
    order.extend(text.lines().filter_map(|line| made(line, "BaoService::new(")));
    // Made for each address, and led to by what stands above.
    order.push("endpoint".to_owned());
    assert_eq!(order, layers::TABLE.iter().map(|layer| layer.name).collect::<Vec<_>>());
}

#[test]
fn the_label_of_a_pipeline_is_not_in_its_fingerprint() {
    let config = load_text(&minimal()).expect("it loads");
    let renamed = load_text(&minimal().replace("name: workload-a", "name: another")).expect("it loads");
    let other = load_text(&minimal().replace("k8s-workload-a-etcd", "another")).expect("it loads");
    let fingerprint = |config: &Config| host::fingerprint(&config.pipelines[0]);
    assert_eq!(fingerprint(&config), fingerprint(&renamed));
    assert_ne!(fingerprint(&config), fingerprint(&other));
}

/// What a file with this text leads to.
pub fn load(text: &str) -> Result<Config, Vec<Finding>> {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("config.yaml");
    std::fs::write(&file, text).expect("written");
    config::load(&[file]).map(|loaded| loaded.config).map_err(|findings| findings.0)
}

/// The same, with the findings as they are printed.
pub fn load_text(text: &str) -> Result<Config, String> {
    load(text).map_err(|findings| findings.iter().map(|finding| format!("{finding}\n")).collect())
}

pub fn minimal() -> String {
    std::fs::read_to_string(example("minimal.yaml")).expect("minimal.yaml")
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

/// Values at and beyond the edges of what may stand somewhere.
fn odd_values() -> Vec<Value> {
    let long = "x".repeat(2_000);
    vec![
        json!(""),
        json!("x"),
        json!("a b"),
        json!("/"),
        json!("/a"),
        json!(long),
        json!("\u{0}"),
        json!("\u{fc}"),
        json!("0660"),
        json!("0899"),
        json!("660"),
        json!("0s"),
        json!("1500ms"),
        json!("999999999h"),
        json!("9h "),
        json!("1234567890s"),
        json!("999.0.0.1:99999"),
        json!("127.0.0.1:65536"),
        json!("127.0.0.1:065535"),
        json!("127.0.0.1:0"),
        json!("010.0.0.1:1"),
        json!("[::1]:1"),
        json!("[:::1]:1"),
        json!("[1:2:3:4:5:6:7:8:9]:1"),
        json!("[1:2:3:4:5:6:7::]:1"),
        json!("[12345::]:1"),
        json!("[::1.2.3.4]:80"),
        json!("https://[::1]:1"),
        json!("v1"),
        json!("json"),
        json!("coast"),
        json!(0),
        json!(-1),
        json!(1),
        json!(2),
        json!(10),
        json!(11),
        json!(240),
        json!(241),
        json!(1_024),
        json!(1_025),
        json!(65_536),
        json!(65_537),
        json!(4_294_967_295_u64),
        json!(4_294_967_296_u64),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(0.5),
        json!(1.0),
        json!(8_192.0),
        json!(-0.0),
        json!(1e15),
        json!(1e300),
        json!([]),
        json!([""]),
        json!([0, 1]),
        json!([4_294_967_296_u64]),
        json!([-1]),
        json!([1.0]),
        json!({}),
        json!(false),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

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

    /// Mutations of value: whatever the schema takes the loader can use, and what it refuses has a finding with a path.
    #[test]
    fn what_the_schema_takes_serde_takes(which in 0usize..1000, value in 0usize..1000) {
        let validator = jsonschema::validator_for(&schema::whole()).expect("the schema compiles");
        let mut document = yaml(&example("full.yaml"));
        let mut all = Vec::new();
        pointers(&document, "", &mut all);
        let (pointer, odd) = (&all[1 + which % (all.len() - 1)], odd_values());
        *document.pointer_mut(pointer).expect("there") = odd[value % odd.len()].clone();
        match load(&document.to_string()) {
            Ok(_) => prop_assert!(validator.is_valid(&document), "{} {}", pointer, document),
            Err(findings) => for finding in findings {
                prop_assert!(!finding.help.contains("report it"), "{}: {}", pointer, finding);
                prop_assert!(finding.line > 0 && !finding.path.is_empty(), "{}: {}", pointer, finding);
            }
        }
    }
}
