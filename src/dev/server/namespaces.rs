//! Namespaces: each with its own mounts and policies, found by header, by path prefix or by both.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::acl::DEFAULT_POLICY;
use super::hcl::{self, Rule};
use super::mounts::Mount;
use super::reply::{Reply, Success, random_text, uuid};
use super::state::Inner;

/// One namespace.
pub struct Namespace {
    pub id: String,
    uuid: String,
    /// By path with a slash at the end: `transit/`, `auth/jwt/`.
    pub mounts: BTreeMap<String, Mount>,
    pub policies: BTreeMap<String, Policy>,
}

/// A policy: as written and as understood.
pub struct Policy {
    pub text: String,
    pub rules: Vec<Rule>,
    pub version: u64,
    pub modified: String,
}

impl Namespace {
    /// The root namespace.
    pub fn root() -> Namespace {
        Namespace::with_id("root".into())
    }

    fn with_id(id: String) -> Namespace {
        let rules = hcl::parse(DEFAULT_POLICY).expect("the default policy is a constant that a test reads");
        let policy = Policy { text: DEFAULT_POLICY.into(), rules, version: 1, modified: "1970-01-01T00:00:00Z".into() };
        Namespace {
            id,
            uuid: uuid(),
            mounts: BTreeMap::new(),
            policies: BTreeMap::from([("default".to_owned(), policy)]),
        }
    }

    /// The mount that serves `path`, with what is left of the path below it.
    pub fn route<'p>(&self, path: &'p str) -> Option<(&str, &Mount, &'p str)> {
        self.mounts
            .iter()
            .filter_map(|(at, mount)| path.strip_prefix(at.as_str()).map(|rest| (at.as_str(), mount, rest)))
            .max_by_key(|(at, _, _)| at.len())
    }

    fn describe(&self, path: &str) -> Map<String, Value> {
        let value = json!({
            "custom_metadata": {}, "id": self.id, "locked": false, "path": path, "tainted": false, "uuid": self.uuid,
        });
        value.as_object().cloned().unwrap_or_default()
    }
}

impl Inner {
    /// The namespace that a header names; slashes at both ends do not matter. `None` when there is none of that name.
    pub fn namespace_of_header(&self, header: &str) -> Option<String> {
        let name = header.trim_matches('/');
        let path = if name.is_empty() { String::new() } else { format!("{name}/") };
        self.namespaces.contains_key(&path).then_some(path)
    }

    /// The deepest namespace below `base` that `path` starts with, and the rest of the path.
    pub fn namespace_of_path<'p>(&self, base: &str, path: &'p str) -> (String, &'p str) {
        let full = format!("{base}{path}");
        let deepest = self
            .namespaces
            .keys()
            .filter(|at| at.len() > base.len() && at.starts_with(base) && full.starts_with(at.as_str()))
            .max_by_key(|at| at.len());
        match deepest {
            Some(at) => (at.clone(), &path[at.len() - base.len()..]),
            None => (base.to_owned(), path),
        }
    }

    /// `sys/namespaces/...` inside `base`.
    pub fn namespaces_api(&mut self, base: &str, operation: &str, name: &str) -> Reply {
        let name = name.trim_matches('/');
        if name.is_empty() {
            return if operation == "list" { self.list_namespaces(base) } else { unsupported() };
        }
        if name.contains('/') {
            let text = "path must not contain /";
            return if operation == "update" { Reply::bad(text) } else { Reply::multi(500, text) };
        }
        let path = format!("{base}{name}/");
        match operation {
            "update" => {
                let namespace =
                    self.namespaces.entry(path.clone()).or_insert_with(|| Namespace::with_id(random_text(6)));
                Reply::data(namespace.describe(&path))
            }
            "read" => match self.namespaces.get(&path) {
                Some(namespace) => Reply::data(namespace.describe(&path)),
                None => Reply::blank(404),
            },
            "delete" if !self.namespaces.contains_key(&path) => {
                Success { warnings: vec!["requested namespace does not exist".into()], ..Success::default() }.reply()
            }
            "delete" if self.namespaces.keys().any(|other| *other != path && other.starts_with(&path)) => {
                Reply::bad(format!("cannot delete namespace (\"{path}\") containing child namespaces"))
            }
            "delete" => {
                self.namespaces.remove(&path);
                let data = json!({ "status": "in-progress" });
                Reply::data(data.as_object().cloned().unwrap_or_default())
            }
            _ => unsupported(),
        }
    }

    fn list_namespaces(&self, base: &str) -> Reply {
        let mut info = Map::new();
        for (path, namespace) in &self.namespaces {
            if let Some(name) = path.strip_prefix(base)
                && name.trim_end_matches('/').split('/').count() == 1
                && !name.is_empty()
            {
                info.insert(name.to_owned(), Value::Object(namespace.describe(path)));
            }
        }
        if info.is_empty() {
            return Reply::blank(404);
        }
        let keys: Vec<Value> = info.keys().cloned().map(Value::from).collect();
        Reply::data(Map::from_iter([("key_info".into(), Value::Object(info)), ("keys".into(), keys.into())]))
    }
}

fn unsupported() -> Reply {
    Reply::multi(405, "unsupported operation")
}
