//! The keeper of one pipeline's key: reads metadata, runs deep probes, decides what Status may say, and notices at once
//! when OpenBao is back. It never stands in the way of a call; calls only read what it left in [`KeyState`].

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::hindsight::Hindsight;
use super::witness::Witness;
use crate::auth::{REPAIR_INTERVAL, Session};
use crate::backend::transit::{Look, Transit};
use crate::error::{Bearing, Class, Error};
use crate::key::config::{HealthPolicy, Rotation};
use crate::key::{BaoClock, Due, Finding, Identity, KeyState, Metadata, RefreshRequests, Severity, View, findings};
use crate::layers::Endpoint;
use crate::telemetry::events;

/// How long one check of an address may take: OpenBao may be far away, and a handshake is three ways there and back.
const HEALTH_WITHIN: Duration = Duration::from_secs(2);
/// How long a round waits for the checks of all addresses: one that says nothing must not keep the others from being looked at.
const HEALTH_PATIENCE: Duration = Duration::from_millis(500);
/// The first pause between two checks while OpenBao is away.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause between two checks while something is wrong: recovery is noticed this fast.
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// What the keeper needs; `requests` outlives a reload, so it is shared with the next keeper.
pub struct Keeper {
    /// The pipeline's label.
    pub pipeline: Arc<str>,
    /// Where the keeper leaves what it knows.
    pub key: Arc<KeyState>,
    /// Whose key it is.
    pub identity: Arc<Identity>,
    /// The vault room; its calls enter at `token`.
    pub transit: Transit,
    /// For `sys/health` of every address.
    pub endpoint: Endpoint,
    /// Woken when OpenBao is back.
    pub session: Arc<Session>,
    /// When versions become active, and how often metadata is read.
    pub rotation: Rotation,
    /// Probe interval.
    pub health: HealthPolicy,
    /// Calls that met an unknown key_id.
    pub requests: Arc<Mutex<RefreshRequests>>,
    /// What is remarkable about the key, for logs and readiness.
    pub findings: Arc<ArcSwap<Vec<Finding>>>,
    /// What the next process should know of the key.
    pub witness: Arc<Witness>,
}

/// What the keeper remembers between two rounds.
struct Memory {
    clock: BaoClock,
    metadata: Option<Metadata>,
    next_read: Instant,
    next_probe: Instant,
    pause: Duration,
    shown: Option<Option<Class>>,
    met: Option<Class>,
    hindsight: Hindsight,
    /// `disable_upsert` of the mount as last read.
    upsert: Option<bool>,
}

/// Why a wait is over.
enum Wake {
    /// It is time to look, because of the clock or because somebody asked.
    Look(Due),
    /// A version becomes active now.
    Activate,
}

/// What a round that met no error has shown.
enum Shown {
    /// The path works.
    Works,
    /// Nothing: a standby that lags answered. What was wrong before may still be so.
    Nothing,
}

// === impl Keeper ===

impl Keeper {
    /// Keeps the key until the task is aborted. A round that panics is a defect, and no reason to leave Status to itself.
    pub async fn keep(self) {
        let keeper = Arc::new(self);
        loop {
            let mut task = tokio::task::JoinSet::new();
            task.spawn(keeper.clone().run());
            // Ends with a panic alone; when we are aborted the set takes its task along.
            task.join_next().await;
            keeper.key.failed(Class::Internal, Instant::now());
            tracing::error!(
                event = events::PANIC,
                pipeline = &*keeper.pipeline,
                "the keeper of the key panicked and begins anew; please report this"
            );
            tokio::time::sleep(LAST_PAUSE).await;
        }
    }

    async fn run(self: Arc<Self>) {
        let mut requests = self.requests.lock().await;
        requests.set_interval(self.rotation.metadata_interval.get());
        self.witness.recall(&self.key).await;
        let mut memory = Memory::new(Instant::now());
        loop {
            match self.wait(&mut memory, &mut requests).await {
                Wake::Activate => self.renew_view(&mut memory),
                Wake::Look(due) => {
                    if due.prove {
                        memory.next_probe = Instant::now();
                    }
                    let began = Instant::now();
                    let outcome = self.round(&mut memory).await;
                    requests.release(due.waiters);
                    self.conclude(&mut memory, began, outcome);
                }
            }
            self.tell(&mut memory);
        }
    }

