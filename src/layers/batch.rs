//! Decrypts that come while others are on their way to OpenBao go together in one exchange. There is no timer: a call
//! that meets no other goes at once and alone, so that batches form only where waiting for one costs nothing.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tower::Service;
use tracing::Instrument;

use super::Answer;
use crate::error::{Class, Error};
use crate::request::{Bound, Kind, Lot, Outcomes, Reply, Stage};
use crate::telemetry::metrics::PipelineMetrics;

/// Exchanges under way before calls gather. Measured: one leaves OpenBao idle between two, three make batches small and
/// cost this process a third more for each call at 16 in flight.
const EXCHANGES: usize = 2;

/// `layers.batch`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[schemars(rename = "BatchLayer")]
pub struct Config {
    /// Decrypts in one exchange with OpenBao; 1 turns batching off. 1 to 240, what OpenBao takes in one request. Default 128.
    #[schemars(range(min = 1, max = 240))]
    pub max_items: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { max_items: 128 }
    }
}

/// The layer's service.
#[derive(Clone)]
pub(super) struct Batch<S> {
    inner: S,
    platform: Option<Arc<Platform>>,
}

/// Where decrypts wait for the next exchange.
struct Platform {
    state: Mutex<State>,
    max_items: usize,
    max_queued: usize,
    metrics: Arc<PipelineMetrics>,
}

#[derive(Default)]
struct State {
    exchanges: usize,
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    bound: Bound,
    answer: oneshot::Sender<Result<Reply, Error>>,
    /// The caller's, so that the exchange shows in its trace.
    span: tracing::Span,
}

/// The right to make one exchange; whoever lets go of it hands it to those who wait.
struct Turn<S: Service<Lot, Response = Outcomes, Error = Error> + Clone + Send + 'static>
where
    S::Future: Send + 'static,
{
    inner: S,
    platform: Arc<Platform>,
}

// === impl Batch ===

impl<S> Batch<S> {
    /// `max_queued` is how many calls may wait; more are refused.
    pub(super) fn new(inner: S, config: &Config, max_queued: usize, metrics: Arc<PipelineMetrics>) -> Self {
        let platform = Platform { state: Mutex::default(), max_items: config.max_items, max_queued, metrics };
        Self { inner, platform: (config.max_items > 1).then(|| Arc::new(platform)) }
    }
}

/// The only answer of a lot of one.
fn only(mut outcomes: Outcomes) -> Result<Reply, Error> {
    outcomes.pop().unwrap_or_else(|| Err(Error::new(Class::Internal, "an exchange ended without an outcome")))
}

// === impl Platform ===

impl Platform {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a turn if one is free; otherwise a place among those who wait.
    fn enter(&self, bound: Bound) -> Result<Entered, Error> {
        let mut state = self.state();
        if state.exchanges < EXCHANGES {
            state.exchanges += 1;
            return Ok(Entered::Turn(bound));
        }
        if state.waiting.len() >= self.max_queued {
            state.waiting.retain(|waiting| !waiting.answer.is_closed());
        }
        if state.waiting.len() >= self.max_queued {
            return Err(Error::new(Class::Overloaded, "more calls wait for OpenBao than layers.admit.maxQueued"));
        }
        bound.context.progress.enter(Stage::Queue);
        let (answer, answered) = oneshot::channel();
        state.waiting.push_back(Waiting { bound, answer, span: tracing::Span::current() });
        self.metrics.set_gathering(state.waiting.len());
        Ok(Entered::Waits(answered))
    }

    /// Who goes next, without those whose callers have left; nobody gives the turn back.
    fn next(&self) -> Vec<Waiting> {
        let mut state = self.state();
        state.waiting.retain(|waiting| !waiting.answer.is_closed());
        let count = state.waiting.len().min(self.max_items);
        let next: Vec<_> = state.waiting.drain(..count).collect();
        if next.is_empty() {
            state.exchanges -= 1;
        }
        self.metrics.set_gathering(state.waiting.len());
        next
    }
}

enum Entered {
    Turn(Bound),
    Waits(oneshot::Receiver<Result<Reply, Error>>),
}

// === impl Turn ===

impl<S> Turn<S>
where
    S: Service<Lot, Response = Outcomes, Error = Error> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    /// Makes one exchange for all of them, and ends early when all of them have left.
    async fn carry(mut self, going: Vec<Waiting>) {
        let (mut lot, mut answers) = (Lot::with_capacity(going.len()), Vec::with_capacity(going.len()));
        for Waiting { bound, answer, .. } in going {
            lot.push(bound);
            answers.push(answer);
        }
        self.platform.metrics.batched(lot.len());
        tokio::select! {
            biased;
            outcomes = self.exchange(lot) => {
                for (answer, outcome) in answers.into_iter().zip(outcomes) {
                    // A caller that left meanwhile needs no answer.
                    let _ = answer.send(outcome);
                }
            }
            () = async { for answer in &mut answers { answer.closed().await } } => {}
        }
    }

    async fn exchange(&mut self, lot: Lot) -> Outcomes {
        let count = lot.len();
        let error = match self.inner.call(lot.clone()).await {
            Ok(outcomes) if outcomes.len() == count => return outcomes,
            Ok(_) => Error::new(Class::BadReply, "the answer to a batch has another length"),
            Err(error) => error,
        };
        // What cannot be written or read as a whole may be one item's doing: no other pays for it.
        if count > 1 && matches!(error.class(), Class::Internal | Class::BadReply | Class::CiphertextInvalid) {
            let mut outcomes = Outcomes::with_capacity(count);
            for bound in lot {
                outcomes.push(self.inner.call(vec![bound]).await.and_then(only));
            }
            return outcomes;
        }
        vec![Err(error); count]
    }
}

impl<S> Drop for Turn<S>
where
    S: Service<Lot, Response = Outcomes, Error = Error> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    fn drop(&mut self) {
        let next = self.platform.next();
        let span = next.first().map(|first| first.span.clone());
        // Without a runtime the program is ending: those who wait learn it from their senders, which drop here.
        if let (Some(span), Ok(runtime)) = (span, tokio::runtime::Handle::try_current()) {
            let turn = Turn { inner: self.inner.clone(), platform: self.platform.clone() };
            runtime.spawn(turn.carry(next).instrument(span));
        }
    }
}

impl<S> Service<Bound> for Batch<S>
where
    S: Service<Lot, Response = Outcomes, Error = Error> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Reply;
    type Error = Error;
    type Future = Answer<Reply>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, bound: Bound) -> Self::Future {
        let mut inner = self.inner.clone();
        let Some(platform) = self.platform.clone().filter(|_| bound.kind() == Kind::Decrypt) else {
            return Box::pin(async move { inner.call(vec![bound]).await.and_then(only) });
        };
        match platform.enter(bound) {
            Ok(Entered::Turn(bound)) => {
                // Made before the future is polled, so that a future dropped unpolled gives its turn back too.
                let mut turn = Turn { inner, platform };
                Box::pin(async move { turn.inner.call(vec![bound]).await.and_then(only) })
            }
            Ok(Entered::Waits(answered)) => Box::pin(async move {
                let lost = || Err(Error::new(Class::Internal, "a batch ended without an answer"));
                answered.await.unwrap_or_else(|_| lost())
            }),
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }
}

#[cfg(test)]
#[path = "batch_tests.rs"]
mod tests;
