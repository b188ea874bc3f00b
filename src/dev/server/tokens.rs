//! Tokens: how they are made, how long they live, how they are renewed and ended. Lifetimes are cut to what role and
//! system allow, with the warnings that OpenBao gives.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::clock::{go_duration, unix};
use super::fields::Fields;
use super::reply::{random_text, uuid};

/// The longest life of a token, and the life of one whose role names none: 768 hours.
pub const SYSTEM_TTL: u64 = 768 * 3600;

/// Where a token comes from; renewal asks the same place again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    Token,
    Jwt { mount: String, role: String },
    Cert { mount: String, role: String },
}

/// A token to be made.
#[derive(Debug, Clone)]
pub struct Mint {
    /// A given id instead of a random one.
    pub id: Option<String>,
    /// The namespace's path and id.
    pub namespace: (String, String),
    pub policies: Vec<String>,
    pub meta: Option<BTreeMap<String, String>>,
    pub display_name: String,
    pub path: String,
    pub ttl: u64,
    pub max_ttl: u64,
    pub explicit_max_ttl: u64,
    pub period: u64,
    pub renewable: bool,
    pub batch: bool,
    pub orphan: bool,
    /// What identity the token stands for; empty for none.
    pub alias: String,
    pub parent: Option<String>,
    pub origin: Origin,
}

impl Mint {
    /// A token of nothing but an id that may do everything and never ends.
    pub fn root(id: String) -> Mint {
        let root = (String::new(), "root".to_owned());
        Mint {
            id: Some(id),
            policies: vec!["root".into()],
            renewable: false,
            orphan: true,
            ..Mint::plain(root, "auth/token/create")
        }
    }

    /// A renewable service token without policies.
    pub fn plain(namespace: (String, String), path: &str) -> Mint {
        Mint {
            id: None,
            namespace,
            policies: Vec::new(),
            meta: None,
            display_name: "token".into(),
            path: path.into(),
            ttl: 0,
            max_ttl: 0,
            explicit_max_ttl: 0,
            period: 0,
            renewable: true,
            batch: false,
            orphan: false,
            alias: String::new(),
            parent: None,
            origin: Origin::Token,
        }
    }

    fn is_endless(&self) -> bool {
        self.policies == ["root"] && self.ttl == 0 && self.period == 0 && self.explicit_max_ttl == 0
    }
}

/// The `token_*` parameters that every login role has.
#[derive(Debug, Clone, Default)]
pub struct RoleTokens {
    pub policies: Vec<String>,
    pub ttl: u64,
    pub max_ttl: u64,
    pub explicit_max_ttl: u64,
    pub period: u64,
    pub no_default_policy: bool,
    pub kind: String,
}

impl RoleTokens {
    /// Reads the parameters of a role.
    pub fn read(fields: &Fields) -> RoleTokens {
        RoleTokens {
            policies: fields.list("token_policies"),
            ttl: fields.seconds("token_ttl"),
            max_ttl: fields.seconds("token_max_ttl"),
            explicit_max_ttl: fields.seconds("token_explicit_max_ttl"),
            period: fields.seconds("token_period"),
            no_default_policy: fields.bool("token_no_default_policy").unwrap_or(false),
            kind: fields.text("token_type").filter(|kind| !kind.is_empty()).unwrap_or("default").to_owned(),
        }
    }

    /// The parameters as a read of the role shows them.
    pub fn describe(&self, data: &mut serde_json::Map<String, Value>) {
        let shown = json!({
            "token_bound_cidrs": [], "token_explicit_max_ttl": self.explicit_max_ttl, "token_max_ttl": self.max_ttl,
            "token_no_default_policy": self.no_default_policy, "token_num_uses": 0, "token_period": self.period,
            "token_policies": self.policies, "token_strictly_bind_ip": false, "token_ttl": self.ttl,
            "token_type": self.kind,
        });
        data.extend(shown.as_object().cloned().unwrap_or_default());
    }

    /// A token as this role makes it.
    pub fn mint(&self, namespace: (String, String), path: String, origin: Origin) -> Mint {
        let mut policies = self.policies.clone();
        if !self.no_default_policy {
            policies.push("default".into());
        }
        policies.sort();
        policies.dedup();
        Mint {
            policies,
            ttl: self.ttl,
            max_ttl: self.max_ttl,
            explicit_max_ttl: self.explicit_max_ttl,
            period: self.period,
            batch: self.kind == "batch",
            renewable: self.kind != "batch",
            orphan: true,
            origin,
            ..Mint::plain(namespace, &path)
        }
    }
}

/// A token that was made.
#[derive(Debug, Clone)]
pub struct Token {
    pub id: String,
    pub accessor: String,
    pub entity: String,
    pub issued: SystemTime,
    pub creation_ttl: u64,
    pub expires: Option<SystemTime>,
    pub last_renewal: Option<SystemTime>,
    pub made: Mint,
}

impl Token {
    /// The `auth` block of login, create and renew replies.
    pub fn auth(&self, lease: u64) -> Value {
        let made = &self.made;
        json!({
            "client_token": self.id, "accessor": self.accessor, "policies": made.policies,
            "token_policies": made.policies, "metadata": made.meta, "lease_duration": lease,
            "renewable": made.renewable, "entity_id": self.entity,
            "token_type": if made.batch { "batch" } else { "service" }, "orphan": made.orphan,
            "mfa_requirement": null, "num_uses": 0,
        })
    }

    fn is_alive(&self, now: SystemTime) -> bool {
        self.expires.is_none_or(|end| now < end)
    }
}

/// All tokens of a cluster.
#[derive(Debug, Default)]
pub struct Tokens {
    by_id: HashMap<String, Token>,
    entities: HashMap<String, String>,
}

