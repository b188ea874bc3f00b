//! The only place that repeats. What did no work is repeated for as long as the deadline allows; other repeats are
//! counted, and the pipeline's budget bounds them all the same when everything fails. A repeat where another address
//! serves takes nothing from it: one bad address of several must not use up what the rest may need.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tower::Service;

use super::Answer;
use crate::error::{Error, Repeat};
use crate::request::{Bound, Progress, Reply, Stage};
use crate::telemetry::metrics::PipelineMetrics;

const FIRST_PAUSE: Duration = Duration::from_millis(25);
const LAST_PAUSE: Duration = Duration::from_millis(500);
/// What the last attempt of a call gets: enough for an OpenBao that serves again to answer.
const LAST_TRY: Duration = Duration::from_millis(50);
/// The budget: a hundred counted repeats. A success brings a tenth of one; calls that failed in one exchange share one, as
/// they will share the next.
const FULL: u32 = 100_000;
const REPEAT_COSTS: u32 = 1_000;
const SUCCESS_BRINGS: u32 = 100;

/// `layers.retry`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[schemars(rename = "RetryLayer")]
pub struct Config {
    /// Whether anything is repeated. Default true.
    pub enabled: bool,
    /// Attempts of one call that may have done work, the first included. What did no work is not counted. 1 to 10. Default 3.
    #[schemars(range(min = 1, max = 10))]
    pub max_attempts: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self { enabled: true, max_attempts: 3 }
    }
}

/// The layer's service.
#[derive(Clone)]
pub(super) struct Retry<S> {
    inner: S,
    max_attempts: u32,
    enabled: bool,
    budget: Arc<AtomicU32>,
    metrics: Arc<PipelineMetrics>,
}

// === impl Retry ===

impl<S> Retry<S> {
    pub(super) fn new(inner: S, config: &Config, metrics: Arc<PipelineMetrics>) -> Self {
        Self {
            inner,
            max_attempts: config.max_attempts,
            enabled: config.enabled,
            budget: Arc::new(AtomicU32::new(FULL)),
            metrics,
        }
    }

    fn earn(&self) {
        // Full most of the time: reading is cheaper than writing.
        if self.budget.load(Ordering::Relaxed) < FULL {
            self.budget.fetch_add(SUCCESS_BRINGS, Ordering::Relaxed);
        }
    }

    fn spend(&self, costs: u32) -> bool {
        self.budget.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(costs)).is_ok()
    }

    /// Whether an error may be repeated once more.
    fn allows(&self, error: &Error, progress: &Progress, counted: &mut u32) -> bool {
        match error.class().repeat() {
            Repeat::Never => false,
            Repeat::Free => true,
            Repeat::Counted => {
                *counted += 1;
                let costs = if progress.goes_elsewhere() { 0 } else { REPEAT_COSTS.div_ceil(error.shared_by()) };
                *counted < self.max_attempts && self.spend(costs)
            }
        }
    }
}

impl<S> Retry<S>
where
    S: Service<Bound, Response = Reply, Error = Error>,
{
    async fn run(mut self, bound: Bound) -> Result<Reply, Error> {
        let (mut pause, mut counted) = (FIRST_PAUSE, 0);
        loop {
            let error = match self.inner.call(bound.clone()).await {
                Ok(reply) => {
                    self.earn();
                    return Ok(reply);
                }
                Err(error) => error,
            };
            let progress = &bound.context.progress;
            progress.met(error.class());
            let left = bound.context.deadline.map(|due| due.saturating_duration_since(Instant::now()));
            let repeat = error.class().repeat();
            if repeat != Repeat::Never && left.is_some_and(|left| left <= LAST_TRY) {
                return Err(super::late(progress));
            }
            if !self.enabled || !self.allows(&error, progress, &mut counted) {
                return Err(error);
            }
            let mut wait = error.retry_after().unwrap_or_else(|| pause.mul_f64(0.5 + fastrand::f64()));
            pause = (pause * 2).min(LAST_PAUSE);
            if let Some(left) = left.filter(|left| wait >= *left) {
                // What is counted, or asked for a longer wait, has had its chance. What did no work gets a last one.
                if repeat != Repeat::Free {
                    return Err(error);
                }
                wait = left - LAST_TRY;
            }
            progress.enter(Stage::Backoff);
            self.metrics.repeated();
            tokio::time::sleep(wait).await;
        }
    }
}

