//! One pipeline: a socket that is there before OpenBao is asked anything, a switch behind it, and the engine that the
//! switch leads to. Its trouble is its own; no other pipeline waits for it.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::engine::{Engine, Surroundings};
use super::switch::Switch;
use crate::config::Pipeline as Config;
use crate::error::Class;
use crate::front::handover::Given;
use crate::front::{self, Door, Inherited, Socket, SocketError, Source};
use crate::key::{Finding, Identity, KeyState, Pins, refresh};
use crate::request::KmsService;
use crate::telemetry::events;
use crate::telemetry::metrics::PipelineMetrics;
use crate::telemetry::observed::Observed;

/// The pause before a refused socket is tried again; doubles up to [`LAST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause between two tries to get a socket.
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// How long calls in flight may take to end after the door has closed.
const DRAIN: Duration = Duration::from_secs(10);

/// Whether a pipeline has its socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SocketState {
    /// Not tried yet.
    Pending,
    /// It accepts connections.
    Ready,
    /// It could not be had; the sentence says why and what to do.
    Refused(String),
}

/// A running pipeline.
pub struct Pipeline {
    config: Config,
    identity: Arc<Identity>,
    around: Surroundings,
    switch: Switch,
    engine: Option<Engine>,
    socket: watch::Receiver<SocketState>,
    close: watch::Sender<bool>,
    door: JoinHandle<()>,
    /// The socket under other descriptors while the door is open, for a process that takes our place.
    spare: Spare,
}

type Spare = Arc<std::sync::Mutex<Option<Socket>>>;

/// Why a pipeline cannot be built or replaced; for the operator, who meets it at a reload.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PipelineError {
    /// The identity of a running pipeline would change.
    #[error("pipeline {name}: {} cannot change while it runs: {}", changed.join(", "), reason(changed))]
    IdentityChanged {
        /// The pipeline's label.
        name: String,
        /// The key paths whose values differ.
        changed: Vec<&'static str>,
    },
    /// The fingerprint that would be pinned is not the one of what runs, and would close a pipeline that serves.
    #[error(
        "pipeline {name}: identity.fingerprint is not the fingerprint of this configuration; pin the one that \
         `config show` prints, or leave it empty"
    )]
    WrongPin {
        /// The pipeline's label.
        name: String,
    },
}

/// Why these values cannot change, and what to do instead.
fn reason(changed: &[&str]) -> &'static str {
    match changed {
        ["rotation.activationDelay"] => {
            "other nodes would take a new version into use at another moment; stop the service on every node, change it \
             everywhere, and start again"
        }
        _ => {
            "objects written before would no longer open; add a pipeline beside it and migrate, or stop the service first"
        }
    }
}

// === impl Pipeline ===

impl Pipeline {
    /// Opens the door and starts the engine. Never waits and never fails: what is wrong shows in Status and readiness.
    pub fn start(config: Config, inherited: &Inherited) -> Self {
        let name: Arc<str> = config.name.as_str().into();
        let (refresh, requests) = refresh::channel(config.rotation.metadata_interval.get());
        let key = Arc::new(KeyState::new(&config.health, &config.rotation, refresh));
        let identity = Arc::new(identity_of(&config));
        let around = Surroundings {
            pipeline: name,
            key,
            metrics: PipelineMetrics::new(),
            requests: Arc::new(Mutex::new(requests)),
            findings: Arc::new(ArcSwap::from_pointee(Vec::new())),
        };
        let switch = Switch::closed(Class::Starting);
        let (state, socket) = watch::channel(SocketState::Pending);
        let (close, closed) = watch::channel(false);
        let door = Door {
            pipeline: around.pipeline.clone(),
            key: around.key.clone(),
            kms: KmsService::new(switch.clone()),
            metrics: around.metrics.clone(),
            allow_peers: config.socket.allow_peers.clone(),
            escaped_authority: config.socket.escaped_authority,
            max_calls: config.layers.limits.max_calls,
        };
        let spare = Spare::default();
        let keeping = KeepDoor {
            config: config.socket.clone(),
            source: inherited.take(&config.name),
            opening: inherited.opening(),
            door,
            state,
            closed,
            spare: spare.clone(),
        };
        // Before the door: callers may be waiting at an inherited one, and the first of them must meet the engine.
        let engine = start_engine(&config, &identity, &around, &switch);
        let door = tokio::spawn(keeping.run());
        Self { config, identity, around, switch, engine, socket, close, door, spare }
    }

