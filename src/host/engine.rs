//! What stands behind a pipeline's socket: pipe, endpoint, session, Transit, the stack and the keeper, built from one
//! pipeline's configuration. A reload builds another one and gives the old one back its time to end.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use super::keeper::Keeper;
use super::witness::Witness;
use crate::auth::Session;
use crate::backend::transit::Transit;
use crate::config::Pipeline as Config;
use crate::error::Error;
use crate::http::{Pipe, PipeOptions};
use crate::key::{Finding, Identity, KeyState, RefreshRequests};
use crate::layers::{self, Endpoint};
use crate::request::{BaoService, KmsService};
use crate::telemetry::metrics::PipelineMetrics;

/// The least and the most that a question by which Status is judged may take: what an API server with the usual three seconds
/// waits less our margin, and what a round of the keeper can take four times.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(2_800), Duration::from_secs(10));

/// What an engine is given by its pipeline; it outlives the engine.
#[derive(Clone)]
pub struct Surroundings {
    /// The pipeline's label.
    pub pipeline: Arc<str>,
    /// What is known of the key.
    pub key: Arc<KeyState>,
    /// Instruments.
    pub metrics: Arc<PipelineMetrics>,
    /// Callers with an unknown key_id.
    pub requests: Arc<Mutex<RefreshRequests>>,
    /// What is remarkable about the key.
    pub findings: Arc<ArcSwap<Vec<Finding>>>,
    /// Held by whoever reads or writes the witness.
    pub disk: Arc<Mutex<()>>,
}

/// A running engine.
pub struct Engine {
    session: Arc<Session>,
    keeper: JoinHandle<()>,
}

// === impl Engine ===

impl Engine {
    /// Builds and starts one. Nothing here waits for OpenBao, and nothing that can be mended at run time fails.
    pub fn start(
        config: &Config,
        identity: Arc<Identity>,
        fingerprint: String,
        around: &Surroundings,
    ) -> (Self, KmsService) {
        let crate::backend::Config::Transit(transit) = &config.backend;
        let pipe = Pipe::new(PipeOptions {
            tls: transit.tls.clone(),
            namespace: transit.namespace.clone(),
            client_identity: config.auth.client_identity(),
            max_idle: config.layers.admit.max_in_flight,
        });
        let origins = transit.endpoints.iter().map(|url| Arc::from(url.trim_end_matches('/'))).collect();
        let endpoint = Endpoint::new(origins, transit.redirect_hosts.clone(), pipe.clone(), around.metrics.clone());
        let reload = Arc::new(move || -> Result<(), Error> { pipe.reload() });
        let session = Session::start(
            config.auth.method(),
            BaoService::new(endpoint.clone()),
            reload,
            around.metrics.clone(),
            around.pipeline.clone(),
        );
        let bao = layers::bao_stack(session.clone(), BaoService::new(endpoint.clone()));
        let patience = config.layers.deadline.unnamed.get().clamp(PATIENCE.0, PATIENCE.1);
        let transit = Transit::new(transit, bao, patience);
        let kms = layers::stack(&config.layers, around.key.clone(), transit.clone(), around.metrics.clone());
        let (pipeline, metrics, disk) = (around.pipeline.clone(), around.metrics.clone(), around.disk.clone());
        let witness = Witness::new(config.witness.as_ref(), fingerprint, pipeline, metrics, disk);
        let keeper = Keeper {
            pipeline: around.pipeline.clone(),
            key: around.key.clone(),
            identity,
            transit,
            endpoint,
            session: session.clone(),
            rotation: config.rotation.clone(),
            health: config.health.clone(),
            requests: around.requests.clone(),
            findings: around.findings.clone(),
            witness,
        };
        (Self { session, keeper: tokio::spawn(keeper.keep()) }, kms)
    }

    /// Looks at the files that the login and the connections are made of.
    pub fn look(&self) {
        self.session.look();
    }

    /// Stops the keeper. The session goes on for the calls that are inside; whoever gets it closes it after them.
    pub async fn retire(self) -> Arc<Session> {
        self.keeper.abort();
        // The next keeper needs the lock that this one holds until its task is gone.
        let _ = self.keeper.await;
        self.session
    }
}
