//! What the server has answered: a counter for each kind of operation and a stream of events. Nothing of a body is kept.

use std::collections::BTreeMap;
use std::sync::Mutex;
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
    events: broadcast::Sender<Event>,
}

impl Default for Calls {
    fn default() -> Calls {
        Calls { counts: Mutex::default(), events: broadcast::channel(1024).0 }
    }
}

impl Calls {
    /// How many requests of a kind were handled, such as `transit/decrypt`; see [`operation`].
    pub fn of(&self, operation: &str) -> u64 {
        self.lock().get(operation).copied().unwrap_or(0)
    }

    /// How many requests were handled in all.
    pub fn total(&self) -> u64 {
        self.lock().values().sum()
    }

    /// Sets every counter to zero.
    pub fn reset(&self) {
        self.lock().clear();
    }

    /// Events from now on; a reader more than 1024 behind loses the oldest.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Counts a request when it arrives.
    pub(super) fn count(&self, operation: &str) {
        *self.lock().entry(operation.to_owned()).or_default() += 1;
    }

    /// Tells the readers of a request that was handled.
    pub(super) fn tell(&self, event: &Event) {
        // Nobody listening is the ordinary case.
        let _ = self.events.send(event.clone());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, u64>> {
        self.counts.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
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