    /// The configuration that runs.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What is known of the key.
    pub fn key(&self) -> &Arc<KeyState> {
        &self.around.key
    }

    /// Instruments.
    pub fn metrics(&self) -> &Arc<PipelineMetrics> {
        &self.around.metrics
    }

    /// What is remarkable about the key.
    pub fn findings(&self) -> &Arc<ArcSwap<Vec<Finding>>> {
        &self.around.findings
    }

    /// Whether the socket is there.
    pub fn socket(&self) -> &watch::Receiver<SocketState> {
        &self.socket
    }

    /// The fingerprint of what runs.
    pub fn fingerprint(&self) -> String {
        pins(&self.config, &self.identity).fingerprint()
    }

    /// The socket, for a process that takes our place; none while there is none.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn give(&self) -> std::io::Result<Option<Given>> {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let socket = spare.as_ref().map(Socket::duplicate).transpose()?;
        let pipeline = self.config.name.clone();
        Ok(socket.map(|socket| Given { pipeline, healthy: self.observed().healthy(Instant::now()), socket }))
    }

    /// What the admin listener is shown.
    pub fn observed(&self) -> Observed {
        let socket = self.socket.clone();
        Observed {
            name: self.around.pipeline.clone(),
            key: self.around.key.clone(),
            metrics: self.around.metrics.clone(),
            findings: self.around.findings.clone(),
            fingerprint: self.fingerprint(),
            socket: Arc::new(move || match &*socket.borrow() {
                SocketState::Ready => Ok(()),
                SocketState::Pending => Err("the socket is being opened".to_owned()),
                SocketState::Refused(why) => Err(why.clone()),
            }),
        }
    }

    /// Whether this configuration may replace the one that runs.
    pub fn check_replacement(&self, next: &Config) -> Result<(), PipelineError> {
        let identity = identity_of(next);
        let pins = pins(next, &identity);
        if let Some(changed) = pins.differs_from(&self.fingerprint()) {
            return Err(PipelineError::IdentityChanged { name: next.name.clone(), changed });
        }
        let pinned = &next.identity.fingerprint;
        // A pipeline that is refused for its pin already has nothing to lose, and holds no other one up.
        if self.engine.is_some() && !pinned.is_empty() && pins.differs_from(pinned).is_some() {
            return Err(PipelineError::WrongPin { name: next.name.clone() });
        }
        Ok(())
    }

    /// Whether another configuration leaves the socket as it is.
    pub fn keeps_socket(&self, next: &Config) -> bool {
        // The door's stream limit follows `maxCalls`, and is fixed when the door opens.
        self.config.socket == next.socket && self.config.layers.limits == next.layers.limits
    }

    /// Takes over another configuration of the same identity. The socket stays open; a socket of another path or mode
    /// needs a new pipeline, which the host makes instead.
    pub async fn replace(&mut self, next: Config) {
        self.around.key.set_policy(&next.health, &next.rotation);
        self.config = next;
        let next = start_engine(&self.config, &self.identity, &self.around, &self.switch);
        if let Some(old) = std::mem::replace(&mut self.engine, next) {
            old.stop().await;
        }
    }

    /// Closes the door, lets calls in flight end, gives the token back.
    pub async fn stop(self) {
        self.close.send_replace(true);
        if tokio::time::timeout(DRAIN, self.door).await.is_err() {
            tracing::warn!(
                event = events::STOPPING,
                pipeline = &*self.around.pipeline,
                "calls were still in flight after {} s and are given up",
                DRAIN.as_secs()
            );
        }
        if let Some(engine) = self.engine {
            engine.stop().await;
        }
    }
}

