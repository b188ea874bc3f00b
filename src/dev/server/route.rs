//! One request from path to answer, in OpenBao's order: seal, namespace, body, token, policy, mount. Whatever is refused
//! on the way is refused in the words that OpenBao uses at that place.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustls::pki_types::CertificateDer;
use serde_json::{Map, Value};

use super::acl::Acl;
use super::mounts::Engine;
use super::reply::Reply;
use super::state::{Inner, State};
use super::tokens::Token;
use super::{health, login_cert, login_jwt, sys, token_api, transit};

/// A request as it came.
pub struct Call {
    pub method: String,
    /// The path as sent, `/v1/` included.
    pub uri_path: String,
    pub query: String,
    pub content_type: String,
    pub token: Option<String>,
    pub namespace: Option<String>,
    pub body: Bytes,
    /// The client's certificates, leaf first; empty without one.
    pub peer: Arc<[CertificateDer<'static>]>,
    /// How far the node that was asked is behind, when it is a standby.
    pub standby: Option<Duration>,
}

/// Where a request has arrived once its namespace is known.
pub struct Place<'a> {
    /// `""` or a path that ends in `/`.
    pub namespace: String,
    /// The path inside the namespace.
    pub path: &'a str,
    /// `read`, `update`, `delete`, `list` or `patch`.
    pub operation: &'static str,
    pub body: Map<String, Value>,
    pub peer: &'a [CertificateDer<'static>],
    /// How old what the node knows of keys is.
    pub behind: Duration,
}

/// The answer to a request.
pub fn answer(state: &State, call: &Call) -> Reply {
    let Some(path) = call.uri_path.strip_prefix("/v1/") else { return Reply::blank(404) };
    let header = call.namespace.as_deref().filter(|name| !name.is_empty());
    if let Some(name) = path.strip_prefix("sys/") {
        if header.is_some() && health::is_root_only(name) {
            return Reply::bad("operation unavailable in namespaces");
        }
        let body = object(&call.body).unwrap_or_default();
        if let Some(reply) = health::answer(state, call, name, &body) {
            return reply;
        }
        if name == "seal" && !matches!(call.method.as_str(), "POST" | "PUT") {
            return Reply::blank(405);
        }
    }
    let mut inner = state.lock();
    if inner.sealed {
        return Reply::plain(503, "Vault is sealed");
    }
    let Some(base) = inner.namespace_of_header(header.unwrap_or_default()) else {
        return Reply::plain(404, "namespace not found");
    };
    let operation = match call.method.as_str() {
        "GET" if call.query.split('&').any(|pair| pair == "list=true") => "list",
        "GET" => "read",
        "LIST" => "list",
        "POST" | "PUT" => "update",
        "DELETE" => "delete",
        "PATCH" if !call.content_type.starts_with("application/merge-patch+json") => {
            let given = &call.content_type;
            let text = format!("PATCH requires Content-Type of application/merge-patch+json, provided {given}");
            return Reply::plain(415, text);
        }
        "PATCH" => "patch",
        _ => return Reply::blank(405),
    };
    let body = match operation {
        "update" | "patch" => match object(&call.body) {
            Some(body) => body,
            None => return Reply::bad("error parsing JSON"),
        },
        _ => Map::new(),
    };
    let (namespace, path) = inner.namespace_of_path(&base, path);
    let behind = call.standby.unwrap_or_default();
    let mut place = Place { namespace, path, operation, body, peer: &call.peer, behind };

    if let Some(reply) = login(&mut inner, state, &place) {
        return reply;
    }
    let now = state.clock.now();
    let Some(token) = call.token.as_deref().and_then(|id| inner.tokens.find(id, now)).cloned() else {
        return Reply::plain(403, "permission denied");
    };
    if matches!(path, "auth/token/lookup-self" | "auth/token/renew-self" | "auth/token/revoke-self") {
        place.namespace.clone_from(&token.made.namespace.0);
    }
    if place.operation == "update" && place.path.ends_with('/') {
        return Reply::bad("cannot write to a path ending in '/'");
    }
    if !allowed(&inner, &token, &place) {
        return Reply::multi(403, "permission denied");
    }
    dispatch(&mut inner, state, &token, &place)
}

