//! One attempt: picks an address, makes one exchange and at most one redirect to a listed host. Never loops: repeating is
//! the retry layer's.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;
use tower::Service;
use tower::util::BoxCloneSyncService;
use tracing::Instrument;

use super::Answer;
use crate::error::{Class, Error};
use crate::request::{BaoCall, BaoReply, Credential, Exchange, Method, Purpose, Stage};
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
        let shared = Shared { origins, redirect_hosts, breakers, metrics };
        Self { pipe: PipeService::new(pipe), shared: Arc::new(shared) }
    }

    /// Asks every address for `sys/health` at once. `Ok` is a node that serves or forwards: active, or standby.
    pub async fn check_all(&self, within: Duration) -> Vec<(usize, Result<(), Error>)> {
        let checks = (0..self.shared.origins.len()).map(|at| {
            let endpoint = self.clone();
            tokio::spawn(async move { (at, endpoint.probe(at, within).await) })
        });
        let mut answers = Vec::new();
        for check in checks.collect::<Vec<_>>() {
            // A check that panicked is reported where it did; the address counts as not answering.
            answers.extend(check.await);
        }
        answers
    }

    /// `sys/health` of one address; a node that serves or forwards may be asked again.
    async fn probe(&self, at: usize, within: Duration) -> Result<(), Error> {
        let call = BaoCall { namespaced: false, ..BaoCall::own(Purpose::Health, Method::Get, "sys/health", within) };
        let call = call.with_credential(Credential::Anonymous);
        let origin = self.shared.origins[at].clone();
        let answer = self.send(Exchange { origin, endpoint: Some(at), call }).await;
        let answer = answer.and_then(|reply| health(reply.status));
        match &answer {
            Ok(()) => self.shared.breakers.probed(at),
            Err(error) => self.shared.breakers.failed(at, error.class(), Instant::now()),
        }
        answer
    }

    /// The address for a call, and the right to try it when all have failed.
    async fn address(&self, call: &BaoCall) -> Result<(usize, Option<Trial>), Error> {
        let breakers = &self.shared.breakers;
        loop {
            let changed = breakers.changed();
            let (until, class) = match breakers.pick(Instant::now()) {
                Pick::Ask { at, trial } => return Ok((at, trial)),
                Pick::Wait { until, class } => (until, class),
            };
            let late =
                || Error::new(class, "every address has failed, and the next trial is later than the call can wait");
            if until.is_some_and(|until| until >= call.deadline) {
                return Err(late());
            }
            call.progress.enter(Stage::OpenBao);
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep_until(until.unwrap_or(call.deadline)) => {
                    if until.is_none() {
                        return Err(late());
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
        let (origin, began) = (self.shared.origins[at].clone(), Instant::now());
        let answer = self.send(Exchange { origin, endpoint: Some(at), call }).await;
        let says_nothing = match &answer {
            // Where it leads says more.
            Ok(reply) => is_redirect(reply.status),
            // A caller in a hurry says nothing about OpenBao.
            Err(error) => error.class() == Class::Timeout && began.elapsed() < SLOW,
        };
        if !says_nothing {
            self.note(at, &answer);
        }
        answer
    }

    fn note(&self, at: usize, answer: &Result<BaoReply, Error>) {
        let unwell = match answer {
            Ok(reply) => unwell(reply),
            Err(error) => Some(error.class()),
        };
        match unwell {
            None => self.shared.breakers.answered(at),
            Some(class) => self.shared.breakers.failed(at, class, Instant::now()),
        }
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
            Ok(reply) if purpose == Purpose::Health => health(reply.status).err().map(|error| error.class()),
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
            // An address that hears and never answers must leave time for another one.
            if self.shared.breakers.has_other(at) {
                let now = Instant::now();
                attempt.deadline = now + call.deadline.saturating_duration_since(now) / 2;
            }
        }
        let reply = self.exchange(at, attempt).await?;
        if !is_redirect(reply.status) {
            return Ok(reply);
        }
        let (origin, endpoint) = self.redirect_target(reply.location.as_deref())?;
        let answer = self.send(Exchange { origin, endpoint, call }).await;
        if let Some(target) = endpoint {
            self.note(target, &answer);
        }
        let answer = match answer {
            // A standby that still names a leader which died: the election is under way.
            Err(error) if error.class() == Class::Unreachable => {
                Err(Error::new(Class::NoLeader, "a standby redirects to a leader that does not answer"))
            }
            Ok(reply) if is_redirect(reply.status) => {
                Err(Error::new(Class::NoLeader, "the redirect's target redirects again"))
            }
            answer => answer,
        };
        self.note(at, &answer);
        answer
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
/// `local node not active` (`openbao.md` B.5).
fn unwell(reply: &BaoReply) -> Option<Class> {
    match reply.status {
        429 => Some(Class::RateLimited),
        500 if reply.body.windows(NOT_ACTIVE.len()).any(|part| part == NOT_ACTIVE) => Some(Class::NoLeader),
        500 => Some(Class::ServerError),
        503 => Some(Class::Sealed),
        501..=599 => Some(Class::NoLeader),
        _ => None,
    }
}

const NOT_ACTIVE: &[u8] = b"node not active";

/// What `sys/health` says (`openbao.md` B.5): 200 active, 429 standby, 501 not initialised, 503 sealed.
fn health(status: u16) -> Result<(), Error> {
    match status {
        200 | 429 | 472 | 473 => Ok(()),
        501 => Err(Error::new(Class::Sealed, "OpenBao is not initialised")),
        503 => Err(Error::new(Class::Sealed, "OpenBao is sealed")),
        500..=599 => Err(Error::new(Class::ServerError, format!("sys/health answers {status}"))),
        _ => Err(Error::new(Class::BadReply, format!("sys/health answers {status}"))),
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