/// Starts what stands behind the door and leads calls there; nothing when the pinned fingerprint forbids it.
fn start_engine(config: &Config, identity: &Arc<Identity>, around: &Surroundings, switch: &Switch) -> Option<Engine> {
    let pinned = &config.identity.fingerprint;
    let differs = if pinned.is_empty() { None } else { pins(config, identity).differs_from(pinned) };
    if let Some(changed) = differs {
        tracing::error!(
            event = events::STATUS_CHANGED,
            pipeline = &*around.pipeline,
            class = Class::FingerprintMismatch.name(),
            changed = changed.join(", "),
            help = Class::FingerprintMismatch.help(),
            "the pinned fingerprint differs from the configuration"
        );
        around.key.failed(Class::FingerprintMismatch, Instant::now());
        switch.close(Class::FingerprintMismatch);
        return None;
    }
    let (engine, kms) = Engine::start(config, identity.clone(), around);
    switch.lead_to(kms);
    Some(engine)
}

fn identity_of(config: &Config) -> Identity {
    let crate::backend::Config::Transit(transit) = &config.backend;
    Identity::of(&config.identity, &transit.namespace)
}

/// The fingerprint of a pipeline's configuration, as `identity.fingerprint` pins it.
pub fn fingerprint(config: &Config) -> String {
    pins(config, &identity_of(config)).fingerprint()
}

fn pins<'a>(config: &'a Config, identity: &'a Identity) -> Pins<'a> {
    let crate::backend::Config::Transit(transit) = &config.backend;
    let delay = config.rotation.activation_delay.get().as_millis();
    Pins {
        identity,
        mount: &transit.mount,
        key: &transit.key,
        activation_delay_ms: u64::try_from(delay).unwrap_or(u64::MAX),
    }
}

/// What it takes to get a socket and to serve it.
struct KeepDoor {
    config: front::Config,
    source: Source,
    opening: watch::Receiver<bool>,
    door: Door,
    state: watch::Sender<SocketState>,
    closed: watch::Receiver<bool>,
    spare: Spare,
}

// === impl KeepDoor ===

impl KeepDoor {
    /// Gets the socket, however long it takes, and serves it until told to close.
    async fn run(mut self) {
        tokio::select! {
            opened = self.opening.wait_for(|open| *open) => if opened.is_err() { return },
            _ = self.closed.wait_for(|closed| *closed) => return,
        }
        let Some(socket) = self.acquire().await else {
            return;
        };
        tracing::info!(
            event = events::SOCKET_READY,
            pipeline = &*self.door.pipeline,
            path = %self.config.path.display(),
            "the socket accepts connections"
        );
        let keep = |socket: Option<Socket>| *self.spare.lock().unwrap_or_else(PoisonError::into_inner) = socket;
        // Without descriptors left it is served all the same, and cannot be handed over.
        keep(socket.duplicate().ok());
        self.state.send_replace(SocketState::Ready);
        let mut closed = self.closed.clone();
        let shutdown = async move {
            // A dropped sender means that the pipeline is gone: the same as being told to close.
            let _ = closed.wait_for(|closed| *closed).await;
            // A listener that is kept would let callers wait at a closed door.
            keep(None);
        };
        front::serve(socket, self.door, shutdown).await;
    }

    async fn acquire(&mut self) -> Option<Socket> {
        let mut pause = FIRST_PAUSE;
        loop {
            match front::acquire(&self.config, std::mem::replace(&mut self.source, Source::Bind)) {
                Ok(socket) => return Some(socket),
                Err(error) => self.refused(&error),
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(LAST_PAUSE),
                _ = self.closed.wait_for(|closed| *closed) => return None,
            }
        }
    }

    fn refused(&self, error: &SocketError) {
        let sentence = format!("{error}; {}", error.help());
        if !matches!(&*self.state.borrow(), SocketState::Refused(known) if *known == sentence) {
            tracing::error!(
                event = events::SOCKET_REFUSED,
                pipeline = &*self.door.pipeline,
                path = %self.config.path.display(),
                help = error.help(),
                "{error}"
            );
        }
        self.state.send_replace(SocketState::Refused(sentence));
    }
}
