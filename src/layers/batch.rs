//! Decrypts that come while others are on their way to OpenBao go together in one exchange. There is no timer: a call
//! that meets no other, or one other, goes at once and alone, so that batches form only where OpenBao is busy with others.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tower::Service;
use tracing::Instrument;

use super::Answer;
use crate::error::{Class, Error};
use crate::request::{Bound, Kind, Lot, Outcomes, Reply, Stage};
use crate::telemetry::metrics::PipelineMetrics;

/// Exchanges under way before calls gather: where few come, two do not wait for each other. Measured: three make batches
/// small and cost a tenth of the throughput at 64 in flight.
const EXCHANGES: usize = 2;
/// From so many calls in a batch on the next one waits for it, unless it is full: what OpenBao spends on an exchange counts
/// for more than what it could do meanwhile. Measured: a tenth more throughput at 64 in flight.
const CROWD: usize = 8;
/// A crowd that has not been seen for so long is none.
const FORGOTTEN: Duration = Duration::from_secs(1);
/// An exchange that takes longer than this does not keep others waiting: on a connection that has died without a word it may
/// take as long as its callers have patience. `admit` bounds how many there are.
const SLOW: Duration = Duration::from_millis(250);
/// A batch that cannot be read is asked again item by item; after so many single answers that cannot be read either, it is
/// not the items.
const UNREADABLE: usize = 2;

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
    /// The largest of the last batches; each exchange that is smaller takes a quarter off.
    crowd: usize,
    /// When a batch of a crowd last left.
    crowded: Option<Instant>,
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
    /// Handed on already, because the exchange is slow.
    passed: bool,
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

    /// Takes a turn if one is free; otherwise a place among those who wait, which may make a batch full.
    fn enter(&self, bound: Bound) -> Result<Entered, Error> {
        let mut state = self.state();
        if state.waiting.is_empty() && state.exchanges < state.turns(self.max_items) {
            state.leaves(1);
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
        let leaving = state.leaving(self.max_items);
        self.metrics.set_gathering(state.waiting.len());
        Ok(Entered::Waits { answered, leaving })
    }

    /// Who goes next, now that a turn is given back: without those whose callers have left.
    fn next(&self) -> Vec<Vec<Waiting>> {
        let mut state = self.state();
        state.exchanges -= 1;
        state.waiting.retain(|waiting| !waiting.answer.is_closed());
        let leaving = state.leaving(self.max_items);
        self.metrics.set_gathering(state.waiting.len());
        leaving
    }
}

// === impl State ===

impl State {
    /// How many exchanges may be under way.
    fn turns(&self, max_items: usize) -> usize {
        let crowded = self.crowd >= CROWD && self.crowded.is_some_and(|at| at.elapsed() < FORGOTTEN);
        if !crowded || self.waiting.len() >= max_items { EXCHANGES } else { 1 }
    }

    /// An exchange of so many calls begins.
    fn leaves(&mut self, calls: usize) {
        self.exchanges += 1;
        self.crowd = calls.max(self.crowd - self.crowd.div_ceil(4));
        if calls >= CROWD {
            self.crowded = Some(Instant::now());
        }
    }

    /// The batches for which there are turns.
    fn leaving(&mut self, max_items: usize) -> Vec<Vec<Waiting>> {
        let mut batches = Vec::new();
        while !self.waiting.is_empty() && self.exchanges < self.turns(max_items) {
            let count = self.waiting.len().min(max_items);
            batches.push(self.waiting.drain(..count).collect());
            self.leaves(count);
        }
        batches
    }
}