impl<S> Service<Bound> for Retry<S>
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
        Box::pin(self.clone().run(bound))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::super::testing::{decrypt, opened};
    use super::*;
    use crate::error::Class;

    async fn attempts(class: Class, fail: usize, within: Duration) -> (Result<Reply, Error>, usize) {
        let begun = Arc::new(AtomicUsize::new(0));
        let counter = begun.clone();
        let puppet = tower::service_fn(move |_: Bound| {
            let at = counter.fetch_add(1, Ordering::SeqCst);
            std::future::ready(if at < fail { Err(Error::from(class)) } else { Ok(opened()) })
        });
        let mut retry = Retry::new(puppet, &Config::default(), PipelineMetrics::new());
        let answer = retry.call(decrypt("vault:v1:a", within)).await;
        (answer, begun.load(Ordering::SeqCst))
    }

    #[tokio::test(start_paused = true)]
    async fn classes_decide_how_often() {
        for &class in Class::ALL {
            let (answer, begun) = attempts(class, usize::MAX, Duration::from_secs(3)).await;
            let error = answer.expect_err("fails");
            match class.repeat() {
                Repeat::Never => assert_eq!((begun, error.class()), (1, class)),
                Repeat::Counted => assert_eq!((begun, error.class()), (3, class)),
                Repeat::Free => {
                    assert!(begun > 5, "{class}: {begun}");
                    assert_eq!((error.class(), error.reason()), (Class::DeadlineExceeded, Some(class)));
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_election_fits_into_the_deadline() {
        let (answer, begun) = attempts(Class::NoLeader, 5, Duration::from_secs(3)).await;
        assert!(answer.is_ok());
        assert_eq!(begun, 6);
    }

    #[tokio::test(start_paused = true)]
    async fn no_attempt_begins_after_the_deadline() {
        let began = Instant::now();
        let (answer, _) = attempts(Class::Unreachable, usize::MAX, Duration::from_secs(1)).await;
        assert!(answer.is_err());
        assert!(began.elapsed() <= Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn what_did_no_work_gets_a_last_attempt_just_before_the_deadline() {
        let last = Arc::new(std::sync::Mutex::new(Instant::now()));
        let (note, due) = (last.clone(), Instant::now() + Duration::from_secs(2));
        let puppet = tower::service_fn(move |_: Bound| {
            *note.lock().expect("lock") = Instant::now();
            std::future::ready(Err(Error::from(Class::NoLeader)))
        });
        let mut retry = Retry::new(puppet, &Config::default(), PipelineMetrics::new());
        let error = retry.call(decrypt("vault:v1:a", Duration::from_secs(2))).await.expect_err("no leader");
        assert!(error.public().ends_with("(slow part: back-off between attempts) (because of no_leader)"), "{error}");
        assert!(due - *last.lock().expect("lock") <= LAST_TRY + Duration::from_millis(1));
    }

    #[tokio::test(start_paused = true)]
    async fn openbaos_own_wait_is_kept_and_a_longer_one_than_the_deadline_is_no_wait() {
        for (after, begun, took) in [(1, 3, 2), (10, 1, 0)] {
            let calls = Arc::new(AtomicUsize::new(0));
            let (counter, start) = (calls.clone(), Instant::now());
            let puppet = tower::service_fn(move |_: Bound| {
                counter.fetch_add(1, Ordering::SeqCst);
                let wait = Some(Duration::from_secs(after));
                std::future::ready(Err(Error::from(Class::RateLimited).with_retry_after(wait)))
            });
            let mut retry = Retry::new(puppet, &Config::default(), PipelineMetrics::new());
            let error = retry.call(decrypt("vault:v1:a", Duration::from_secs(5))).await.expect_err("limited");
            assert_eq!((error.class(), calls.load(Ordering::SeqCst)), (Class::RateLimited, begun));
            assert_eq!(start.elapsed().as_secs(), took);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_budget_ends_counted_repeats_when_everything_fails() {
        let begun = Arc::new(AtomicUsize::new(0));
        let counter = begun.clone();
        let puppet = tower::service_fn(move |_: Bound| {
            counter.fetch_add(1, Ordering::SeqCst);
            std::future::ready(Err(Error::from(Class::ServerError)))
        });
        let mut retry = Retry::new(puppet, &Config::default(), PipelineMetrics::new());
        for _ in 0..500 {
            assert!(retry.call(decrypt("vault:v1:a", Duration::from_secs(3))).await.is_err());
        }
        assert_eq!(begun.load(Ordering::SeqCst), 500 + (FULL / REPEAT_COSTS) as usize);
    }

    /// 500 calls of which the first attempt fails: how many of them are answered.
    async fn answered(error: Error, elsewhere: bool) -> usize {
        let puppet = tower::service_fn(move |bound: Bound| {
            let first = bound.context.progress.last_met().is_none();
            bound.context.progress.may_go_elsewhere(elsewhere);
            std::future::ready(if first { Err(error.clone()) } else { Ok(opened()) })
        });
        let retry = Retry::new(puppet, &Config::default(), PipelineMetrics::new());
        let calls = (0..500).map(|_| retry.clone().call(decrypt("vault:v1:a", Duration::from_secs(3))));
        futures_util::future::join_all(calls).await.iter().filter(|answer| answer.is_ok()).count()
    }

    #[tokio::test(start_paused = true)]
    async fn calls_that_failed_together_or_go_elsewhere_leave_the_budget_to_others() {
        let error = || Error::from(Class::ConnectionLost);
        assert_eq!(answered(error(), false).await, (FULL / REPEAT_COSTS) as usize);
        assert_eq!(answered(error(), true).await, 500);
        assert_eq!(answered(error().with_shared_by(100), false).await, 500);
    }
}
