//! The instruments, one set for each pipeline, in a registry that is a value: no globals, so tests count in isolation.
//! Labels are few and bounded: pipeline, call, class, purpose, endpoint position.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::error::Class;
use crate::request::{Kind, Purpose};

/// `call` and `class` of a KMS call; `ok` is the class of a success.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub struct CallLabels {
    /// `status`, `encrypt` or `decrypt`.
    pub call: &'static str,
    /// `ok` or the name of a class.
    pub class: &'static str,
}

/// `purpose`, `endpoint` and `class` of an exchange with OpenBao.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub struct AttemptLabels {
    /// What the exchange was for.
    pub purpose: &'static str,
    /// Position in the configured endpoints, or `redirect`.
    pub endpoint: String,
    /// `ok` or the name of a class.
    pub class: &'static str,
}

/// One label: `call`.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub struct KindLabel {
    /// `encrypt` or `decrypt`.
    pub call: &'static str,
}

/// One label: `endpoint`.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub struct EndpointLabel {
    /// Position in the configured endpoints.
    pub endpoint: String,
}

/// The instruments of one pipeline.
#[derive(Clone, Debug)]
pub struct PipelineMetrics {
    pub(super) calls: Family<CallLabels, Counter>,
    pub(super) call_seconds: Family<KindLabel, Histogram, fn() -> Histogram>,
    pub(super) in_flight: Family<KindLabel, Gauge>,
    pub(super) attempts: Family<AttemptLabels, Counter>,
    pub(super) attempt_seconds: Histogram,
    pub(super) repeats: Counter,
    pub(super) shared: Counter,
    pub(super) hang_ups: Counter,
    pub(super) queued: Gauge,
    pub(super) gathering: Gauge,
    pub(super) batch_items: Histogram,
    pub(super) slots_used: Gauge,
    pub(super) logins: Family<CallLabels, Counter>,
    pub(super) panics: Counter,
    pub(super) token_expiry_unix: Gauge<f64, AtomicU64>,
    pub(super) credential_expiry_unix: Gauge<f64, AtomicU64>,
    pub(super) witness_trouble: Gauge,
    pub(super) peers_refused: Counter,
    pub(super) peers_silent: Counter,
    pub(crate) breakers: Family<EndpointLabel, Gauge>,
    /// Counts the sets of breakers that there have been; the last one alone moves the gauges.
    breaker_sets: Arc<AtomicU64>,
    pub(super) connections: Gauge<i64, AtomicI64>,
}

/// Counts a call as in flight until it is dropped.
#[derive(Debug)]
pub struct InFlight(Gauge);

/// The gauges of one set of breakers, until another set takes its place: calls may still be in the stack that was replaced.
#[derive(Debug)]
pub struct BreakerGauges {
    gauges: Family<EndpointLabel, Gauge>,
    set: u64,
    sets: Arc<AtomicU64>,
}

fn latency() -> Histogram {
    Histogram::new(exponential_buckets(0.000_25, 2.0, 16))
}

// === impl PipelineMetrics ===

impl Default for PipelineMetrics {
    fn default() -> Self {
        Self {
            calls: Family::default(),
            call_seconds: Family::new_with_constructor(latency as fn() -> Histogram),
            in_flight: Family::default(),
            attempts: Family::default(),
            attempt_seconds: latency(),
            repeats: Counter::default(),
            shared: Counter::default(),
            hang_ups: Counter::default(),
            queued: Gauge::default(),
            gathering: Gauge::default(),
            batch_items: Histogram::new(exponential_buckets(1.0, 2.0, 8)),
            slots_used: Gauge::default(),
            logins: Family::default(),
            panics: Counter::default(),
            token_expiry_unix: Gauge::default(),
            credential_expiry_unix: Gauge::default(),
            witness_trouble: Gauge::default(),
            peers_refused: Counter::default(),
            peers_silent: Counter::default(),
            breakers: Family::default(),
            breaker_sets: Arc::default(),
            connections: Gauge::default(),
        }
    }
}

impl PipelineMetrics {
    /// A set that nobody has registered yet; clones count together.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// An Encrypt or Decrypt has entered; it counts as in flight until the guard drops.
    pub fn enter(&self, kind: Kind) -> InFlight {
        let gauge = self.in_flight.get_or_create_owned(&KindLabel { call: kind.name() });
        gauge.inc();
        InFlight(gauge)
    }

