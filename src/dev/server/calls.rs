//! What the server has answered: a counter for each kind of operation and a stream of events. Nothing of a body is kept.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::broadcast;

/// One handled request.
#[derive(Debug, Clone)]
pub struct Event {
    /// The HTTP method.
    pub method: String,
    /// The path below `/v1/`, without the query.
    pub path: String,
    /// The namespace header; empty when there was none.
    pub namespace: String,
    /// The kind of operation, as [`operation`] names it.
    pub operation: String,
    /// The trace context that the caller sent; empty when there was none.
    pub traceparent: String,
    /// The HTTP status; 0 when a fault left the caller without one.
    pub status: u16,
    /// From the end of the request's head to the answer.
    pub elapsed: Duration,
}

/// Counters and the stream.
#[derive(Debug)]
pub struct Calls {
    counts: Mutex<BTreeMap<String, u64>>,
    /// Items of work, which a batch has many of.
    items: Mutex<BTreeMap<String, u64>>,
    answers: Mutex<BTreeMap<u16, u64>>,
    events: broadcast::Sender<Event>,
}

impl Default for Calls {
    fn default() -> Calls {
        Calls {
            counts: Mutex::default(),
            items: Mutex::default(),
            answers: Mutex::default(),
            events: broadcast::channel(1024).0,
        }
    }
}

impl Calls {
    /// How many requests of a kind were handled, such as `transit/decrypt`; see [`operation`].
    pub fn of(&self, operation: &str) -> u64 {
        lock(&self.counts).get(operation).copied().unwrap_or(0)
    }

    /// How many ciphertexts or plaintexts requests of a kind brought: one each, or as many as a batch has.
    pub fn items(&self, operation: &str) -> u64 {
        lock(&self.items).get(operation).copied().unwrap_or(0)
    }

    /// How many requests were answered with this status; 0 counts those that a fault left without an answer.
    pub fn answered(&self, status: u16) -> u64 {
        lock(&self.answers).get(&status).copied().unwrap_or(0)
    }

    /// How many requests were handled in all.
    pub fn total(&self) -> u64 {
        lock(&self.counts).values().sum()
    }

    /// Sets every counter to zero.
    pub fn reset(&self) {
        lock(&self.counts).clear();
        lock(&self.items).clear();
        lock(&self.answers).clear();
    }

    /// Events from now on; a reader more than 1024 behind loses the oldest.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Counts a request when it arrives.
    pub(super) fn count(&self, operation: &str) {
        *lock(&self.counts).entry(operation.to_owned()).or_default() += 1;
    }

    /// Counts the work that a request brings.
    pub(super) fn carried(&self, operation: &str, items: u64) {
        *lock(&self.items).entry(operation.to_owned()).or_default() += items;
    }

    /// Tells the readers of a request that was handled.
    pub(super) fn tell(&self, event: &Event) {
        *lock(&self.answers).entry(event.status).or_default() += 1;
        // Nobody listening is the ordinary case.
        let _ = self.events.send(event.clone());
    }
}

fn lock<T>(counters: &Mutex<T>) -> MutexGuard<'_, T> {
    counters.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The kind of a request: `transit/encrypt`, `transit/decrypt`, `transit/keys` (read), `transit/rotate` and the key's other
/// verbs, `transit/config/keys`, `auth/login`, `token/renew-self`, `sys/health`; else method and path.
pub fn operation(method: &str, path: &str) -> String {
    let parts: Vec<&str> = path.split('/').collect();
    if let Some(at) = parts.iter().position(|part| *part == "sys")
        && let Some(name) = parts.get(at + 1)
    {
        return format!("sys/{name}");
    }
    match parts.as_slice() {
        [.., "config", "keys"] => "transit/config/keys".into(),
        [.., "keys", _, verb] => format!("transit/{verb}"),
        [.., "keys", _] if method == "GET" => "transit/keys".into(),
        [.., verb @ ("encrypt" | "decrypt" | "rewrap"), _] => format!("transit/{verb}"),
        [.., "auth", "token", verb] => format!("token/{verb}"),
        [.., "login"] => "auth/login".into(),
        _ => format!("{method} {path}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_named_whatever_mount_and_namespace() {
        assert_eq!(operation("POST", "ns1/transit/encrypt/k"), "transit/encrypt");
        assert_eq!(operation("GET", "t2/keys/k"), "transit/keys");
        assert_eq!(operation("POST", "transit/keys/k/rotate"), "transit/rotate");
        assert_eq!(operation("GET", "transit/config/keys"), "transit/config/keys");
        assert_eq!(operation("POST", "auth/jwt/login"), "auth/login");
        assert_eq!(operation("POST", "auth/token/renew-self"), "token/renew-self");
        assert_eq!(operation("GET", "sys/health"), "sys/health");
        assert_eq!(operation("POST", "transit/keys/k"), "POST transit/keys/k");
    }
}
