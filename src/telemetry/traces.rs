//! Spans: one for each KMS call, a child for each attempt to OpenBao, joined to the caller's trace. They exist only when
//! an exporter wants them; otherwise making one costs a look at a flag.

use std::collections::HashMap;
use std::time::Duration;

use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::config::Otlp;
use super::watched::Watched;
use crate::error::Class;
use crate::files::{self, Secrecy};
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
    if let (false, Some(trace)) = (span.is_disabled(), &request.context.trace) {
        let headers = Headers(HashMap::from([
            ("traceparent".to_owned(), trace.parent.clone()),
            ("tracestate".to_owned(), trace.state.clone()),
        ]));
        // A malformed context makes a trace of our own, which is what a missing one does.
        let _ = span.set_parent(TraceContextPropagator::new().extract(&headers));
    }
    span
}

/// Notes on the current span how its call ended.
pub fn record_outcome(class: Option<Class>) {
    let span = Span::current();
    if !span.is_disabled() {
        span.record("class", class.map_or("ok", Class::name));
    }
}

/// The span of one exchange with OpenBao, a child of the current one.
pub fn attempt_span(purpose: Purpose, endpoint: Option<usize>) -> Span {
    let endpoint = endpoint.and_then(|at| i64::try_from(at).ok()).unwrap_or(-1);
    tracing::info_span!(target: TARGET, "openbao.attempt", purpose = purpose.name(), endpoint)
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

/// Why traces cannot be exported; calls are not affected.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The CA file.
    #[error("telemetry.traces.otlp.caFile: {0}")]
    Ca(#[from] files::FileError),
    /// The exporter itself.
    #[error("telemetry.traces.otlp: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
}

/// A provider that exports in the background through a bounded queue; what does not fit is dropped, never waited for.
pub(super) fn provider(config: &Otlp) -> Result<SdkTracerProvider, TraceError> {
    let mut exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(config.endpoint.as_str())
        .with_timeout(config.timeout.get());
    if config.endpoint.starts_with("https://") {
        let mut tls = tonic::transport::ClientTlsConfig::new();
        if let Some(path) = &config.ca_file {
            let pem = files::read(path, Secrecy::Public, files::MAX_PEM)?;
            tls = tls.ca_certificate(tonic::transport::Certificate::from_pem(&*pem));
        }
        exporter = exporter.with_tls_config(tls);
    }
    let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.sample_ratio)));
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(Watched::new(exporter.build()?))
        .with_sampler(sampler)
        .with_resource(Resource::builder().with_service_name("bao-kms-provider").build())
        .build())
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