/// A login asks for no token; everything else does.
fn login(inner: &mut Inner, state: &State, place: &Place<'_>) -> Option<Reply> {
    let namespace = inner.namespaces.get(&place.namespace)?;
    let (at, mount, rest) = namespace.route(place.path)?;
    if rest != "login" || matches!(mount.engine, Engine::Transit(_)) {
        return None;
    }
    if place.operation != "update" {
        return Some(Reply::multi(405, "unsupported operation"));
    }
    let at = at.to_owned();
    Some(match &mount.engine {
        Engine::Jwt(_) => login_jwt::login(inner, state, place, &at),
        _ => login_cert::login(inner, state, place, &at),
    })
}

/// The rules of a token's policies, as they stand now.
pub fn acl(inner: &Inner, token: &Token) -> Acl {
    let mut acl = Acl::default();
    let at = &token.made.namespace.0;
    for name in &token.made.policies {
        if name == "root" {
            acl.allow_all(at);
        } else if let Some(policy) = inner.namespaces.get(at).and_then(|namespace| namespace.policies.get(name)) {
            acl.add(at, &policy.rules);
        }
    }
    acl
}

fn allowed(inner: &Inner, token: &Token, place: &Place<'_>) -> bool {
    let acl = acl(inner, token);
    let path = format!("{}{}", place.namespace, place.path);
    let capability = match place.operation {
        "update" if creates(inner, place) => "create",
        other => other,
    };
    let granted = match capability {
        "list" => acl.allows(&format!("{}/", path.trim_end_matches('/')), "list") || acl.allows(&path, "list"),
        capability => acl.allows(&path, capability),
    };
    let sudo = place.path == "sys/seal" || place.path.starts_with("sys/auth/");
    granted && (!sudo || acl.allows(&path, "sudo"))
}

/// Encrypting with a key that does not exist would make it: that is `create`, not `update`.
fn creates(inner: &Inner, place: &Place<'_>) -> bool {
    let Some(namespace) = inner.namespaces.get(&place.namespace) else { return false };
    match namespace.route(place.path) {
        Some((_, mount, rest)) => match &mount.engine {
            Engine::Transit(transit) => rest.strip_prefix("encrypt/").is_some_and(|name| !transit.has(name)),
            _ => false,
        },
        None => false,
    }
}

fn dispatch(inner: &mut Inner, state: &State, token: &Token, place: &Place<'_>) -> Reply {
    if let Some(rest) = place.path.strip_prefix("sys/") {
        return sys::answer(inner, state, token, place, rest);
    }
    if let Some(rest) = place.path.strip_prefix("auth/token/") {
        return token_api::answer(inner, state, token, place, rest);
    }
    let now = state.clock.now();
    let Some(namespace) = inner.namespaces.get_mut(&place.namespace) else { return no_handler(place.path) };
    let found = namespace.route(place.path).map(|(at, _, rest)| (at.to_owned(), rest));
    let Some((at, rest)) = found else { return no_handler(place.path) };
    match namespace.mounts.get_mut(&at).map(|mount| &mut mount.engine) {
        Some(Engine::Transit(transit)) => transit::answer(transit, place, rest, now),
        Some(Engine::Jwt(jwt)) => login_jwt::configure(jwt, place, rest),
        Some(Engine::Cert(cert)) => login_cert::configure(cert, place, rest),
        None => no_handler(place.path),
    }
}

fn no_handler(path: &str) -> Reply {
    Reply::plain(404, format!("no handler for route \"{path}\". route entry not found."))
}

/// A JSON object, `null`, or nothing at all; anything else is `None`. What follows the object is not looked at, as Go does.
fn object(body: &[u8]) -> Option<Map<String, Value>> {
    let mut documents = serde_json::Deserializer::from_slice(body).into_iter::<Option<Map<String, Value>>>();
    match documents.next() {
        None => Some(Map::new()),
        Some(first) => first.ok().map(Option::unwrap_or_default),
    }
}

/// 405, as a path answers that exists for other verbs.
pub fn unsupported_operation() -> Reply {
    Reply::multi(405, "unsupported operation")
}

/// 404, as a mount answers for paths that it does not have.
pub fn unsupported_path() -> Reply {
    Reply::multi(404, "unsupported path")
}
