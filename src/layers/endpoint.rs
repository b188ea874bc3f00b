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

mod order;

use order::Order;

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
    order: Order,
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
        let order = Order::new(origins.len());
        let shared = Shared { origins, redirect_hosts, order, metrics };
        Self { pipe: PipeService::new(pipe), shared: Arc::new(shared) }
    }

    /// Asks every address for `sys/health` at once. `Ok` is a node that serves or forwards: active, or standby.
    pub async fn check_all(&self, within: Duration) -> Vec<(usize, Result<(), Error>)> {
        let checks = (0..self.shared.origins.len()).map(|at| {
            let endpoint = self.clone();
            tokio::spawn(async move {
                let call =
                    BaoCall { namespaced: false, ..BaoCall::own(Purpose::Health, Method::Get, "sys/health", within) };
                let call = call.with_credential(Credential::Anonymous);
                let answer = endpoint.exchange(at, call).await.and_then(|reply| health(reply.status));
                (at, answer)
            })
        });
        let mut answers = Vec::new();
        for check in checks.collect::<Vec<_>>() {
            // A check that panicked is reported where it did; the address counts as not answering.
            answers.extend(check.await);
        }
        answers
    }

    /// One exchange with one address, within the call's deadline.
    async fn exchange(&self, at: usize, call: BaoCall) -> Result<BaoReply, Error> {
        let origin = self.shared.origins[at].clone();
        let answer = self.send(Exchange { origin, endpoint: Some(at), call }).await;
        self.shared.order.note(at, answer.as_ref().is_ok_and(|reply| !is_unwell(reply.status)));
        answer
    }

    async fn send(&self, mut exchange: Exchange) -> Result<BaoReply, Error> {
        exchange.call.progress.enter(Stage::OpenBao);
        let (purpose, endpoint, due) = (exchange.call.purpose, exchange.endpoint, exchange.call.deadline);
        let span = traces::attempt_span(purpose, endpoint);
        if let Some(trace) = traces::inject(&span) {
            exchange.call.trace = Some(trace);
        }
        let began = Instant::now();
        let answer = tokio::time::timeout_at(due, self.pipe.clone().call(exchange).instrument(span)).await;
        let answer = answer.unwrap_or_else(|_| Err(Error::new(Class::Timeout, "no answer before the deadline")));
        let class = match &answer {
            Ok(reply) if is_unwell(reply.status) => Some(status_class(reply.status)),
            Ok(_) => None,
            Err(error) => Some(error.class()),
        };
        self.shared.metrics.attempted(purpose, endpoint, class, began.elapsed());
        answer
    }

    async fn run(self, call: BaoCall) -> Result<BaoReply, Error> {
        let at = self.shared.order.pick();
        let reply = self.exchange(at, call.clone()).await?;
        if !matches!(reply.status, 301 | 302 | 307 | 308) {
            return Ok(reply);
        }
        let (origin, endpoint) = self.redirect_target(reply.location.as_deref())?;
        match self.send(Exchange { origin, endpoint, call }).await {
            // A standby that still names a leader which died: the election is under way.
            Err(error) if error.class() == Class::Unreachable => {
                self.shared.order.note(at, false);
                Err(Error::new(Class::NoLeader, "a standby redirects to a leader that does not answer"))
            }
            Ok(reply) if matches!(reply.status, 301 | 302 | 307 | 308) => {
                Err(Error::new(Class::NoLeader, "the redirect's target redirects again"))
            }
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

/// Whether a status speaks against the address rather than against the call.
fn is_unwell(status: u16) -> bool {
    matches!(status, 429 | 500..=599)
}

fn status_class(status: u16) -> Class {
    match status {
        429 => Class::RateLimited,
        500 => Class::ServerError,
        503 => Class::Sealed,
        _ => Class::NoLeader,
    }
}

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
