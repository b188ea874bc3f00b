//! The caller's deadline less a margin, so that our answer is there before the caller's runtime gives up.

use std::task::{Context, Poll};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tower::Service;

use super::Answer;
use crate::error::Error;
use crate::request::{Request, Response};
use crate::units::Span;

const MAX_MARGIN: Duration = Duration::from_millis(200);

/// `layers.deadline`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[schemars(rename = "DeadlineLayer")]
pub struct Config {
    /// The longest that any call may take, whatever its caller says; to raise it above 299s takes a restart. Default 30s.
    pub max: Span,
    /// How long a call may take whose caller names no deadline, and, within 2.8 s and 10 s, each question by which Status is judged: raise it where the `timeout` of the EncryptionConfiguration is raised for a slow OpenBao. Default 2500ms.
    #[serde(rename = "default")]
    pub unnamed: Span,
}

impl Default for Config {
    fn default() -> Self {
        Self { max: Span::from_secs(30), unnamed: Span::from_millis(2500) }
    }
}

/// The layer's service.
#[derive(Clone)]
pub(super) struct Deadline<S> {
    inner: S,
    max: Duration,
    unnamed: Duration,
}

// === impl Deadline ===

impl<S> Deadline<S> {
    pub(super) fn new(inner: S, config: &Config) -> Self {
        Self { inner, max: config.max.get(), unnamed: config.unnamed.get() }
    }

    /// How long the call may take: a tenth less than its caller waits, at most 200 ms less.
    fn within(&self, patience: Option<Duration>) -> Duration {
        let wanted = patience.map_or(self.unnamed, |patience| patience - (patience / 10).min(MAX_MARGIN));
        wanted.min(self.max)
    }
}

impl<S> Service<Request> for Deadline<S>
where
    S: Service<Request, Response = Response, Error = Error>,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = Error;
    type Future = Answer<Response>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        let due = request.context.arrived + self.within(request.context.patience);
        request.context.deadline = Some(due);
        let progress = request.context.progress.clone();
        let answer = self.inner.call(request);
        Box::pin(
            async move { tokio::time::timeout_at(due, answer).await.unwrap_or_else(|_| Err(super::late(&progress))) },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Class;
    use crate::request::{Context as CallContext, Operation, Stage, secret};

    #[test]
    fn a_tenth_is_kept_but_no_more_than_200_ms() {
        let deadline = Deadline::new((), &Config::default());
        let cases = [(Some(1_000), 900), (Some(3_000), 2_800), (Some(60_000), 30_000), (None, 2_500), (Some(0), 0)];
        for (patience, within) in cases {
            assert_eq!(deadline.within(patience.map(Duration::from_millis)), Duration::from_millis(within));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_error_names_the_slow_part() {
        let slow = tower::service_fn(|request: Request| {
            request.context.progress.enter(Stage::OpenBao);
            std::future::pending::<Result<Response, Error>>()
        });
        let mut deadline = Deadline::new(slow, &Config::default());
        let mut context = CallContext::new("u");
        context.patience = Some(Duration::from_secs(3));
        let began = tokio::time::Instant::now();
        let request = Request { operation: Operation::Encrypt { plaintext: secret(vec![1]) }, context };
        let error = deadline.call(request).await.expect_err("too late");
        assert_eq!((error.class(), error.stage()), (Class::DeadlineExceeded, Some(Stage::OpenBao)));
        assert_eq!(began.elapsed().as_millis(), 2_800);
    }
}
