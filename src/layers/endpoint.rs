//! One attempt: picks an address, makes one exchange and at most one redirect to a listed host. Never loops: repeating is
//! the retry layer's.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;
use tower::Service;
use tower::util::BoxCloneSyncService;
use tracing::Instrument;

use super::Answer;
use crate::error::{Class, Error, Fault};
use crate::request::{BaoCall, BaoReply, Credential, Exchange, Method, Progress, Purpose, Stage};
use crate::telemetry::metrics::PipelineMetrics;
use crate::telemetry::traces;

mod breaker;

use breaker::{Breakers, Pick, Trial};

/// How long a probe of an address that failed may take.
const PROBE_WITHIN: Duration = Duration::from_secs(1);
/// An address that has not answered for this long counts as one that failed.
const SLOW: Duration = Duration::from_secs(1);

/// One exchange as `http` serves it.
type PipeService = BoxCloneSyncService<Exchange, BaoReply, Error>;

/// `Service<BaoCall>`; clones share what is known of the addresses.
#[derive(Clone)]
pub struct Endpoint {
    pipe: PipeService,
    shared: Arc<Shared>,
}

struct Shared {
    origins: Vec<Arc<str>>,
    redirect_hosts: Vec<String>,
    breakers: Breakers,
    /// When a probe last found a node well.
    well: Mutex<Option<Instant>>,
    metrics: Arc<PipelineMetrics>,
}

// === impl Endpoint ===

impl Endpoint {
    /// Over a pipe. `origins` are `https://host:port`; `redirect_hosts` are `host:port`.
    pub fn new<P>(origins: Vec<Arc<str>>, redirect_hosts: Vec<String>, pipe: P, metrics: Arc<PipelineMetrics>) -> Self
    where
        P: Service<Exchange, Response = BaoReply, Error = Error> + Clone + Send + Sync + 'static,
        P::Future: Send + 'static,
    {
        let breakers = Breakers::new(origins.len(), metrics.clone());
        let shared = Shared { origins, redirect_hosts, breakers, well: Mutex::new(None), metrics };
        Self { pipe: PipeService::new(pipe), shared: Arc::new(shared) }
    }

    /// Asks every address for `sys/health` at once; `Ok` with the first node that serves or forwards (active, or standby).
    /// Those that have said nothing within `patience` go on by themselves, for as long as a probe may take: a node that one
    /// of them has found well since is good enough for the next look.
    ///
    /// # Errors
    /// That of an address that answered rather than that of one that did not, when none is well.
    pub async fn find(&self, patience: Duration, within: Duration) -> Result<(), Error> {
        if self.well().is_some_and(|at| at.elapsed() < within) {
            return Ok(());
        }
        let mut checks = tokio::task::JoinSet::new();
        for at in 0..self.shared.origins.len() {
            let endpoint = self.clone();
            checks.spawn(async move { endpoint.probe(at, within).await });
        }
        let until = Instant::now() + patience;
        let mut told: Option<Error> = None;
        while let Ok(Some(check)) = tokio::time::timeout_at(until, checks.join_next()).await {
            // A check that panicked is reported where it did; the address counts as not answering.
            match check.unwrap_or_else(|_| Err(Error::new(Class::Internal, "a check of an address broke off"))) {
                Ok(()) => {
                    checks.detach_all();
                    return Ok(());
                }
                Err(error) if told.as_ref().is_some_and(|known| tells(known) >= tells(&error)) => {}
                Err(error) => told = Some(error),
            }
        }
        checks.detach_all();
        Err(told.unwrap_or_else(|| {
            let class = self.shared.breakers.known_trouble().unwrap_or(Class::Timeout);
            Error::new(class, "no address has answered yet")
        }))
    }

    fn well(&self) -> MutexGuard<'_, Option<Instant>> {
        self.shared.well.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `sys/health` of one address; a node that serves or forwards may be asked again.
    async fn probe(&self, at: usize, within: Duration) -> Result<(), Error> {
        let call = BaoCall { namespaced: false, ..BaoCall::own(Purpose::Health, Method::Get, "sys/health", within) };
        let call = call.with_credential(Credential::Anonymous);
        let (origin, began) = (self.shared.origins[at].clone(), Instant::now());
        let answer = self.send(Exchange { origin, endpoint: Some(at), call }).await;
        let answer = answer.and_then(|reply| health(&reply));
        match &answer {
            Ok(()) => {
                *self.well() = Some(Instant::now());
                self.shared.breakers.probed(at, Instant::now());
            }
            // A file of ours that cannot be read says nothing about an address.
            Err(error) if error.class().fault() != Fault::OpenBao => {}
            Err(error) => self.shared.breakers.probe_failed(at, error.class(), began, Instant::now()),
        }
        answer
    }