    /// Waits for whatever comes first: the next read, an activation, or a caller with an unknown key_id.
    async fn wait(&self, memory: &mut Memory, requests: &mut RefreshRequests) -> Wake {
        tokio::select! {
            () = tokio::time::sleep_until(memory.next_read) => Wake::Look(Due::default()),
            () = self.activation(memory) => Wake::Activate,
            due = requests.due() => Wake::Look(due),
        }
    }

    /// Ends when the next version becomes active by OpenBao's clock; never, when none is to.
    async fn activation(&self, memory: &Memory) {
        let delay = self.rotation.activation_delay.get().as_secs();
        // Without metadata of its own this keeper could compute no view, and would be woken again at once.
        let change = self.key.peek().filter(|_| memory.metadata.is_some()).and_then(|view| view.next_change(delay));
        match change.and_then(|second| memory.clock.until(second, Instant::now())) {
            Some(until) => tokio::time::sleep(until).await,
            None => std::future::pending().await,
        }
    }

    /// Waits for an answer of OpenBao, however late. A version whose time comes meanwhile becomes active no later for it:
    /// other nodes, whose way to OpenBao is better, go by the same clock.
    async fn meanwhile<T>(&self, memory: &mut Memory, answer: impl Future<Output = T>) -> T {
        let mut answer = pin!(answer);
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => return answer,
                () = self.activation(memory) => self.renew_view(memory),
            }
        }
    }

    /// One look at the whole path. While OpenBao is away, a cheap probe of every address comes before anything else.
    async fn round(&self, memory: &mut Memory) -> Result<Shown, Error> {
        match self.key.health().trouble {
            Some((class, _)) if class.bearing() == Bearing::Absence => {
                self.meanwhile(memory, self.endpoint.find(HEALTH_PATIENCE, HEALTH_WITHIN)).await?;
                self.session.wake();
            }
            Some(_) => self.session.wake(),
            None => {}
        }
        let beside = memory.hindsight.beside_laggards();
        let look = self.meanwhile(memory, self.transit.metadata(beside.clone())).await;
        let Look { metadata, date, endpoint } = look?;
        let heard = Instant::now();
        // A proxy may strip `Date`; then this node's clock is the only one there is.
        memory.clock.observe(date.unwrap_or_else(std::time::SystemTime::now), heard);
        // What could not be asked is as it was.
        memory.upsert = self.meanwhile(memory, self.transit.disable_upsert()).await.unwrap_or(memory.upsert);
        self.note_findings(findings::of(&metadata, memory.upsert));
        if metadata.soft_deleted {
            return Err(Class::KeySoftDeleted.into());
        }
        if self.findings.load().iter().any(|finding| finding.severity == Severity::Blocking) {
            return Err(Error::new(Class::KeyUnusable, "the findings name the property"));
        }
        match memory.hindsight.passes_over(&self.key, &metadata, endpoint, heard) {
            Ok(false) => {}
            Ok(true) => return Ok(Shown::Nothing),
            Err(error) => {
                if self.key.trusted().is_none() {
                    // What is left can be opened. That nothing may be sealed has to be known before anybody goes on.
                    self.key.failed(error.class(), heard);
                    memory.metadata = Some(metadata);
                    self.renew_view(memory);
                }
                return Err(error);
            }
        }
        memory.metadata = Some(metadata);
        self.renew_view(memory);
        let view = self.key.peek().ok_or(Class::Starting)?;
        if heard >= memory.next_probe || self.key.health().trouble.is_some() || self.key.health().last_success.is_none()
        {
            self.meanwhile(memory, self.transit.probe(view.active(), beside)).await?;
            memory.next_probe = Instant::now() + jittered(self.health.deep_probe_interval.get());
        }
        Ok(Shown::Works)
    }

    /// Computes the view from the metadata last read and OpenBao's time now, and publishes it when it differs.
    fn renew_view(&self, memory: &mut Memory) {
        let (Some(metadata), Some(now)) = (&memory.metadata, memory.clock.now(Instant::now())) else {
            return;
        };
        let delay = self.rotation.activation_delay.get().as_secs();
        let (shown, previous) = (self.key.peek(), self.key.trusted());
        let view = View::at(&self.identity, metadata, now, delay, previous.as_deref());
        let view = view.map(|view| match self.key.remembered() {
            Some(seen) => view.no_lower_than(seen.active.0),
            None => view,
        });
        match view {
            Ok(view) if shown.as_deref() == Some(&view) => {}
            Ok(view) => {
                tracing::info!(
                    event = events::VIEW_CHANGED,
                    pipeline = &*self.pipeline,
                    active = view.active().number,
                    latest = view.latest(),
                    min_decryption = view.min_decryption(),
                    seals = self.key.seals_nothing().is_none(),
                    key_id = %view.active().key_id,
                    "the key's view has changed"
                );
                self.key.publish(Arc::new(view));
            }
            Err(error) => tracing::warn!(
                event = events::KEY_FINDING,
                pipeline = &*self.pipeline,
                finding = findings::NO_CANDIDATE.name,
                "{error}"
            ),
        }
        self.witness.keep_beside(&self.key);
    }

    /// Keeps the outcome of a round and plans the next one.
    fn conclude(&self, memory: &mut Memory, began: Instant, outcome: Result<Shown, Error>) {
        let now = Instant::now();
        let interval = self.rotation.metadata_interval.get();
        match outcome {
            Ok(Shown::Works) => {
                self.key.succeeded(now);
                memory.met = None;
                memory.pause = FIRST_PAUSE;
                memory.next_read = now + jittered(interval);
            }
            Ok(Shown::Nothing) => memory.next_read = now + jittered(LAST_PAUSE.min(interval)),
            Err(error) => {
                if error.class().bearing() == Bearing::Absence {
                    memory.hindsight.forget();
                }
                let class = health_class(&error);
                self.key.failed(class, now);
                if memory.met.replace(class) != Some(class) {
                    tracing::warn!(
                        event = events::STATUS_CHANGED,
                        pipeline = &*self.pipeline,
                        class = class.name(),
                        detail = error.detail(),
                        help = class.help(),
                        "the path to OpenBao does not work: {}",
                        class.meaning()
                    );
                }
                // Counted from the beginning of this one, which may have waited for an address that says nothing. When the
                // token is old enough to be replaced, a role that was given its policies back is noticed.
                let replaceable = self.session.token().map(|token| token.since + REPAIR_INTERVAL);
                let due = began + jittered(memory.pause);
                let due = replaceable.filter(|at| *at > now).map_or(due, |at| due.min(at));
                memory.next_read = due.max(now + FIRST_PAUSE);
                memory.pause = (memory.pause * 3 / 2).min(LAST_PAUSE);
            }
        }
    }

    /// Logs a change of what Status says.
    fn tell(&self, memory: &mut Memory) {
        let shown = self.key.shown_trouble(Instant::now());
        if memory.shown.replace(shown) == Some(shown) {
            return;
        }
        match shown {
            None if self.key.peek().is_some() => {
                tracing::info!(
                    event = events::STATUS_CHANGED,
                    pipeline = &*self.pipeline,
                    healthz = "ok",
                    "Status is ok"
                );
            }
            None | Some(Class::Starting) => {}
            Some(class) => tracing::warn!(
                event = events::STATUS_CHANGED,
                pipeline = &*self.pipeline,
                healthz = class.name(),
                help = class.help(),
                "Status is not ok: {}",
                class.meaning()
            ),
        }
    }

    fn note_findings(&self, found: Vec<Finding>) {
        let before = self.findings.load();
        for finding in found.iter().filter(|finding| !before.contains(finding)) {
            let (pipeline, name) = (&*self.pipeline, finding.name);
            match finding.severity {
                Severity::Info => {
                    tracing::info!(event = events::KEY_FINDING, pipeline, finding = name, "{}", finding.text);
                }
                Severity::Warning | Severity::Blocking => {
                    tracing::warn!(event = events::KEY_FINDING, pipeline, finding = name, "{}", finding.text);
                }
            }
        }
        drop(before);
        self.findings.store(Arc::new(found));
    }
}

// === impl Memory ===

impl Memory {
    fn new(now: Instant) -> Self {
        Self {
            clock: BaoClock::default(),
            metadata: None,
            next_read: now,
            next_probe: now,
            pause: FIRST_PAUSE,
            shown: None,
            met: None,
            hindsight: Hindsight::default(),
            upsert: None,
        }
    }
}

/// The class that Status shows for a failed round: one that bears on health, whatever the call itself met.
fn health_class(error: &Error) -> Class {
    match error.class() {
        // The keeper's own call ran out of time: OpenBao is slow or away.
        Class::DeadlineExceeded => Class::Timeout,
        class if class.bearing() == Bearing::None => Class::ServerError,
        class => class,
    }
}

/// A tenth more or less, so that nodes do not ask in step.
fn jittered(span: Duration) -> Duration {
    span.mul_f64(0.9 + 0.2 * fastrand::f64())
}

#[cfg(test)]
#[path = "keeper_tests.rs"]
mod tests;
