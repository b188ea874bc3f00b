//! The sys paths that need no token: health, seal status, leader, init and unseal.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::VERSION;
use super::reply::Reply;
use super::route::Call;
use super::state::State;

/// Answers `sys/<name>` when it is one of these paths.
pub fn answer(state: &State, call: &Call, name: &str, body: &Map<String, Value>) -> Option<Reply> {
    let method = call.method.as_str();
    let write = matches!(method, "POST" | "PUT");
    let read = method == "GET";
    Some(match name {
        "health" if read || method == "HEAD" => health(state, call, method == "HEAD"),
        "seal-status" if read => Reply::raw(200, &seal_status(state)),
        "leader" if read => Reply::raw(
            200,
            &json!({
                "ha_enabled": false, "is_self": false, "active_time": "0001-01-01T00:00:00Z",
                "leader_address": "", "leader_cluster_address": "",
            }),
        ),
        "init" if read => Reply::raw(200, &json!({ "initialized": true })),
        "init" if write => Reply::bad("Vault is already initialized"),
        "unseal" if write => unseal(state, body),
        "health" | "seal-status" | "leader" | "init" | "unseal" => Reply::blank(405),
        _ => return None,
    })
}

/// Paths that refuse a namespace header.
pub fn is_root_only(name: &str) -> bool {
    matches!(name, "health" | "init" | "seal" | "unseal" | "step-down")
}

fn health(state: &State, call: &Call, head: bool) -> Reply {
    let (sealed, standby) = (state.lock().sealed, call.standby.is_some());
    let (mut status, mine) = match (sealed, standby) {
        (true, _) => (503, "sealedcode"),
        (false, true) => (429, "standbycode"),
        (false, false) => (200, "activecode"),
    };
    for (name, value) in call.query.split('&').filter_map(|pair| pair.split_once('=')) {
        if !matches!(name, "activecode" | "standbycode" | "sealedcode" | "uninitcode") {
            continue;
        }
        let Some(code) = value.parse().ok().filter(|code| (100..1000).contains(code)) else { return Reply::blank(400) };
        if name == mine {
            status = code;
        }
    }
    let mode = if sealed { "unknown" } else { "disabled" };
    let mut body = json!({
        "initialized": true, "sealed": sealed, "standby": sealed || standby, "performance_standby": false,
        "replication_performance_mode": mode, "replication_dr_mode": mode,
        "server_time_utc": state.clock.unix(), "version": VERSION,
    });
    if !sealed {
        body["cluster_name"] = cluster_name(state).into();
        body["cluster_id"] = state.cluster_id.clone().into();
    }
    if head { Reply { status, body: String::new() } } else { Reply::raw(status, &body) }
}

fn seal_status(state: &State) -> Value {
    let sealed = state.lock().sealed;
    let mut body = json!({
        "type": "shamir", "initialized": true, "sealed": sealed, "t": 1, "n": 1, "progress": 0, "nonce": "",
        "version": VERSION, "build_date": "", "migration": false,
    });
    if !sealed {
        body["cluster_name"] = cluster_name(state).into();
        body["cluster_id"] = state.cluster_id.clone().into();
    }
    body["recovery_seal"] = false.into();
    body["storage_type"] = "inmem".into();
    body
}

fn cluster_name(state: &State) -> String {
    format!("vault-cluster-{}", &state.cluster_id[..8])
}

fn unseal(state: &State, body: &Map<String, Value>) -> Reply {
    let sealed = state.lock().sealed;
    if body.get("reset").and_then(Value::as_bool) == Some(true) {
        return if sealed { Reply::raw(200, &seal_status(state)) } else { Reply::bad("vault is unsealed") };
    }
    let text = body.get("key").and_then(Value::as_str).unwrap_or_default();
    if text.is_empty() {
        return Reply::bad("'key' must be specified in request body as JSON, or 'reset' set to true");
    }
    let Some(key) = unhex(text).or_else(|| STANDARD.decode(text).ok()) else {
        return Reply::bad("'key' must be a valid hex or base64 string");
    };
    if key.len() < 16 {
        return Reply::bad("invalid key: key is shorter than minimum 16 bytes");
    }
    if sealed && key != state.unseal_key {
        return Reply::bad(
            "unable to retrieve stored keys: invalid key: failed to decrypt keys from storage: cipher: message authentication failed",
        );
    }
    state.unseal();
    Reply::raw(200, &seal_status(state))
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}
