//! Span and counters of each call, and the count of callers that hang up before their answer.

use std::sync::Arc;
use std::task::{Context, Poll};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tower::Service;
use tracing::Instrument;

use super::Answer;
use crate::error::{Class, Error};
use crate::request::{Kind, Request, Response};
use crate::telemetry::metrics::{InFlight, PipelineMetrics};
use crate::telemetry::traces;

/// `layers.trace`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[schemars(rename = "TraceLayer")]
pub struct Config {
    /// Whether each call makes a span; counters count all the same. Default true.
    pub enabled: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { enabled: true }
    }
}

/// The layer's service.
#[derive(Clone)]
pub(super) struct Trace<S> {
    inner: S,
    spans: bool,
    metrics: Arc<PipelineMetrics>,
}

/// Counts an answer, or a caller that hung up when it is dropped without one.
struct Watch {
    metrics: Arc<PipelineMetrics>,
    kind: Kind,
    arrived: Instant,
    answered: bool,
    _in_flight: InFlight,
}

// === impl Trace ===

impl<S> Trace<S> {
    pub(super) fn new(inner: S, config: &Config, metrics: Arc<PipelineMetrics>) -> Self {
        Self { inner, spans: config.enabled, metrics }
    }
}

impl<S> Service<Request> for Trace<S>
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

    fn call(&mut self, request: Request) -> Self::Future {
        let kind = request.kind();
        let mut watch = Watch {
            kind,
            arrived: request.context.arrived,
            answered: false,
            _in_flight: self.metrics.enter(kind),
            metrics: self.metrics.clone(),
        };
        let span = if self.spans { traces::call_span(&request) } else { tracing::Span::none() };
        let answer = span.in_scope(|| self.inner.call(request));
        let counted = async move {
            let answer = answer.await;
            watch.answered(answer.as_ref().err().map(Error::class));
            answer
        };
        if span.is_disabled() { Box::pin(counted) } else { Box::pin(counted.instrument(span)) }
    }
}

// === impl Watch ===

impl Watch {
    fn answered(&mut self, class: Option<Class>) {
        self.answered = true;
        traces::record_outcome(class);
        self.metrics.answered(self.kind, class, self.arrived.elapsed());
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        match self.answered {
            true => {}
            // The door answers for a call that panicked; its caller is still there.
            false if std::thread::panicking() => {
                self.metrics.answered(self.kind, Some(Class::Internal), self.arrived.elapsed());
            }
            false => self.metrics.hung_up(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Context as CallContext, Operation, secret};

    fn encrypt() -> Request {
        Request { operation: Operation::Encrypt { plaintext: secret(vec![1; 32]) }, context: CallContext::new("u") }
    }

    fn counted(metrics: &PipelineMetrics) -> (u64, Vec<(&'static str, Class, u64)>) {
        (metrics.hang_ups(), metrics.failures())
    }

    #[tokio::test]
    async fn a_caller_that_leaves_is_a_hang_up_and_a_panic_is_not() {
        let metrics = PipelineMetrics::new();
        let pending = tower::service_fn(|_: Request| std::future::pending::<Result<Response, Error>>());
        let mut trace = Trace::new(pending, &Config::default(), metrics.clone());
        drop(trace.call(encrypt()));
        assert_eq!(counted(&metrics), (1, vec![]));
        let panics = tower::service_fn(|_: Request| async { panic!("on purpose") });
        let mut trace = Trace::new(panics, &Config::default(), metrics.clone());
        assert!(tokio::spawn(trace.call(encrypt())).await.is_err());
        assert_eq!(counted(&metrics), (1, vec![("encrypt", Class::Internal, 1)]));
        let fails = tower::service_fn(|_: Request| std::future::ready(Err(Class::Sealed.into())));
        let mut trace = Trace::new(fails, &Config::default(), metrics.clone());
        assert!(trace.call(encrypt()).await.is_err());
        assert_eq!(counted(&metrics).0, 1, "an answer is none");
    }
}