    /// An Encrypt or Decrypt is answered; `class` is `None` for a success.
    pub fn answered(&self, kind: Kind, class: Option<Class>, took: Duration) {
        let class = class.map_or("ok", Class::name);
        self.calls.get_or_create(&CallLabels { call: kind.name(), class }).inc();
        self.call_seconds.get_or_create(&KindLabel { call: kind.name() }).observe(took.as_secs_f64());
    }

    /// Registers every instrument under its name.
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("calls", "KMS calls answered, by call and class.", self.calls.clone());
        registry.register("call_seconds", "From the socket to the answer.", self.call_seconds.clone());
        registry.register("calls_in_flight", "Calls inside.", self.in_flight.clone());
        registry.register("openbao_attempts", "Exchanges with OpenBao.", self.attempts.clone());
        registry.register("openbao_attempt_seconds", "One exchange with OpenBao.", self.attempt_seconds.clone());
        registry.register(
            "endpoint_open",
            "1 while calls keep away from an address because it failed, 0 otherwise.",
            self.breakers.clone(),
        );
        registry.register("repeats", "Calls tried again.", self.repeats.clone());
        registry.register("coalesced", "Decrypts that shared the flight of an identical one.", self.shared.clone());
        registry.register("hang_ups", "Callers that left before their answer.", self.hang_ups.clone());
        registry.register("queued", "Calls that wait for a slot.", self.queued.clone());
        registry.register("gathering", "Decrypts that wait for the next batch.", self.gathering.clone());
        registry.register("batch_items", "Decrypts in one batch.", self.batch_items.clone());
        registry.register("slots_used", "Slots in use.", self.slots_used.clone());
        registry.register("logins", "Logins and renewals, by class.", self.logins.clone());
        registry.register("panics", "Calls that panicked; each is a defect.", self.panics.clone());
        registry.register(
            "token_expiry_timestamp_seconds",
            "When the token ends; 0: never or none.",
            self.token_expiry_unix.clone(),
        );
        registry.register(
            "credential_expiry_timestamp_seconds",
            "When the login credential ends; 0: it does not say.",
            self.credential_expiry_unix.clone(),
        );
        registry.register(
            "witness_trouble",
            "1 when `witness.file` could not be read or written at the last try: a restart may not notice a key that was rolled back.",
            self.witness_trouble.clone(),
        );
        registry.register("peers_refused", "Connections from users that are not allowed.", self.peers_refused.clone());
        registry.register(
            "peers_silent",
            "Connections closed because their caller had not begun to speak HTTP/2 after five seconds.",
            self.peers_silent.clone(),
        );
        registry.register("connections", "Connections open on the socket.", self.connections.clone());
    }

    /// Encrypt and Decrypt calls that failed so far, by class; only classes that occurred.
    pub fn failures(&self) -> Vec<(&'static str, Class, u64)> {
        let kinds = [Kind::Encrypt, Kind::Decrypt];
        let rows = kinds.iter().flat_map(|kind| Class::ALL.iter().map(move |class| (kind.name(), *class)));
        rows.filter_map(|(call, class)| {
            let count = self.calls.get(&CallLabels { call, class: class.name() })?.get();
            Some((call, class, count))
        })
        .collect()
    }

    /// Every KMS call answered so far, by call and class; only what occurred.
    pub fn answers(&self) -> Vec<(&'static str, &'static str, u64)> {
        let classes = || std::iter::once("ok").chain(Class::ALL.iter().map(|class| class.name()));
        let calls = ["status", Kind::Encrypt.name(), Kind::Decrypt.name()];
        let rows = calls.into_iter().flat_map(|call| classes().map(move |class| (call, class)));
        rows.filter_map(|(call, class)| Some((call, class, self.calls.get(&CallLabels { call, class })?.get())))
            .collect()
    }

    /// A Status is answered; `healthz` is `ok` or the name of a class.
    pub fn status_answered(&self, healthz: &'static str) {
        self.calls.get_or_create(&CallLabels { call: "status", class: healthz }).inc();
    }

    /// A caller hung up before its answer.
    pub fn hung_up(&self) {
        self.hang_ups.inc();
    }

    /// Callers that hung up so far.
    pub fn hang_ups(&self) -> u64 {
        self.hang_ups.get()
    }

    /// A call was answered with `internal` because it panicked.
    pub fn panicked(&self) {
        self.panics.inc();
    }

    /// Calls that panicked so far, and what several calls share.
    pub fn panics(&self) -> u64 {
        self.panics.get()
    }

    /// One exchange with OpenBao is over.
    pub fn attempted(&self, purpose: Purpose, endpoint: Option<usize>, class: Option<Class>, took: Duration) {
        let labels = AttemptLabels {
            purpose: purpose.name(),
            endpoint: endpoint.map_or_else(|| "redirect".to_owned(), |at| at.to_string()),
            class: class.map_or("ok", Class::name),
        };
        self.attempts.get_or_create(&labels).inc();
        self.attempt_seconds.observe(took.as_secs_f64());
    }

    /// The gauges of breakers for so many addresses, all closed, in place of those that there were.
    pub fn breakers(&self, addresses: usize) -> BreakerGauges {
        let set = self.breaker_sets.fetch_add(1, Ordering::SeqCst) + 1;
        self.breakers.clear();
        let gauges = BreakerGauges { gauges: self.breakers.clone(), set, sets: self.breaker_sets.clone() };
        for at in 0..addresses {
            gauges.set(at, false);
        }
        gauges
    }

    /// A call is tried again.
    pub fn repeated(&self) {
        self.repeats.inc();
    }

    /// A Decrypt shares the flight of an identical one.
    pub fn coalesced(&self) {
        self.shared.inc();
    }

    /// So many calls more, or fewer, wait for a slot.
    pub fn queue_changed(&self, by: i64) {
        self.queued.inc_by(by);
    }

    /// Decrypts that wait for the next batch; told under the lock that orders them.
    pub fn set_gathering(&self, waiting: usize) {
        self.gathering.set(i64::try_from(waiting).unwrap_or(i64::MAX));
    }

    /// A batch of this many decrypts goes to OpenBao.
    pub fn batched(&self, items: usize) {
        self.batch_items.observe(f64::from(u32::try_from(items).unwrap_or(u32::MAX)));
    }

    /// So many slots more, or fewer, are in use.
    pub fn slots_changed(&self, by: i64) {
        self.slots_used.inc_by(by);
    }

    /// A login or renewal is over; `what` is `login` or `renew`.
    pub fn logged_in(&self, what: &'static str, class: Option<Class>) {
        self.logins.get_or_create(&CallLabels { call: what, class: class.map_or("ok", Class::name) }).inc();
    }

    /// When the token expires by the monotonic clock, told as Unix seconds; 0: there is none.
    pub fn set_token_expiry(&self, unix: f64) {
        self.token_expiry_unix.set(unix);
    }

    /// When the login credential (JWT, certificate) expires by its own word, Unix seconds; 0: it does not say.
    pub fn set_credential_expiry(&self, unix: f64) {
        self.credential_expiry_unix.set(unix);
    }

    /// What that gauge shows.
    pub fn credential_expiry(&self) -> f64 {
        self.credential_expiry_unix.get()
    }

    /// Whether what is known of the key cannot be kept for a restart.
    pub fn set_witness_trouble(&self, trouble: bool) {
        self.witness_trouble.set(i64::from(trouble));
    }

    /// What that gauge shows.
    pub fn witness_trouble(&self) -> i64 {
        self.witness_trouble.get()
    }

    /// A connection came from a user that is not allowed.
    pub fn peer_refused(&self) {
        self.peers_refused.inc();
    }

    /// A caller connected and did not begin to speak.
    pub fn peer_silent(&self) {
        self.peers_silent.inc();
    }

    /// A connection is open on the socket.
    pub fn connected(&self) {
        self.connections.inc();
    }

    /// One of them is closed.
    pub fn disconnected(&self) {
        self.connections.dec();
    }
}

// === impl BreakerGauges ===

impl BreakerGauges {
    /// Whether calls keep away from an address because it failed.
    pub fn set(&self, endpoint: usize, open: bool) {
        if self.sets.load(Ordering::SeqCst) == self.set {
            self.gauges.get_or_create(&EndpointLabel { endpoint: endpoint.to_string() }).set(i64::from(open));
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}
