//! What is generated from the schema for people: the reference page and the example that shows every key.

use serde_json::{Map, Value, json};

use super::outline::{self, resolve};
use super::schema;

/// `docs/configuration.md`.
pub fn reference() -> String {
    let schema = schema::whole();
    let mut text = String::from(HEAD);
    text.push_str("| key | default | meaning |\n|---|---|---|\n");
    for row in outline::rows(&schema) {
        let star = if row.required { " *" } else { "" };
        let (default, meaning) = (default(&row.property, &row.target), description(&row.property, &row.target));
        text.push_str(&format!("| `{}`{star} | {default} | {meaning} |\n", row.path));
    }
    text.push_str("\n## Environment\n\n| variable | sets |\n|---|---|\n");
    for (variable, path) in super::ENVIRONMENT {
        text.push_str(&format!("| `{variable}` | `{path}` |\n"));
    }
    text.push_str(TAIL);
    text
}

const HEAD: &str = "\
# What can stand in the configuration file?

This page is generated from the schema (`schema/bao-kms-provider.schema.json`), which the program itself validates with.
A key marked `*` must be given. Durations are one whole number and one unit in quotes or without (`30s`, `2500ms`, `2m`,
`1h`); file modes are quoted (`\"0660\"`). An unknown key, a key that stands twice and a value of the wrong type are errors.

`bao-kms-provider config validate` says everything that is wrong at once; `config show` prints the resolved file with the
origin of each value; `config explain` prints each pipeline's stack.

";

const TAIL: &str = "
They win over every file. Nothing that carries identity or secrets can be set this way.

## Several files

`--config` may be given several times; later files win. Sections are merged key by key. `pipelines` are met by their
`name`, so that a node's overlay names a pipeline and the few keys that differ there. Every other list is replaced whole.
`auth` and `backend` are choices: an overlay that names another login method replaces the one below it. The result is
validated as one file; `schema/bao-kms-provider.overlay.schema.json` is for editors and CI, and requires nothing.
";

fn default(property: &Value, target: &Value) -> String {
    match property.get("default").or_else(|| target.get("default")) {
        Some(Value::Object(_)) | None => String::new(),
        Some(value) => format!("`{value}`"),
    }
}

fn description(property: &Value, target: &Value) -> String {
    let text = property.get("description").or_else(|| target.get("description"));
    let mut text = text.and_then(Value::as_str).unwrap_or_default().replace('\n', " ");
    if let Some(words) = outline::words(target).filter(|words| words.len() > 1) {
        let words: Vec<_> = words.iter().map(|word| format!("`{word}`")).collect();
        text.push_str(&format!(" One of {}.", words.join(", ")));
    }
    text
}

/// `config-examples/full.yaml`: every key with its meaning.
pub fn full_example() -> String {
    let schema = schema::whole();
    let mut text = String::from(
        "# Every key, with its default where it has one. Generated from the schema; see docs/configuration.md.\n\
         # What stands behind #| is another choice, in the place of the one above it.\n",
    );
    write(&schema, &schema, &full_values(), 0, &mut text);
    text
}

/// Choices that the full example does not make, with a value for every key.
fn other_choices(section: &str) -> Value {
    match section {
        "auth" => json!({ "cert": {
            "mount": "cert", "role": "kms", "certFile": "/var/lib/openbao-kms/client.pem",
            "keyFile": "/var/lib/openbao-kms/client.key",
        } }),
        _ => Value::Null,
    }
}

/// A value for every key; those with a default have it.
fn full_values() -> Value {
    json!({
        "configVersion": "v1",
        "pipelines": [{
            "name": "workload-a",
            "socket": {
                "path": "/run/openbao-kms/kms.sock", "mode": "0660", "group": "openbao-kms-socket", "createDirectory": false,
                "escapedAuthority": true,
                "allowPeers": { "uids": [], "gids": [] },
            },
            "identity": {
                "providerName": "openbao-kms-workload-a", "clusterId": "workload-a", "openbaoId": "bao-prod-a",
                "transitMountId": "transit-prod", "keyLineageId": "01HXEXAMPLEKEYLINEAGEID", "fingerprint": "",
            },
            "auth": { "jwt": {
                "mount": "jwt", "role": "kms", "file": "/var/lib/openbao-kms/identity.jwt",
                "expect": { "issuer": "https://issuer.example", "audience": "openbao", "subject": "bao-kms-provider" },
            } },
            "backend": { "transit": {
                "endpoints": ["https://bao-0.example:8200", "https://bao-1.example:8200"], "namespace": "",
                "mount": "transit", "key": "k8s-workload-a-etcd",
                "tls": { "caFile": "/etc/bao-kms-provider/ca.pem", "serverName": "bao.example" }, "redirectHosts": [],
            } },
            "layers": crate::layers::Config::default(),
            "rotation": crate::key::config::Rotation::default(),
            "health": crate::key::config::HealthPolicy::default(),
            "witness": { "file": "/var/lib/openbao-kms/workload-a.witness.json" },
        }],
        "memory": crate::host::lock::Config::default(),
        "telemetry": {
            "logs": crate::telemetry::config::Logs::default(),
            "metrics": {},
            "traces": { "otlp": {
                "endpoint": "http://127.0.0.1:4317", "sampleRatio": 1.0, "timeout": "5s", "caFile": "/etc/bao-kms-provider/otlp-ca.pem",
            } },
        },
        "admin": {
            "listen": "127.0.0.1:8081",
            "tls": {
                "certFile": "/etc/bao-kms-provider/admin.pem", "keyFile": "/etc/bao-kms-provider/admin.key",
                "clientCaFile": "/etc/bao-kms-provider/admin-clients.pem",
            },
        },
    })
}

fn write(root: &Value, section: &Value, value: &Value, indent: usize, text: &mut String) {
    let section = resolve(root, section);
    let empty = Map::new();
    let properties = section.get("properties").and_then(Value::as_object).unwrap_or(&empty);
    let pad = " ".repeat(indent);
    for (key, inner) in value.as_object().into_iter().flatten() {
        let property = properties.get(key).cloned().unwrap_or_default();
        let target = resolve(root, &property);
        text.push_str(&format!("{pad}# {}\n", description(&property, &target)));
        match inner {
            Value::Object(map) if !map.is_empty() => {
                text.push_str(&format!("{pad}{key}:\n"));
                write(root, &property, inner, indent + 2, text);
                let mut other = String::new();
                write(root, &property, &other_choices(key), 0, &mut other);
                other.lines().for_each(|line| text.push_str(&format!("{pad}  #| {line}\n")));
            }
            Value::Array(list) if list.iter().any(Value::is_object) => {
                text.push_str(&format!("{pad}{key}:\n"));
                for element in list {
                    text.push_str(&format!("{pad}  -\n"));
                    write(root, target.get("items").unwrap_or(&Value::Null), element, indent + 4, text);
                }
            }
            scalar => text.push_str(&format!("{pad}{key}: {scalar}\n")),
        }
    }
}