    /// The address for a call, and the right to try it when all have failed.
    async fn address(&self, call: &BaoCall) -> Result<(usize, Option<Trial>), Error> {
        let breakers = &self.shared.breakers;
        loop {
            let changed = breakers.changed();
            let (until, class) = match breakers.pick(Instant::now(), |at| call.progress.avoids(at)) {
                Pick::Ask { at, trial } => return Ok((at, trial)),
                Pick::Wait { until, class } => (until, class),
            };
            call.progress.enter(Stage::OpenBao);
            call.progress.met(class);
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep_until(until.min(call.deadline)) => {
                    if until >= call.deadline {
                        let detail = "every address has failed, and the next trial is later than the call can wait";
                        return Err(Error::new(class, detail));
                    }
                }
            }
        }
    }

    /// Looks after addresses that failed while others serve, so that no call pays for finding out.
    fn probe_others(&self) {
        if let Some((at, trial)) = self.shared.breakers.probe_due(Instant::now()) {
            let endpoint = self.clone();
            tokio::spawn(async move {
                let _trial = trial;
                // What it found out is in the breaker.
                let _ = endpoint.probe(at, PROBE_WITHIN).await;
            });
        }
    }

    /// One exchange with one address, within the call's deadline.
    async fn exchange(&self, at: usize, call: BaoCall) -> Result<BaoReply, Error> {
        let (origin, progress, began) = (self.shared.origins[at].clone(), call.progress.clone(), Instant::now());
        let purpose = call.purpose;
        let answer = self.send(Exchange { origin, endpoint: Some(at), call }).await;
        self.note(at, purpose, &answer, &progress, began);
        answer
    }

    /// Keeps what an answer says of its address: for the call, which goes elsewhere next, and for everybody.
    fn note(&self, at: usize, purpose: Purpose, answer: &Result<BaoReply, Error>, progress: &Progress, began: Instant) {
        let (took, breakers) = (began.elapsed(), &self.shared.breakers);
        let class = match answer {
            // Where it leads says more.
            Ok(reply) if is_redirect(reply.status) => return,
            Ok(reply) if lags(reply) => {
                progress.avoid(at);
                breakers.lags(at, Instant::now());
                return progress.may_go_elsewhere(breakers.has_untried(progress));
            }
            Ok(reply) => unwell(reply),
            Err(error) => Some(error.class()),
        };
        if purpose == Purpose::KeysConfig && class == Some(Class::BadReply) {
            // A proxy may hide it as a policy may: nothing that calls need is missing there.
            return;
        }
        let Some(class) = class else {
            // What Transit may still find wrong in it counts as if nobody else served.
            progress.may_go_elsewhere(false);
            // A login is no work for Transit, which may be what is slow.
            if took < SLOW && matches!(purpose, Purpose::Encrypt | Purpose::Decrypt | Purpose::Metadata) {
                breakers.crawls(false);
            }
            return breakers.answered(at, Instant::now());
        };
        // A shorter wait than this says that the caller was in a hurry.
        let waited = class == Class::Timeout && took >= SLOW / 2;
        if waited && progress.has_met(Class::Timeout) && !progress.avoids(at) {
            breakers.crawls(true);
        }
        progress.avoid(at);
        // A caller in a hurry, or a file of ours that cannot be read, says nothing about OpenBao.
        let hurried = class == Class::Timeout && took < SLOW && !breakers.is_crawling();
        if !hurried && class.fault() == Fault::OpenBao {
            breakers.failed(at, class, Instant::now());
        }
        progress.may_go_elsewhere(breakers.has_untried(progress));
    }

    async fn send(&self, mut exchange: Exchange) -> Result<BaoReply, Error> {
        exchange.call.progress.enter(Stage::OpenBao);
        let (purpose, endpoint, due) = (exchange.call.purpose, exchange.endpoint, exchange.call.deadline);
        let span = traces::attempt_span(purpose, endpoint, exchange.call.trace.as_ref());
        if let Some(trace) = traces::inject(&span) {
            exchange.call.trace = Some(trace);
        }
        let began = Instant::now();
        let answer = tokio::time::timeout_at(due, self.pipe.clone().call(exchange).instrument(span)).await;
        let answer = answer.unwrap_or_else(|_| Err(Error::new(Class::Timeout, "no answer before the deadline")));
        let class = match &answer {
            Ok(reply) if purpose == Purpose::Health => health(reply).err().map(|error| error.class()),
            Ok(reply) => unwell(reply),
            Err(error) => Some(error.class()),
        };
        self.shared.metrics.attempted(purpose, endpoint, class, began.elapsed());
        answer
    }

    async fn run(self, call: BaoCall) -> Result<BaoReply, Error> {
        let (at, trial) = self.address(&call).await?;
        let mut attempt = call.clone();
        if trial.is_none() {
            self.probe_others();
        }
        // An address that hears and never answers must leave time for another one.
        if self.shared.breakers.has_other(at) {
            let now = Instant::now();
            attempt.deadline = now + call.deadline.saturating_duration_since(now) / 2;
        }
        let due = attempt.deadline;
        let reply = self.exchange(at, attempt).await?;
        if !is_redirect(reply.status) {
            return Ok(reply);
        }
        let (purpose, progress, began) = (call.purpose, call.progress.clone(), Instant::now());
        let answer = self.follow(reply.location.as_deref(), BaoCall { deadline: due, ..call }).await;
        self.note(at, purpose, &answer, &progress, began);
        answer
    }

    /// The second half of an attempt: where a standby says that its leader is.
    async fn follow(&self, location: Option<&str>, call: BaoCall) -> Result<BaoReply, Error> {
        let no_leader = |detail: &'static str| Err(Error::new(Class::NoLeader, detail));
        let (origin, endpoint) = self.redirect_target(location)?;
        let breakers = &self.shared.breakers;
        let Some(_trial) = endpoint.map_or(Some(None), |target| breakers.may_follow(target, Instant::now())) else {
            return no_leader("a standby redirects to a leader that failed a moment ago");
        };
        let answer = match endpoint {
            Some(target) => self.exchange(target, call).await,
            None => self.send(Exchange { origin, endpoint, call }).await,
        };
        match answer {
            // A standby that still names a leader which died: the election is under way.
            Err(error) if matches!(error.class(), Class::Unreachable | Class::Timeout) => {
                no_leader("a standby redirects to a leader that does not answer")
            }
            Ok(reply) if is_redirect(reply.status) => no_leader("the redirect's target redirects again"),
            answer => answer,
        }
    }

    /// The listed host that a `Location` names.
    fn redirect_target(&self, location: Option<&str>) -> Result<(Arc<str>, Option<usize>), Error> {
        let refused = |detail: &'static str| Err(Error::new(Class::RedirectRefused, detail));
        let Some(rest) = location.and_then(|location| location.strip_prefix("https://")) else {
            return refused("the redirect leads to no https address");
        };
        let host = with_port(rest.split(['/', '?', '#']).next().unwrap_or_default());
        let known = self.shared.origins.iter().position(|origin| origin_host(origin) == host);
        if let Some(at) = known {
            return Ok((self.shared.origins[at].clone(), Some(at)));
        }
        if self.shared.redirect_hosts.iter().any(|listed| with_port(listed) == host) {
            return Ok((format!("https://{host}").into(), None));
        }
        refused("the redirect leads to a host that is neither an endpoint nor in redirectHosts")
    }
}

