//! `auth/token/...`: create, look up, renew and revoke.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::clock::{rfc3339, unix};
use super::fields::{Fields, Kind, Schema};
use super::reply::{Reply, Success};
use super::route::{Place, unsupported_operation, unsupported_path};
use super::state::{Inner, State};
use super::tokens::{Mint, Origin, Token};
use super::{fields, login_cert, login_jwt};

const CREATE: Schema = &[
    ("id", Kind::Text),
    ("policies", Kind::List),
    ("ttl", Kind::Text),
    ("lease", Kind::Text),
    ("explicit_max_ttl", Kind::Text),
    ("period", Kind::Text),
    ("renewable", Kind::Bool),
    ("no_parent", Kind::Bool),
    ("no_default_policy", Kind::Bool),
    ("display_name", Kind::Text),
    ("meta", Kind::Any),
    ("type", Kind::Text),
    ("num_uses", Kind::Int),
    ("entity_alias", Kind::Text),
];

/// Answers `auth/token/<rest>`.
pub fn answer(inner: &mut Inner, state: &State, token: &Token, place: &Place<'_>, rest: &str) -> Reply {
    match (rest, place.operation) {
        ("create", "update") => create(inner, state, token, place),
        ("lookup-self", "read" | "update") => Reply::data(describe(token, state)),
        ("renew-self", "update") => renew(inner, state, token, place),
        ("revoke-self", "update") if token.made.batch => Reply::bad("batch tokens cannot be revoked"),
        ("revoke-self", "update") => {
            inner.tokens.revoke(&token.id);
            Reply::empty()
        }
        ("revoke", "update") => match place.body.get("token").and_then(Value::as_str).filter(|id| !id.is_empty()) {
            Some(id) => {
                inner.tokens.revoke(id);
                Reply::empty()
            }
            None => Reply::bad("missing token ID"),
        },
        ("create" | "lookup-self" | "renew-self" | "revoke-self" | "revoke", _) => unsupported_operation(),
        _ => unsupported_path(),
    }
}

fn create(inner: &mut Inner, state: &State, parent: &Token, place: &Place<'_>) -> Reply {
    let fields = match Fields::check(&place.body, CREATE, &[], false) {
        Ok(fields) => fields,
        Err(reply) => return reply,
    };
    let seconds = |name: &str| fields::duration(fields.text_or_empty(name)).map(|n| u64::try_from(n).unwrap_or(0));
    let (ttl, explicit_max_ttl, period) = match (seconds("ttl"), seconds("explicit_max_ttl"), seconds("period")) {
        (Ok(ttl), Ok(max), Ok(period)) => (ttl, max, period),
        (Err(why), ..) | (_, Err(why), _) | (.., Err(why)) => return Reply::bad(why),
    };
    let mut policies = fields.list("policies");
    if policies.is_empty() {
        policies.clone_from(&parent.made.policies);
    }
    if !policies.iter().any(|name| name == "root") && fields.bool("no_default_policy") != Some(true) {
        policies.push("default".into());
    }
    policies.sort();
    policies.dedup();
    let Some(namespace) = inner.namespaces.get(&place.namespace) else { return unsupported_path() };
    let missing: Vec<String> = policies
        .iter()
        .filter(|name| *name != "root" && !namespace.policies.contains_key(name.as_str()))
        .map(|name| format!("Policy \"{name}\" does not exist"))
        .collect();
    let batch = fields.text("type") == Some("batch");
    let meta = fields.get("meta").and_then(Value::as_object).map(|meta| {
        meta.iter().map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned())).collect::<BTreeMap<_, _>>()
    });
    let orphan = fields.bool("no_parent") == Some(true);
    let endless = policies == ["root"] && ttl == 0 && period == 0 && explicit_max_ttl == 0;
    let mint = Mint {
        id: fields.text("id").filter(|id| !id.is_empty()).map(str::to_owned),
        policies,
        meta,
        ttl,
        explicit_max_ttl,
        period,
        batch,
        renewable: !batch && !endless && fields.bool("renewable") != Some(false),
        orphan,
        display_name: match fields.text_or_empty("display_name") {
            "" => "token".into(),
            name => format!("token-{}", name.replace(|c: char| !c.is_ascii_alphanumeric(), "-")),
        },
        parent: (!orphan).then(|| parent.id.clone()),
        ..Mint::plain((place.namespace.clone(), namespace.id.clone()), "auth/token/create")
    };
    let (token, lease, capped) = inner.tokens.mint(mint, state.clock.now());
    let warnings = [fields.warnings, missing, capped].concat();
    Success { auth: Some(token.auth(lease)), warnings, ..Success::default() }.reply()
}

fn renew(inner: &mut Inner, state: &State, token: &Token, place: &Place<'_>) -> Reply {
    let schema: Schema = &[("increment", Kind::Duration), ("token", Kind::Text)];
    let fields = match Fields::check(&place.body, schema, &[], false) {
        Ok(fields) => fields,
        Err(reply) => return reply,
    };
    if token.made.batch {
        return Reply::bad("batch tokens cannot be renewed");
    }
    if !token.made.renewable {
        return Reply::bad("lease is not renewable");
    }
    let still = match &token.made.origin {
        Origin::Token => Ok(()),
        Origin::Jwt { mount, role } => login_jwt::still_there(inner, place, mount, role),
        Origin::Cert { mount, role } => login_cert::still_matches(inner, state, place, mount, role),
    };
    if let Err(reply) = still {
        return reply;
    }
    match inner.tokens.renew(&token.id, fields.seconds("increment"), state.clock.now()) {
        Some((token, lease, capped)) => {
            let warnings = [fields.warnings, capped].concat();
            Success { auth: Some(token.auth(lease)), warnings, ..Success::default() }.reply()
        }
        None => Reply::bad("past the max TTL, cannot renew"),
    }
}

fn describe(token: &Token, state: &State) -> Map<String, Value> {
    let (made, now) = (&token.made, state.clock.now());
    let ttl = token.expires.and_then(|end| end.duration_since(now).ok()).map_or(0, |left| left.as_secs());
    let mut data = json!({
        "accessor": token.accessor, "creation_time": unix(token.issued), "creation_ttl": token.creation_ttl,
        "display_name": made.display_name, "entity_id": token.entity,
        "expire_time": token.expires.map(rfc3339), "explicit_max_ttl": made.explicit_max_ttl, "id": token.id,
        "issue_time": rfc3339(token.issued), "meta": made.meta, "num_uses": 0, "orphan": made.orphan,
        "path": made.path, "policies": made.policies, "renewable": made.renewable, "ttl": ttl,
        "type": if made.batch { "batch" } else { "service" },
    });
    if made.period > 0 {
        data["period"] = made.period.into();
    }
    if !made.namespace.0.is_empty() {
        data["namespace_path"] = made.namespace.0.clone().into();
    }
    if let Some(at) = token.last_renewal {
        data["last_renewal"] = rfc3339(at).into();
        data["last_renewal_time"] = unix(at).into();
    }
    data.as_object().cloned().unwrap_or_default()
}
