//! A span exporter that says when it cannot deliver, once a minute at most, and that calls never wait for.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};

use super::events;

const QUIET: Duration = Duration::from_secs(60);

/// Wraps an exporter.
#[derive(Debug)]
pub(super) struct Watched<E> {
    inner: E,
    told: Mutex<Option<Instant>>,
}

// === impl Watched ===

impl<E> Watched<E> {
    pub(super) fn new(inner: E) -> Self {
        Self { inner, told: Mutex::new(None) }
    }

    /// Whether it is time to say it again.
    fn tells(&self, now: Instant) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let due = told.is_none_or(|at| now.duration_since(at) >= QUIET);
        if due {
            *told = Some(now);
        }
        due
    }
}

impl<E: SpanExporter> SpanExporter for Watched<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let delivered = self.inner.export(batch).await;
        if let Err(error) = &delivered
            && self.tells(Instant::now())
        {
            tracing::warn!(event = events::EXPORTER_TROUBLE, spans, "traces cannot be delivered: {error}");
        }
        delivered
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_is_told_once_a_minute() {
        let (watched, now) = (Watched::new(()), Instant::now());
        let after = |seconds| watched.tells(now + Duration::from_secs(seconds));
        assert_eq!(
            [after(0), after(1), after(59), after(60), after(61), after(120)],
            [true, false, false, true, false, true]
        );
    }
}
