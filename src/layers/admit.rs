//! Bounds the exchanges in flight and the calls that wait for one. One slot is kept for Encrypt, so that a storm of
//! decrypts never keeps an API server from its first write.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::Service;

use super::Answer;
use crate::error::{Class, Error};
use crate::request::{Bound, Kind, Lot, Outcomes, Stage};
use crate::telemetry::metrics::PipelineMetrics;

/// `layers.admit`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[schemars(rename = "AdmitLayer")]
pub struct Config {
    /// Exchanges with OpenBao in flight, one of them kept for Encrypt. 2 to 1024. Default 64.
    #[schemars(range(min = 2, max = 1_024))]
    pub max_in_flight: usize,
    /// Distinct calls that may wait, for the next batch or for a slot; more are refused. 0 to 65536. Default 1024.
    #[schemars(range(min = 0, max = 65_536))]
    pub max_queued: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { max_in_flight: 64, max_queued: 1024 }
    }
}

/// The layer's service.
#[derive(Clone)]
pub(super) struct Admit<S> {
    inner: S,
    gate: Arc<Gate>,
}

struct Gate {
    slots: Arc<Semaphore>,
    decrypts: Arc<Semaphore>,
    waiting: AtomicUsize,
    max_queued: usize,
    metrics: Arc<PipelineMetrics>,
}

/// A slot; given back when dropped.
struct Slot {
    _held: (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>),
    metrics: Arc<PipelineMetrics>,
}

/// Places in the queue, one for each call; given back when dropped, so that who hangs up leaves none behind.
struct Place<'a>(&'a Gate, usize);

// === impl Admit ===

impl<S> Admit<S> {
    pub(super) fn new(inner: S, config: &Config, metrics: Arc<PipelineMetrics>) -> Self {
        let gate = Gate {
            slots: Arc::new(Semaphore::new(config.max_in_flight)),
            decrypts: Arc::new(Semaphore::new(config.max_in_flight.saturating_sub(1).max(1))),
            waiting: AtomicUsize::new(0),
            max_queued: config.max_queued,
            metrics,
        };
        Self { inner, gate: Arc::new(gate) }
    }
}

// === impl Gate ===

impl Gate {
    async fn slot(self: &Arc<Self>, lot: &Lot) -> Result<Slot, Error> {
        let closed = |_| Error::new(Class::Internal, "the gate is closed");
        // A lot is of one kind; an empty one does no work and needs no slot of Encrypt's.
        let kind = lot.first().map_or(Kind::Decrypt, Bound::kind);
        if let Some(slot) = self.try_slot(kind) {
            return Ok(slot);
        }
        let _place = self.queue(lot.len())?;
        for bound in lot {
            bound.context.progress.enter(Stage::Queue);
        }
        let decrypt = match kind {
            Kind::Encrypt => None,
            Kind::Decrypt => Some(self.decrypts.clone().acquire_owned().await.map_err(closed)?),
        };
        let slot = self.slots.clone().acquire_owned().await.map_err(closed)?;
        Ok(self.taken(slot, decrypt))
    }

    fn try_slot(self: &Arc<Self>, kind: Kind) -> Option<Slot> {
        let decrypt = match kind {
            Kind::Encrypt => None,
            Kind::Decrypt => Some(self.decrypts.clone().try_acquire_owned().ok()?),
        };
        let slot = self.slots.clone().try_acquire_owned().ok()?;
        Some(self.taken(slot, decrypt))
    }

    fn taken(self: &Arc<Self>, slot: OwnedSemaphorePermit, decrypt: Option<OwnedSemaphorePermit>) -> Slot {
        self.metrics.slots_changed(1);
        Slot { _held: (slot, decrypt), metrics: self.metrics.clone() }
    }

    fn queue(&self, calls: usize) -> Result<Place<'_>, Error> {
        let waiting = self.waiting.fetch_add(calls, Ordering::Relaxed) + calls;
        self.metrics.queue_changed(signed(calls));
        let place = Place(self, calls);
        if waiting > self.max_queued {
            return Err(Error::new(Class::Overloaded, "more calls wait for a slot than layers.admit.maxQueued"));
        }
        Ok(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(self.1, Ordering::Relaxed);
        self.0.metrics.queue_changed(-signed(self.1));
    }
}

fn signed(calls: usize) -> i64 {
    i64::try_from(calls).unwrap_or(i64::MAX)
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.metrics.slots_changed(-1);
    }
}

impl<S> Service<Lot> for Admit<S>
where
    S: Service<Lot, Response = Outcomes, Error = Error> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Outcomes;
    type Error = Error;
    type Future = Answer<Outcomes>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, lot: Lot) -> Self::Future {
        let Self { mut inner, gate } = self.clone();
        Box::pin(async move {
            let _slot = gate.slot(&lot).await?;
            inner.call(lot).await
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::testing::{decrypt, encrypt};
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn stuck(
        config: Config,
    ) -> Admit<impl Service<Lot, Response = Outcomes, Error = Error, Future = Answer<Outcomes>> + Clone + Send> {
        let never = tower::service_fn(|_: Lot| -> Answer<Outcomes> { Box::pin(std::future::pending()) });
        Admit::new(never, &config, PipelineMetrics::new())
    }

    #[tokio::test(start_paused = true)]
    async fn decrypts_leave_one_slot_for_encrypt() {
        let mut admit = stuck(Config { max_in_flight: 3, max_queued: 10 });
        let calls: Vec<_> = (0..5).map(|_| tokio::spawn(admit.call(vec![decrypt("vault:v1:a", SECOND)]))).collect();
        tokio::task::yield_now().await;
        assert_eq!(admit.gate.slots.available_permits(), 1);
        assert_eq!(admit.gate.waiting.load(Ordering::Relaxed), 3);
        let write = tokio::spawn(admit.call(vec![encrypt(SECOND)]));
        tokio::task::yield_now().await;
        assert_eq!(admit.gate.slots.available_permits(), 0);
        for call in calls {
            call.abort();
        }
        write.abort();
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(admit.gate.slots.available_permits(), 3);
        assert_eq!(admit.gate.waiting.load(Ordering::Relaxed), 0, "who hangs up leaves no place behind");
    }

    #[tokio::test(start_paused = true)]
    async fn beyond_the_queue_calls_are_refused() {
        let mut admit = stuck(Config { max_in_flight: 2, max_queued: 1 });
        let _calls: Vec<_> = (0..2).map(|_| tokio::spawn(admit.call(vec![decrypt("vault:v1:a", SECOND)]))).collect();
        tokio::task::yield_now().await;
        let error = admit.call(vec![decrypt("vault:v1:a", SECOND)]).await.expect_err("refused");
        assert_eq!(error.class(), Class::Overloaded);
        assert_eq!(admit.gate.waiting.load(Ordering::Relaxed), 1);
    }
}