enum Entered {
    Turn(Bound),
    Waits { answered: oneshot::Receiver<Result<Reply, Error>>, leaving: Vec<Vec<Waiting>> },
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
        let outcome = tokio::select! {
            biased;
            outcome = self.exchange(lot.clone()) => outcome,
            () = async { for answer in &mut answers { answer.closed().await } } => return,
        };
        match outcome {
            Ok(outcomes) => {
                for (answer, outcome) in answers.into_iter().zip(outcomes) {
                    // A caller that left meanwhile needs no answer.
                    let _ = answer.send(outcome);
                }
            }
            Err(error) if lot.len() > 1 && may_be_one_items(&error) => {
                // As many exchanges as items: nobody else waits for all of them.
                self.pass_on();
                self.alone(lot, answers, error).await;
            }
            Err(error) => {
                let error = error.with_shared_by(answers.len());
                for answer in answers {
                    let _ = answer.send(Err(error.clone()));
                }
            }
        }
    }

    /// One exchange, which keeps its turn for as long as one usually takes.
    async fn exchange(&mut self, lot: Lot) -> Result<Outcomes, Error> {
        let count = lot.len();
        let answer = self.inner.call(lot);
        tokio::pin!(answer);
        let outcomes = match tokio::time::timeout(SLOW, &mut answer).await {
            Ok(outcomes) => outcomes,
            Err(_) => {
                self.pass_on();
                answer.await
            }
        };
        match outcomes? {
            outcomes if outcomes.len() == count => Ok(outcomes),
            _ => Err(Error::new(Class::BadReply, "the answer to a batch has another length")),
        }
    }

    /// Asks for each item alone, because what cannot be written or read as a whole may be one item's doing: no other pays
    /// for it.
    async fn alone(&mut self, lot: Lot, answers: Vec<oneshot::Sender<Result<Reply, Error>>>, whole: Error) {
        let mut unreadable = 0;
        for (bound, mut answer) in lot.into_iter().zip(answers) {
            if unreadable >= UNREADABLE {
                let _ = answer.send(Err(whole.clone()));
                continue;
            }
            let outcome = tokio::select! {
                biased;
                () = answer.closed() => continue,
                outcome = self.exchange(vec![bound]) => outcome.and_then(only),
            };
            // An item's own fault has a class of its own.
            let unread = outcome.as_ref().is_err_and(|error| match error.class() {
                Class::BadReply => true,
                Class::Internal => whole.class() == Class::Internal,
                _ => false,
            });
            unreadable = if unread { unreadable + 1 } else { 0 };
            let _ = answer.send(outcome);
        }
    }

    /// Hands the turn to those who wait, or gives it back.
    fn pass_on(&mut self) {
        if std::mem::replace(&mut self.passed, true) {
            return;
        }
        let leaving = self.platform.next();
        Self::send(&self.inner, &self.platform, leaving);
    }

    /// Lets these batches go, each with the turn that it was given.
    fn send(inner: &S, platform: &Arc<Platform>, leaving: Vec<Vec<Waiting>>) {
        for batch in leaving {
            let span = batch.first().map(|first| first.span.clone());
            let turn = Turn { inner: inner.clone(), platform: platform.clone(), passed: false };
            // Without a runtime the program is ending: those who wait learn it from their senders, which drop here.
            if let (Some(span), Ok(runtime)) = (span, tokio::runtime::Handle::try_current()) {
                let metrics = platform.metrics.clone();
                let carried = async move {
                    // Those who wait learn it from their senders, which the panic has dropped.
                    if AssertUnwindSafe(turn.carry(batch)).catch_unwind().await.is_err() {
                        super::panicked(&metrics);
                    }
                };
                runtime.spawn(carried.instrument(span));
            }
        }
    }
}

fn may_be_one_items(error: &Error) -> bool {
    matches!(error.class(), Class::Internal | Class::BadReply | Class::CiphertextInvalid)
}

impl<S> Drop for Turn<S>
where
    S: Service<Lot, Response = Outcomes, Error = Error> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    fn drop(&mut self) {
        self.pass_on();
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
                let mut turn = Turn { inner, platform, passed: false };
                Box::pin(async move { turn.exchange(vec![bound]).await.and_then(only) })
            }
            Ok(Entered::Waits { answered, leaving }) => {
                Turn::send(&inner, &platform, leaving);
                Box::pin(async move {
                    let lost = || Err(Error::new(Class::Internal, "a batch ended without an answer"));
                    answered.await.unwrap_or_else(|_| lost())
                })
            }
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }
}

#[cfg(test)]
#[path = "batch_tests.rs"]
mod tests;
