//! What a token may do: the rules of all its policies, and the one among them that speaks for a path. The most specific
//! pattern wins, equal patterns add up, `deny` ends the matter.

use std::collections::{BTreeMap, BTreeSet};

use super::hcl::Rule;

/// What every token may do unless its role says otherwise: look itself up, renew and revoke itself, ask for capabilities.
pub const DEFAULT_POLICY: &str = r#"
# Allow tokens to look up their own properties
path "auth/token/lookup-self" {
    capabilities = ["read"]
}

# Allow tokens to renew themselves
path "auth/token/renew-self" {
    capabilities = ["update"]
}

# Allow tokens to revoke themselves
path "auth/token/revoke-self" {
    capabilities = ["update"]
}

# Allow a token to look up its own capabilities on a path
path "sys/capabilities-self" {
    capabilities = ["update"]
}
"#;

/// The rules of one token.
#[derive(Debug, Default)]
pub struct Acl {
    root: Option<String>,
    rules: BTreeMap<String, BTreeSet<String>>,
}

impl Acl {
    /// The root policy of `namespace`: everything in it and below.
    pub fn allow_all(&mut self, namespace: &str) {
        self.root = Some(namespace.to_owned());
    }

    /// Adds a policy that lives in `namespace` (empty or ending in `/`).
    pub fn add(&mut self, namespace: &str, rules: &[Rule]) {
        for rule in rules {
            let entry = self.rules.entry(format!("{namespace}{}", rule.path)).or_default();
            entry.extend(rule.capabilities.iter().cloned());
        }
    }

    /// The capabilities on a full path (namespace included), sorted: `["root"]`, `["deny"]` or the granted ones.
    pub fn capabilities(&self, path: &str) -> Vec<String> {
        if self.root.as_ref().is_some_and(|namespace| path.starts_with(namespace.as_str())) {
            return vec!["root".into()];
        }
        let best =
            self.rules.iter().filter(|(pattern, _)| matches(pattern, path)).max_by_key(|(pattern, _)| rank(pattern));
        match best {
            Some((_, granted)) if !granted.is_empty() && !granted.contains("deny") => granted.iter().cloned().collect(),
            _ => vec!["deny".into()],
        }
    }

    /// Whether `capability` is granted on a full path.
    pub fn allows(&self, path: &str, capability: &str) -> bool {
        self.capabilities(path).iter().any(|granted| granted == "root" || granted == capability)
    }
}

/// Larger is more specific: no wildcard, then a later first wildcard, no glob at the end, fewer `+`, longer, later in order.
fn rank(pattern: &str) -> (usize, bool, isize, usize, &str) {
    let segments = pattern.split('/').filter(|part| *part == "+").count();
    let glob = pattern.ends_with('*');
    let plus = pattern.split('/').scan(0, |at, part| {
        let start = *at;
        *at += part.len() + 1;
        Some((start, part))
    });
    let first_plus = plus.filter(|(_, part)| *part == "+").map(|(start, _)| start).min();
    let first_glob = glob.then(|| pattern.len() - 1);
    let first = first_plus.into_iter().chain(first_glob).min().unwrap_or(usize::MAX);
    (first, !glob, -isize::try_from(segments).unwrap_or(isize::MAX), pattern.len(), pattern)
}

fn matches(pattern: &str, path: &str) -> bool {
    let (pattern, glob) = match pattern.strip_suffix('*') {
        Some(prefix) => (prefix, true),
        None => (pattern, false),
    };
    let mut parts = pattern.split('/').peekable();
    let mut segments = path.split('/');
    while let Some(part) = parts.next() {
        let Some(segment) = segments.next() else { return false };
        let last = parts.peek().is_none();
        let fits = match part {
            "+" => !segment.is_empty(),
            part if last && glob => return segment.starts_with(part),
            part => part == segment,
        };
        if !fits {
            return false;
        }
    }
    glob || segments.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::super::hcl;
    use super::*;

    fn acl(policies: &[(&str, &str)]) -> Acl {
        let mut acl = Acl::default();
        for (namespace, text) in policies {
            acl.add(namespace, &hcl::parse(text).unwrap());
        }
        acl
    }

    #[test]
    fn patterns_match_as_written() {
        assert!(matches("a/b", "a/b") && !matches("a/b", "a/bc") && !matches("a/b", "a/b/c"));
        assert!(matches("a/b*", "a/bc/d") && !matches("a/b*", "a/c"));
        assert!(matches("a/*", "a/") && matches("a/*", "a/b/c") && !matches("a/*", "a"));
        assert!(matches("+/b", "a/b") && !matches("+/b", "a/c") && !matches("a/+", "a/b/c"));
        assert!(matches("a/+/c*", "a/b/cd") && matches("*", "anything/at/all"));
    }

    #[test]
    fn the_most_specific_rule_speaks() {
        let acl = acl(&[(
            "",
            r#"path "t/*" { capabilities = ["read"] }
               path "t/keys/k" { capabilities = ["update"] }
               path "t/+/k*" { capabilities = ["delete"] }
               path "t/keys/x" { capabilities = ["deny", "read"] }"#,
        )]);
        assert_eq!(acl.capabilities("t/keys/k"), ["update"]);
        assert_eq!(acl.capabilities("t/other"), ["read"]);
        assert_eq!(acl.capabilities("t/keys/x"), ["deny"]);
        assert_eq!(acl.capabilities("u"), ["deny"]);
        assert!(!acl.allows("t/keys/k", "read"));
    }

    #[test]
    fn policies_of_a_namespace_end_at_its_border() {
        let mut acl = acl(&[("ns1/", r#"path "t/k" { capabilities = ["read"] }"#)]);
        assert!(acl.allows("ns1/t/k", "read") && !acl.allows("t/k", "read"));
        acl.allow_all("ns1/");
        assert_eq!(acl.capabilities("ns1/sub/t/k"), ["root"]);
        assert_eq!(acl.capabilities("t/k"), ["deny"]);
    }
}
