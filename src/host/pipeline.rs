//! One pipeline: an entrance, a switch behind it, and the engine that the switch leads to. What is known of the key outlives
//! each of them. Its trouble is its own; no other pipeline waits for it.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::engine::{Engine, Surroundings};
use super::entrance::{Entrance, SocketState};
use super::switch::{Calls, Switch};
use crate::config::Pipeline as Config;
use crate::error::{Bearing, Class};
use crate::front::handover::Given;
use crate::front::{self, Bounds, Door, Inherited, Rules};
use crate::key::{Finding, Identity, KeyState, Outage, Pins, refresh, same_key};
use crate::request::KmsService;
use crate::telemetry::events;
use crate::telemetry::metrics::PipelineMetrics;
use crate::telemetry::observed::Observed;

/// A running pipeline.
pub struct Pipeline {
    config: Config,
    identity: Arc<Identity>,
    around: Surroundings,
    switch: Switch,
    running: Option<Running>,
    rules: watch::Sender<Rules>,
    door: Door,
    entrance: Entrance,
}

/// An engine and the calls that have gone into its stack.
struct Running {
    engine: Engine,
    calls: Calls,
}

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
            disk: Arc::default(),
        };
        if let Some(known) = inherited.known(&config.name) {
            // Of another key it says nothing.
            if same_key(&pins(&config, &identity).fingerprint(), &known.fingerprint) {
                around.key.remember(known.seen);
            }
        }
        let switch = Switch::closed(Class::Starting);
        let (rules, receiver) = watch::channel(Rules::of(&config.socket));
        let door = Door {
            pipeline: around.pipeline.clone(),
            key: around.key.clone(),
            kms: KmsService::new(switch.clone()),
            metrics: around.metrics.clone(),
            rules: receiver,
            bounds: bounds(&config),
        };
        // Before the entrance: callers may be waiting at an inherited one, and the first of them must meet the engine.
        let running = start_engine(&config, &identity, &around, &switch);
        let source = inherited.take(&config.name);
        let entrance = Entrance::open(config.socket.clone(), source, inherited.opening(), door.clone());
        Self { config, identity, around, switch, running, rules, door, entrance }
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
        self.entrance.state()
    }

    /// The fingerprint of what runs.
    pub fn fingerprint(&self) -> String {
        pins(&self.config, &self.identity).fingerprint()
    }

    /// The socket and what was seen of the key, for a process that takes our place; none while there is no socket.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn give(&self) -> std::io::Result<Option<Given>> {
        let key = &self.around.key;
        Ok(self.entrance.give()?.map(|socket| Given {
            pipeline: self.config.name.clone(),
            announces: self.announces(Instant::now()),
            seen: key.seen(),
            fingerprint: self.fingerprint(),
            socket,
        }))
    }

    /// Whether Status gives a key_id. Asking Status itself would announce one that no API server has heard.
    fn announces(&self, now: Instant) -> bool {
        let key = &self.around.key;
        match key.shown_trouble(now) {
            None => key.peek().is_some(),
            Some(class) => {
                self.config.health.outage == Outage::Coast
                    && class.bearing() == Bearing::Absence
                    && key.health().key_trouble.is_none()
                    && key.peek_announced().is_some()
            }
        }
    }

    /// What the admin listener is shown.
    pub fn observed(&self) -> Observed {
        let socket = self.entrance.state().clone();
        Observed {
            name: self.around.pipeline.clone(),
            key: self.around.key.clone(),
            metrics: self.around.metrics.clone(),
            findings: self.around.findings.clone(),
            fingerprint: self.fingerprint(),
            socket: Arc::new(move || match &*socket.borrow() {
                SocketState::Ready => Ok(()),
                SocketState::Pending => Err("the socket is being opened".to_owned()),
                SocketState::Unfit(why) | SocketState::Refused(why) => Err(why.clone()),
            }),
        }
    }

    /// Whether this configuration may replace the one that runs.
    pub fn check_replacement(&self, next: &Config) -> Result<(), PipelineError> {
        if self.running.is_none() {
            // It was refused for its pin and has written nothing: it has nothing to lose, and holds no other one up.
            return Ok(());
        }
        let identity = identity_of(next);
        let pins = pins(next, &identity);
        if let Some(changed) = pins.differs_from(&self.fingerprint()) {
            return Err(PipelineError::IdentityChanged { name: next.name.clone(), changed });
        }
        let pinned = &next.identity.fingerprint;
        if !pinned.is_empty() && pins.differs_from(pinned).is_some() {
            return Err(PipelineError::WrongPin { name: next.name.clone() });
        }
        Ok(())
    }

    /// A reload left the configuration as it is; the files that it names may be others all the same.
    pub fn look(&self) {
        if let Some(Running { engine, .. }) = &self.running {
            engine.look();
        }
    }

    /// Takes over another configuration of the same identity. What is known of the key stays; the socket stays open unless
    /// its path changes. What is replaced ends its calls among those who are `leaving`.
    pub async fn replace(&mut self, next: Config, inherited: &Inherited, leaving: &mut JoinSet<()>) {
        let drain = drain(&self.config);
        self.around.key.set_policy(&next.health, &next.rotation);
        let before = std::mem::replace(&mut self.config, next);
        let socket = &self.config.socket;
        self.rules.send_if_modified(|rules| {
            let next = Rules::of(socket);
            let differs = *rules != next;
            *rules = next;
            differs
        });
        if before.socket.path == socket.path {
            self.entrance.change(socket);
        } else {
            self.door.bounds = bounds(&self.config);
            let source = inherited.take(&self.config.name);
            let next = Entrance::open(socket.clone(), source, inherited.opening(), self.door.clone());
            leaving.spawn(std::mem::replace(&mut self.entrance, next).close(drain));
        }
        if (Config { socket: socket.clone(), ..before }) != self.config {
            self.replace_engine(drain, leaving).await;
        }
    }

    async fn replace_engine(&mut self, drain: Duration, leaving: &mut JoinSet<()>) {
        let old = match self.running.take() {
            Some(Running { engine, calls }) => Some((engine.retire().await, calls)),
            None => {
                self.identity = Arc::new(identity_of(&self.config));
                None
            }
        };
        self.running = start_engine(&self.config, &self.identity, &self.around, &self.switch);
        if let Some((session, mut calls)) = old {
            leaving.spawn(async move {
                // They may still need the token: to leave the queue, to come back from a back-off. Whoever has not left by
                // then has met its own deadline.
                let _ = tokio::time::timeout(drain, calls.gone()).await;
                session.close().await;
            });
        }
    }

    /// What this configuration asks for and only a restart gives, as key paths below the pipeline.
    pub fn needs_restart(&self) -> impl Iterator<Item = &'static str> {
        self.door.bounds.too_narrow_for(bounds(&self.config))
    }

    /// Closes the door, lets calls in flight end, gives the token back.
    pub async fn stop(self) {
        self.entrance.close(drain(&self.config)).await;
        if let Some(Running { engine, .. }) = self.running {
            engine.retire().await.close().await;
        }
    }
}

fn bounds(config: &Config) -> Bounds {
    Bounds::of(config.layers.limits.max_calls, config.layers.deadline.max.get())
}

/// How long calls in flight may take to end once nothing new comes in: each has met its own deadline by then.
fn drain(config: &Config) -> Duration {
    config.layers.deadline.max.get() + front::PARTING
}

/// Starts what stands behind the door and leads calls there; nothing when the pinned fingerprint forbids it.
fn start_engine(config: &Config, identity: &Arc<Identity>, around: &Surroundings, switch: &Switch) -> Option<Running> {
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
    let fingerprint = pins(config, identity).fingerprint();
    let (engine, kms) = Engine::start(config, identity.clone(), fingerprint, around);
    Some(Running { engine, calls: switch.lead_to(kms) })
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
