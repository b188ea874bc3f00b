//! The sys paths that need a token: seal, mounts, login methods, policies, namespaces, capabilities.

use serde_json::{Map, Value};

use super::clock::rfc3339;
use super::fields::{Fields, Kind, Schema};
use super::hcl;
use super::mounts::Mount;
use super::namespaces::Policy;
use super::reply::{Reply, Success};
use super::route::{self, Place, unsupported_operation, unsupported_path};
use super::state::{Inner, State};
use super::tokens::Token;

const MOUNT: Schema = &[
    ("type", Kind::Text),
    ("description", Kind::Text),
    ("config", Kind::Any),
    ("options", Kind::Any),
    ("local", Kind::Bool),
    ("seal_wrap", Kind::Bool),
    ("external_entropy_access", Kind::Bool),
    ("plugin_name", Kind::Text),
    ("plugin_version", Kind::Text),
];

/// Answers `sys/<rest>`.
pub fn answer(inner: &mut Inner, state: &State, token: &Token, place: &Place<'_>, rest: &str) -> Reply {
    let (head, tail) = rest.split_once('/').unwrap_or((rest, ""));
    match head {
        "seal" if tail.is_empty() => {
            inner.sealed = true;
            Reply::empty()
        }
        "mounts" => mounts(inner, place, tail, ""),
        "auth" => mounts(inner, place, tail, "auth/"),
        "policies" => match tail.strip_prefix("acl").map(|name| name.trim_matches('/')) {
            Some(name) => policies(inner, state, place, name),
            None => unsupported_path(),
        },
        "namespaces" => inner.namespaces_api(&place.namespace, place.operation, tail),
        "capabilities-self" if tail.is_empty() && place.operation == "update" => {
            capabilities(&route::acl(inner, token), place)
        }
        "capabilities-self" if tail.is_empty() => unsupported_operation(),
        _ => unsupported_path(),
    }
}

fn mounts(inner: &mut Inner, place: &Place<'_>, name: &str, prefix: &str) -> Reply {
    let name = name.trim_matches('/');
    let at = format!("{prefix}{name}/");
    let Some(namespace) = inner.namespaces.get_mut(&place.namespace) else { return unsupported_path() };
    match (place.operation, name) {
        ("read", "") => {
            let all = namespace.mounts.iter().filter(|(at, _)| at.starts_with("auth/") != prefix.is_empty());
            let data = all.map(|(at, mount)| (at[prefix.len()..].to_owned(), mount.describe())).collect();
            Success { data: Some(data), at_top: true, ..Success::default() }.reply()
        }
        ("read", _) => match namespace.mounts.get(&at) {
            Some(mount) => {
                let data = mount.describe().as_object().cloned().unwrap_or_default();
                Success { data: Some(data), at_top: true, ..Success::default() }.reply()
            }
            None if prefix.is_empty() => Reply::bad(format!("No secret engine mount at {name}/")),
            None => Reply::bad(format!("No auth engine at {name}/")),
        },
        ("update", _) => {
            let fields = match Fields::check(&place.body, MOUNT, &["path"], false) {
                Ok(fields) => fields,
                Err(reply) => return reply,
            };
            if namespace.mounts.contains_key(&at) || (prefix, name) == ("auth/", "token") {
                return Reply::bad(format!("path is already in use at {name}/"));
            }
            let (kind, description) = (fields.text_or_empty("type"), fields.text_or_empty("description"));
            let mount = match prefix {
                "" => Mount::secret(kind, description),
                _ => Mount::auth(kind, description),
            };
            match mount {
                Some(mount) => {
                    namespace.mounts.insert(at, mount);
                    Reply::empty()
                }
                None => Reply::bad(format!("plugin not found in the catalog: {kind}")),
            }
        }
        ("delete", _) => {
            namespace.mounts.remove(&at);
            Reply::empty()
        }
        _ => unsupported_operation(),
    }
}

fn policies(inner: &mut Inner, state: &State, place: &Place<'_>, name: &str) -> Reply {
    let Some(namespace) = inner.namespaces.get_mut(&place.namespace) else { return unsupported_path() };
    match place.operation {
        "list" | "read" if name.is_empty() => {
            let mut names: Vec<&str> = namespace.policies.keys().map(String::as_str).collect();
            if place.namespace.is_empty() {
                names.push("root");
            }
            names.sort_unstable();
            let keys = names.into_iter().map(Value::from).collect::<Vec<_>>();
            Reply::data(Map::from_iter([("keys".into(), keys.into())]))
        }
        "read" => match namespace.policies.get(name) {
            Some(policy) => Reply::data(Map::from_iter([
                ("cas_required".into(), false.into()),
                ("modified".into(), policy.modified.clone().into()),
                ("name".into(), name.into()),
                ("policy".into(), policy.text.clone().into()),
                ("version".into(), policy.version.into()),
            ])),
            None => Reply::blank(404),
        },
        "update" => {
            let text = place.body.get("policy").and_then(Value::as_str).unwrap_or_default();
            if text.is_empty() {
                return Reply::bad("'policy' parameter not supplied or empty");
            }
            match hcl::parse(text) {
                Ok(rules) => {
                    let version = namespace.policies.get(name).map_or(1, |old| old.version + 1);
                    let policy = Policy { text: text.into(), rules, version, modified: rfc3339(state.clock.now()) };
                    namespace.policies.insert(name.to_lowercase(), policy);
                    Reply::empty()
                }
                Err(why) => Reply::bad(format!("failed to parse policy: {why}")),
            }
        }
        "delete" => {
            namespace.policies.remove(name);
            Reply::empty()
        }
        _ => unsupported_operation(),
    }
}

fn capabilities(acl: &super::acl::Acl, place: &Place<'_>) -> Reply {
    let schema: Schema = &[("paths", Kind::List), ("path", Kind::List)];
    let fields = match Fields::check(&place.body, schema, &[], false) {
        Ok(fields) => fields,
        Err(reply) => return reply,
    };
    let paths: Vec<String> = [fields.list("paths"), fields.list("path")].concat();
    if paths.is_empty() {
        return Reply::bad("paths must be supplied");
    }
    let mut data: Map<String, Value> = Map::new();
    for path in &paths {
        data.insert(path.clone(), acl.capabilities(&format!("{}{path}", place.namespace)).into());
    }
    if let [only] = paths.as_slice() {
        data.insert("capabilities".into(), data[only].clone());
    }
    Success { data: Some(data), at_top: true, warnings: fields.warnings, ..Success::default() }.reply()
}
