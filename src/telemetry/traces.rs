//! Spans: one for each KMS call, a child for each attempt to OpenBao, joined to the caller's trace. They exist only when
//! an exporter wants them; otherwise making one costs a look at a flag.

use std::collections::HashMap;
use std::time::Duration;

use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::config::Otlp;
use super::exporter::Exporter;
use super::watched::Watched;
use crate::error::Class;
use crate::request::{Kind, Purpose, Request, TraceContext};

/// The target of spans that are exported and never logged.
pub const TARGET: &str = "kms_trace";

/// A W3C trace context as the propagator wants it.
struct Headers(HashMap<String, String>);

impl Extractor for Headers {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }
}

impl Injector for Headers {
    fn set(&mut self, key: &str, value: String) {
        self.0.insert(key.to_owned(), value);
    }
}

/// The span of a KMS call, a child of the caller's.
pub fn call_span(request: &Request) -> Span {
    let span = match request.kind() {
        Kind::Encrypt => {
            tracing::info_span!(target: TARGET, "kms.encrypt", uid = &*request.context.uid, class = tracing::field::Empty)
        }
        Kind::Decrypt => {
            tracing::info_span!(target: TARGET, "kms.decrypt", uid = &*request.context.uid, class = tracing::field::Empty)
        }
    };
    join(&span, request.context.trace.as_ref());
    span
}

/// Makes the caller's span the parent.
fn join(span: &Span, caller: Option<&TraceContext>) {
    if let (false, Some(trace)) = (span.is_disabled(), caller) {
        let headers = Headers(HashMap::from([
            ("traceparent".to_owned(), trace.parent.clone()),
            ("tracestate".to_owned(), trace.state.clone()),
        ]));
        // A malformed context makes a trace of our own, which is what a missing one does.
        let _ = span.set_parent(TraceContextPropagator::new().extract(&headers));
    }
}

/// Notes on the current span how its call ended.
pub fn record_outcome(class: Option<Class>) {
    let span = Span::current();
    if !span.is_disabled() {
        span.record("class", class.map_or("ok", Class::name));
    }
}

/// The span of one exchange with OpenBao: a child of the current one, or of the caller's where calls make no span.
pub fn attempt_span(purpose: Purpose, endpoint: Option<usize>, caller: Option<&TraceContext>) -> Span {
    let endpoint = endpoint.and_then(|at| i64::try_from(at).ok()).unwrap_or(-1);
    let inside = Span::current().metadata().is_some_and(|current| current.target() == TARGET);
    let span = tracing::info_span!(target: TARGET, "openbao.attempt", purpose = purpose.name(), endpoint);
    if !inside {
        join(&span, caller);
    }
    span
}

/// The context to hand on to OpenBao; `None` when the span is not exported.
pub fn inject(span: &Span) -> Option<TraceContext> {
    if span.is_disabled() {
        return None;
    }
    let mut headers = Headers(HashMap::new());
    TraceContextPropagator::new().inject_context(&span.context(), &mut headers);
    let Headers(mut map) = headers;
    Some(TraceContext { parent: map.remove("traceparent")?, state: map.remove("tracestate").unwrap_or_default() })
}

/// What every span says of its origin.
pub(super) fn resource() -> Resource {
    Resource::builder().with_service_name("bao-kms-provider").build()
}

/// A provider that exports in the background through a bounded queue; what does not fit is dropped, never waited for.
pub(super) fn provider(config: &Otlp, exporter: Exporter) -> SdkTracerProvider {
    let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.sample_ratio)));
    SdkTracerProvider::builder()
        .with_batch_exporter(Watched::new(exporter))
        .with_sampler(sampler)
        .with_resource(resource())
        .build()
}

/// The tracer that the subscriber's layer writes to.
pub(super) fn tracer(provider: &SdkTracerProvider) -> opentelemetry_sdk::trace::SdkTracer {
    provider.tracer("bao-kms-provider")
}

/// Sends what is queued, within a bound.
pub(super) fn flush(provider: &SdkTracerProvider, within: Duration) {
    if let Err(error) = provider.shutdown_with_timeout(within) {
        tracing::warn!(event = super::events::EXPORTER_TROUBLE, "the last traces could not be delivered: {error}");
    }
}