/// How much the error of an address says of OpenBao: what answered more than what did not.
fn tells(error: &Error) -> u8 {
    match error.class() {
        Class::Timeout => 0,
        Class::Unreachable | Class::NameResolution | Class::ConnectionLost => 1,
        _ => 2,
    }
}

fn origin_host(origin: &str) -> String {
    with_port(origin.trim_start_matches("https://"))
}

/// `host:port` in lower case, with the port that https means when none is written.
fn with_port(host: &str) -> String {
    let has_port =
        host.rsplit_once(':').is_some_and(|(_, port)| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()));
    let host = host.to_ascii_lowercase();
    if has_port { host } else { format!("{host}:443") }
}

fn is_redirect(status: u16) -> bool {
    matches!(status, 301 | 302 | 307 | 308)
}

/// What a reply says against its address rather than against its call. A standby without a leader answers 500 with
/// `local node not active` (`openbao.md` B.5); a 503 without a word of a seal is a load balancer's, or a node's without a
/// leader; a page, or a refusal in another's words, is that of something in front of a node.
fn unwell(reply: &BaoReply) -> Option<Class> {
    match reply.status {
        429 => Some(Class::RateLimited),
        500 if says(reply, "node not active") => Some(Class::NoLeader),
        500 => Some(Class::ServerError),
        503 if says(reply, "sealed") || says(reply, "has been locked") => Some(Class::Sealed),
        501..=599 => Some(Class::NoLeader),
        200 if !reply.body.starts_with(b"{") => Some(Class::BadReply),
        400..=499 if reply.errors().is_none() => Some(Class::BadReply),
        _ => None,
    }
}

/// Whether a node does not know a key version yet that another one has made known (`openbao.md` B.6).
fn lags(reply: &BaoReply) -> bool {
    reply.status == 400 && (says(reply, "version is too new") || says(reply, "is higher than the latest key version"))
}

fn says(reply: &BaoReply, text: &str) -> bool {
    reply.body.windows(text.len()).any(|part| part == text.as_bytes())
}

/// What `sys/health` says (`openbao.md` B.5): 200 active, 429 standby, 501 not initialised, 503 sealed. Something in front
/// of OpenBao that does not let the question pass answers too: then what it lets pass has to be asked.
fn health(reply: &BaoReply) -> Result<(), Error> {
    match reply.status {
        501 => Err(Error::new(Class::Sealed, "OpenBao is not initialised")),
        503 if says(reply, "\"sealed\":true") || says(reply, "is sealed") => {
            Err(Error::new(Class::Sealed, "OpenBao is sealed"))
        }
        502..=504 => Err(Error::new(Class::NoLeader, format!("sys/health answers {}", reply.status))),
        500..=599 => Err(Error::new(Class::ServerError, format!("sys/health answers {}", reply.status))),
        _ => Ok(()),
    }
}

impl Service<BaoCall> for Endpoint {
    type Response = BaoReply;
    type Error = Error;
    type Future = Answer<BaoReply>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: BaoCall) -> Self::Future {
        Box::pin(self.clone().run(call))
    }
}

#[cfg(test)]
#[path = "endpoint_tests.rs"]
mod tests;