impl Tokens {
    /// Makes a token; returns it with its lifetime in seconds and what OpenBao warns of.
    pub fn mint(&mut self, made: Mint, now: SystemTime) -> (Token, u64, Vec<String>) {
        let (lease, warnings) = match made.is_endless() {
            true => (0, Vec::new()),
            false => lease(&made, made.ttl, now, now).unwrap_or_default(),
        };
        let suffix = if made.namespace.0.is_empty() { String::new() } else { format!(".{}", made.namespace.1) };
        let id = made.id.clone().unwrap_or_else(|| match made.batch {
            true => format!("b.{}{suffix}", random_text(120)),
            false => format!("s.{}{suffix}", random_text(24)),
        });
        let entity = match made.alias.as_str() {
            "" => String::new(),
            alias => self.entities.entry(alias.to_owned()).or_insert_with(uuid).clone(),
        };
        let token = Token {
            id: id.clone(),
            accessor: if made.batch { String::new() } else { format!("{}{suffix}", random_text(24)) },
            entity,
            issued: now,
            creation_ttl: lease,
            expires: (lease > 0).then(|| now + Duration::from_secs(lease)),
            last_renewal: None,
            made,
        };
        self.by_id.insert(id, token.clone());
        (token, lease, warnings)
    }

    /// A living token.
    pub fn find(&self, id: &str, now: SystemTime) -> Option<&Token> {
        self.by_id.get(id).filter(|token| token.is_alive(now))
    }

    /// Renews a living token by `increment` seconds (0: as it was made); the token, its new lifetime and the warnings.
    pub fn renew(&mut self, id: &str, increment: u64, now: SystemTime) -> Option<(Token, u64, Vec<String>)> {
        let token = self.by_id.get_mut(id).filter(|token| token.is_alive(now))?;
        let wanted = if increment > 0 { increment } else { token.creation_ttl };
        let (seconds, warnings) = lease(&token.made, wanted, token.issued, now)?;
        token.expires = Some(now + Duration::from_secs(seconds));
        token.last_renewal = Some(now);
        Some((token.clone(), seconds, warnings))
    }

    /// Ends a token and those made with it.
    pub fn revoke(&mut self, id: &str) {
        self.by_id.remove(id);
        let children: Vec<String> = self
            .by_id
            .values()
            .filter(|token| token.made.parent.as_deref() == Some(id) && !token.made.orphan)
            .map(|token| token.id.clone())
            .collect();
        for child in children {
            self.revoke(&child);
        }
    }

    /// Ends every token but one.
    pub fn revoke_all_but(&mut self, id: &str) {
        self.by_id.retain(|other, _| other == id);
    }

    /// Those that are alive.
    pub fn ids(&self, now: SystemTime) -> Vec<String> {
        self.by_id.values().filter(|token| token.is_alive(now)).map(|token| token.id.clone()).collect()
    }

    /// How many are alive.
    pub fn live(&self, now: SystemTime) -> usize {
        self.by_id.values().filter(|token| token.is_alive(now)).count()
    }
}

/// The lifetime from now on, cut to what role and system allow; `None` when nothing is left.
fn lease(made: &Mint, wanted: u64, issued: SystemTime, now: SystemTime) -> Option<(u64, Vec<String>)> {
    let caps = [made.max_ttl, made.explicit_max_ttl].into_iter().filter(|cap| *cap > 0);
    let max = caps.min().unwrap_or(SYSTEM_TTL).min(SYSTEM_TTL);
    let (seconds, end) = if made.period > 0 {
        (made.period.min(max), (made.explicit_max_ttl > 0).then_some(made.explicit_max_ttl))
    } else {
        (if wanted > 0 { wanted } else { SYSTEM_TTL }, Some(max))
    };
    let Some(end) = end else { return Some((seconds, Vec::new())) };
    let left = (unix(issued) + end).checked_sub(unix(now)).filter(|left| *left > 0)?;
    if seconds <= left {
        return Some((seconds, Vec::new()));
    }
    let (asked, left_text) = (go_duration(seconds), go_duration(left));
    let warning = format!(
        "TTL of \"{asked}\" exceeded the effective max_ttl of \"{left_text}\"; TTL value is capped accordingly"
    );
    // A role whose maximum is below the system's default is no surprise: only an explicit wish earns the warning.
    let warnings = if wanted > 0 { vec![warning] } else { Vec::new() };
    Some((left, warnings))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds)
    }

    fn short() -> Mint {
        Mint { ttl: 60, max_ttl: 100, ..Mint::plain((String::new(), "root".into()), "p") }
    }

    #[test]
    fn renewal_ends_at_the_maximum() {
        let mut tokens = Tokens::default();
        let (token, lease, warnings) = tokens.mint(short(), at(0));
        assert_eq!((lease, warnings.len()), (60, 0));
        let (_, lease, warnings) = tokens.renew(&token.id, 0, at(50)).unwrap();
        assert_eq!(lease, 50);
        assert_eq!(
            warnings,
            ["TTL of \"1m\" exceeded the effective max_ttl of \"50s\"; TTL value is capped accordingly"]
        );
        assert!(tokens.find(&token.id, at(99)).is_some());
        assert!(tokens.find(&token.id, at(100)).is_none());
        assert!(tokens.renew(&token.id, 0, at(100)).is_none());
    }

    #[test]
    fn children_end_with_their_parent() {
        let mut tokens = Tokens::default();
        let (parent, ..) = tokens.mint(short(), at(0));
        let (child, ..) = tokens.mint(Mint { parent: Some(parent.id.clone()), ..short() }, at(0));
        tokens.revoke(&parent.id);
        assert!(tokens.find(&child.id, at(1)).is_none());
    }
}
