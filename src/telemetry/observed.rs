//! What the admin listener and the minute's summary are shown of each pipeline.

use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::time::Instant;

use super::metrics::PipelineMetrics;
use crate::key::{Finding, KeyState};

/// Whether the socket is there: `Ok`, or the sentence that says why not.
pub type SocketProbe = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Everything that is seen from outside.
#[derive(Default)]
pub struct Outlook {
    /// The pipelines that run.
    pub pipelines: ArcSwap<Vec<Observed>>,
    /// Why the configuration on disk is not what runs; `None` when it is.
    pub config_refused: ArcSwapOption<String>,
    /// Settings of the file that took effect only in part: key paths that a restart puts in force.
    pub restart_needed: ArcSwap<Vec<String>>,
}

/// One pipeline, seen from outside.
#[derive(Clone)]
pub struct Observed {
    /// The pipeline's label.
    pub name: Arc<str>,
    /// What is known of its key.
    pub key: Arc<KeyState>,
    /// Its instruments.
    pub metrics: Arc<PipelineMetrics>,
    /// What is remarkable about its key.
    pub findings: Arc<ArcSwap<Vec<Finding>>>,
    /// The fingerprint of its identity.
    pub fingerprint: String,
    /// Whether its socket is there.
    pub socket: SocketProbe,
}

// === impl Observed ===

impl Observed {
    /// Whether Status says `ok`.
    pub fn healthy(&self, now: Instant) -> bool {
        self.key.peek().is_some() && self.key.shown_trouble(now).is_none()
    }
}
