//! Identical decrypts in flight share one flight. kube-apiserver asks for the same seed many times at once after a start;
//! OpenBao is asked once.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::Shared;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
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

/// Held by its waiters alone, whoever of them is awake carries it on; the last one to leave ends it, and with it the
/// plaintext. So it needs no task of its own, which would cost each call two more changes of task.
struct Flight {
    key: Key,
    flights: Arc<Flights>,
    answer: Shared<Answer<Reply>>,
    until: Arc<Until>,
    /// Of the call that flies for all.
    progress: Progress,
}

/// Until when a flight goes on.
struct Until(Mutex<Time>);

struct Time {
    /// The deadline of the waiter that may wait longest; `None` waits for ever.
    due: Option<Instant>,
    /// The flight ends and looks at this no more.
    over: bool,
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
        let joins = |flight: &&Arc<Flight>| !flight.has_failed() && flight.until.extend(deadline);
        if let Some(flight) = known.as_ref().filter(joins).cloned() {
            self.metrics.coalesced();
            bound.context.progress.follow(&flight.progress);
            return flight;
        }
        let (until, progress) = (Arc::new(Until::new(deadline)), bound.context.progress.clone());
        let answer = fly(self.inner.clone(), bound, until.clone(), self.metrics.clone());
        let answer: Answer<Reply> = Box::pin(answer.in_current_span());
        let flight = Flight { key: key.clone(), flights: flights.clone(), answer: answer.shared(), until, progress };
        let flight = Arc::new(flight);
        map.insert(key, Arc::downgrade(&flight));
        flight
    }
}

/// Calls the inner service until it answers or the longest waiter's deadline has passed. A panic is the answer of all
/// waiters.
async fn fly<S>(inner: S, bound: Bound, until: Arc<Until>, metrics: Arc<PipelineMetrics>) -> Result<Reply, Error>
where
    S: Service<Bound, Response = Reply, Error = Error>,
{
    let answer = AssertUnwindSafe(fly_on(inner, bound, &until)).catch_unwind().await;
    answer.unwrap_or_else(|_| {
        super::panicked(&metrics);
        Err(Error::new(Class::Internal, "a shared call panicked"))
    })
}

async fn fly_on<S>(mut inner: S, mut bound: Bound, until: &Until) -> Result<Reply, Error>
where
    S: Service<Bound, Response = Reply, Error = Error>,
{
    loop {
        let known = until.due();
        bound.context.deadline = known;
        let answer = inner.call(bound.clone()).await;
        // Below, the flight's first deadline bounded waits and repeats; a waiter that came later may still have time.
        let late = answer
            .as_ref()
            .is_err_and(|error| error.class() == Class::DeadlineExceeded || error.class().repeat() != Repeat::Never);
        if !late || until.is_over(known) {
            return answer;
        }
    }
}

// === impl Until ===

impl Until {
    fn new(due: Option<Instant>) -> Self {
        Self(Mutex::new(Time { due, over: false }))
    }

    fn lock(&self) -> MutexGuard<'_, Time> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn due(&self) -> Option<Instant> {
        self.lock().due
    }

    /// Another waiter with this deadline; `false` when it comes too late for the flight to know.
    fn extend(&self, deadline: Option<Instant>) -> bool {
        let mut time = self.lock();
        if time.due.is_some() && (deadline.is_none() || deadline > time.due) {
            time.due = deadline;
        }
        !time.over
    }

    /// Whether nobody has more time than was known; from then on nobody joins.
    fn is_over(&self, known: Option<Instant>) -> bool {
        let mut time = self.lock();
        time.over = time.due == known;
        time.over
    }
}

// === impl Flight ===

impl Drop for Flight {
    fn drop(&mut self) {
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
        self.answer.peek().is_some_and(Result::is_err)
    }

    /// The answer of the flight; leaves when the caller stops waiting.
    async fn wait(self: Arc<Self>) -> Result<Reply, Error> {
        self.answer.clone().await
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
