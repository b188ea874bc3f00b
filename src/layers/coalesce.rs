//! Identical decrypts in flight share one flight. kube-apiserver asks for the same seed many times at once after a start;
//! OpenBao is asked once.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};

use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tower::Service;
use tracing::Instrument;

use super::Answer;
use crate::error::{Class, Error, Repeat};
use crate::request::{Bound, Payload, Progress, Reply};
use crate::telemetry::metrics::PipelineMetrics;

/// `layers.coalesce`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[schemars(rename = "CoalesceLayer")]
pub struct Config {
    /// Whether identical decrypts share a flight. Default true.
    pub enabled: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { enabled: true }
    }
}

/// The layer's service.
#[derive(Clone)]
pub(super) struct Coalesce<S> {
    inner: S,
    flights: Option<Arc<Flights>>,
    metrics: Arc<PipelineMetrics>,
}

/// What makes two calls identical, compared whole.
#[derive(Clone, PartialEq, Eq)]
struct Key {
    ciphertext: Bytes,
    associated_data: Arc<str>,
}

/// The ciphertext alone tells flights apart well enough: it holds a nonce, and the associated data is the longer part.
impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.ciphertext.hash(state);
    }
}

type Flights = Mutex<HashMap<Key, Weak<Flight>>>;
type Landing = Option<Result<Reply, Error>>;

/// Held by its waiters alone: the last one to leave ends it, and with it the plaintext.
struct Flight {
    key: Key,
    flights: Arc<Flights>,
    landing: watch::Receiver<Landing>,
    deadline: watch::Sender<Option<Instant>>,
    /// Of the call that flies for all.
    progress: Progress,
    task: AbortHandle,
}

// === impl Coalesce ===

impl<S> Coalesce<S> {
    pub(super) fn new(inner: S, config: &Config, metrics: Arc<PipelineMetrics>) -> Self {
        Self { inner, flights: config.enabled.then(Arc::default), metrics }
    }
}

impl<S> Coalesce<S>
where
    S: Service<Bound, Response = Reply, Error = Error> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    /// The flight of an identical call, or a new one.
    fn board(&self, flights: &Arc<Flights>, bound: Bound, ciphertext: Bytes) -> Arc<Flight> {
        let key = Key { ciphertext, associated_data: bound.version.associated_data.clone() };
        let deadline = bound.context.deadline;
        // Declared before the lock, so that it is let go after it: the last holder of a flight takes the lock.
        let known;
        let mut map = flights.lock().unwrap_or_else(PoisonError::into_inner);
        known = map.get(&key).and_then(Weak::upgrade);
        if let Some(flight) = known.as_ref().filter(|flight| !flight.has_failed()).cloned() {
            self.metrics.coalesced();
            bound.context.progress.follow(&flight.progress);
            flight.deadline.send_if_modified(|known| {
                // `None` waits for ever, which is the longest there is.
                let longer = known.is_some() && (deadline.is_none() || deadline > *known);
                if longer {
                    *known = deadline;
                }
                longer
            });
            return flight;
        }
        let (landed, landing) = watch::channel(None);
        let (deadline, until) = watch::channel(deadline);
        let progress = bound.context.progress.clone();
        let task = tokio::spawn(fly(self.inner.clone(), bound, until, landed).in_current_span()).abort_handle();
        let flight = Arc::new(Flight { key: key.clone(), flights: flights.clone(), landing, deadline, progress, task });
        map.insert(key, Arc::downgrade(&flight));
        flight
    }
}

/// Calls the inner service until it answers or the longest waiter's deadline has passed.
async fn fly<S>(
    mut inner: S,
    mut bound: Bound,
    mut until: watch::Receiver<Option<Instant>>,
    landed: watch::Sender<Landing>,
) where
    S: Service<Bound, Response = Reply, Error = Error> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    loop {
        let known = *until.borrow_and_update();
        bound.context.deadline = known;
        let answer = inner.call(bound.clone()).await;
        // Below, the flight's first deadline bounded waits and repeats; a waiter that came later may still have time.
        let late = answer
            .as_ref()
            .is_err_and(|error| error.class() == Class::DeadlineExceeded || error.class().repeat() != Repeat::Never);
        let extended = until.has_changed().unwrap_or(false);
        if !(late && extended) {
            // Nobody may be left to hear it; then the answer ends here.
            let _ = landed.send(Some(answer));
            return;
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.task.abort();
        let mut map = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        // A new flight of the same key may have begun between our last waiter's leaving and this lock.
        if map.get(&self.key).is_some_and(|known| known.strong_count() == 0) {
            map.remove(&self.key);
        }
    }
}

impl Flight {
    /// Whether it has landed without a seed: who comes now has not been tried for.
    fn has_failed(&self) -> bool {
        self.landing.borrow().as_ref().is_some_and(Result::is_err)
    }

    /// The answer of the flight; leaves when the caller stops waiting.
    async fn wait(self: Arc<Self>) -> Result<Reply, Error> {
        let mut landing = self.landing.clone();
        let answer = match landing.wait_for(Option::is_some).await {
            Ok(answer) => answer.clone(),
            // The task panicked: a defect, and the panic was reported where it happened.
            Err(_) => None,
        };
        answer.unwrap_or_else(|| Err(Error::new(Class::Internal, "a shared call ended without an answer")))
    }
}

impl<S> Service<Bound> for Coalesce<S>
where
    S: Service<Bound, Response = Reply, Error = Error> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Reply;
    type Error = Error;
    type Future = Answer<Reply>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, bound: Bound) -> Self::Future {
        match (&self.flights, &bound.payload) {
            (Some(flights), Payload::Decrypt(ciphertext)) => {
                let ciphertext = ciphertext.clone();
                Box::pin(self.board(flights, bound, ciphertext).wait())
            }
            _ => Box::pin(self.inner.call(bound)),
        }
    }
}

#[cfg(test)]
#[path = "coalesce_tests.rs"]
mod tests;
