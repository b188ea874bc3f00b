//! The background task of a session: logs in, renews ahead of expiry, and logs in again when renewal cannot help. It says
//! each change of its state once, and none of its waits is a caller's.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;
use tower::Service;

use super::backoff::{APART, Backoff, Pause, is_refusal};
use super::lease::Lease;
use super::papers::Papers;
use super::session::{Shared, Token};
use crate::error::{Class, Error};
use crate::request::{BaoCall, BaoService, Credential, Method as HttpMethod, Purpose};
use crate::telemetry::events;
use crate::telemetry::metrics::PipelineMetrics;

const RENEW_WITHIN: Duration = Duration::from_secs(5);
/// Logins that follow each other faster are told once: a policy that was taken away leads to many.
const TOLD_APART: Duration = Duration::from_secs(60);

/// What the task works with.
pub(super) struct Renewal {
    shared: Arc<Shared>,
    papers: Arc<Papers>,
    bao: BaoService,
    metrics: Arc<PipelineMetrics>,
    pipeline: Arc<str>,
    generation: u64,
    /// When the login of the token began.
    since: Instant,
    /// The trouble that the log speaks of.
    told: Option<Class>,
    /// When the log last spoke of a login that succeeded.
    told_login: Option<Instant>,
}

// === impl Renewal ===

impl Renewal {
    pub(super) fn new(
        shared: Arc<Shared>,
        papers: Arc<Papers>,
        bao: BaoService,
        metrics: Arc<PipelineMetrics>,
        pipeline: Arc<str>,
    ) -> Self {
        let (generation, since, told, told_login) = (0, Instant::now(), None, None);
        Self { shared, papers, bao, metrics, pipeline, generation, since, told, told_login }
    }

    /// Keeps a token until the task is aborted.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::default();
        loop {
            let began = Instant::now();
            let answers = self.shared.begin();
            match self.login().await {
                Ok(lease) => {
                    backoff = Backoff::default();
                    self.keep(lease).await;
                }
                Err(error) => {
                    let pause = backoff.after(&error, began);
                    self.note_failure(&error, "no token could be obtained");
                    self.shared.fail(error);
                    self.rest(&pause, answers).await;
                }
            }
            tokio::time::sleep_until(began + APART).await;
        }
    }

    /// Waits until the next login may begin; `answers` is the newest rejection that the one before knew of.
    async fn rest(&self, pause: &Pause, answers: u64) {
        let shared = &self.shared;
        let woken = async {
            // The token that is left was rejected meanwhile: nobody has anything to go on with.
            tokio::select! {
                () = shared.woken() => {}
                () = shared.rejected(answers + 1) => {}
            }
            tokio::time::sleep_until(pause.woken).await;
        };
        let asked = async {
            shared.asked().await;
            tokio::time::sleep_until(pause.asked).await;
        };
        tokio::select! {
            () = tokio::time::sleep_until(pause.end) => {}
            () = woken => {}
            () = asked => {}
        }
    }

    /// One login, with files as they are now.
    async fn login(&mut self) -> Result<Lease, Error> {
        let call = self.papers.login().await?;
        let outcome = self.ask(call).await;
        self.metrics.logged_in("login", outcome.as_ref().err().map(Error::class));
        let lease = outcome?;
        self.generation += 1;
        self.since = lease.granted;
        self.adopt(&lease);
        self.note_login(&lease);
        Ok(lease)
    }

    /// Keeps the token of a login alive; returns when a new login is needed.
    async fn keep(&mut self, granted: Lease) {
        let shared = self.shared.clone();
        let full = granted.duration;
        let mut lease = granted;
        let (mut act_at, mut may_act_at) = (lease.act_at(), None);
        let mut failed: Option<Backoff> = None;
        loop {
            let woken = async {
                shared.woken().await;
                until(may_act_at).await;
            };
            tokio::select! {
                () = until(act_at) => {}
                () = woken, if failed.is_some() => {}
                () = shared.rejected(self.generation) => return,
            }
            if !lease.renewable {
                return;
            }
            let began = Instant::now();
            let outcome = tokio::select! {
                outcome = self.renew(&lease) => outcome,
                () = shared.rejected(self.generation) => return,
            };
            match outcome {
                Ok(next) => {
                    self.adopt(&next);
                    self.note_renewal();
                    // Near its maximum OpenBao grants less and less: then only a login helps.
                    if next.duration * 3 < full * 2 {
                        return;
                    }
                    act_at = next.act_at();
                    lease = next;
                    failed = None;
                }
                Err(error) if is_refusal(error.class()) => return,
                Err(error) => {
                    self.note_failure(&error, "the token's lease could not be extended");
                    let pause = failed.get_or_insert_default().after(&error, began);
                    self.shared.fail(error);
                    if lease.ends_at().is_some_and(|end| pause.end >= end) {
                        return;
                    }
                    (act_at, may_act_at) = (Some(pause.end), Some(pause.woken));
                }
            }
        }
    }

    async fn renew(&self, lease: &Lease) -> Result<Lease, Error> {
        let call = BaoCall::own(Purpose::Renew, HttpMethod::Post, "auth/token/renew-self", RENEW_WITHIN)
            .with_credential(Credential::Token(lease.token.clone()));
        let outcome = self.ask(call).await;
        self.metrics.logged_in("renew", outcome.as_ref().err().map(Error::class));
        // The reply of a renewal repeats the token; ours is the one that is in use.
        outcome.map(|next| Lease { token: lease.token.clone(), ..next })
    }

    async fn ask(&self, call: BaoCall) -> Result<Lease, Error> {
        // The lease runs from before the question, so that our reckoning ends before OpenBao's.
        let asked = Instant::now();
        let reply = self.bao.clone().call(call).await?;
        Lease::of(&reply, asked)
    }

    fn adopt(&self, lease: &Lease) {
        let token = Token { secret: lease.token.clone(), generation: self.generation, since: self.since };
        self.shared.hold(token, lease.ends_at());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let expiry = lease.ends_at().map_or(0.0, |_| (now + lease.duration).as_secs_f64());
        self.metrics.set_token_expiry(expiry);
    }

    fn note_login(&mut self, lease: &Lease) {
        let (pipeline, lease_seconds, renewable) = (&*self.pipeline, lease.duration.as_secs(), lease.renewable);
        let again = self.told_login.is_some_and(|at| at.elapsed() < TOLD_APART);
        if self.told.take().is_none() && again {
            tracing::debug!(event = events::LOGIN_SUCCEEDED, pipeline, lease_seconds, renewable, "logged in once more");
            return;
        }
        self.told_login = Some(Instant::now());
        tracing::info!(event = events::LOGIN_SUCCEEDED, pipeline, lease_seconds, renewable, "logged in to OpenBao");
    }

    fn note_renewal(&mut self) {
        let pipeline = &*self.pipeline;
        if self.told.take().is_some() {
            tracing::info!(event = events::TOKEN_RENEWED, pipeline, "the token's lease was extended, after trouble");
        } else {
            tracing::debug!(event = events::TOKEN_RENEWED, pipeline, "the token's lease was extended");
        }
    }

    fn note_failure(&mut self, error: &Error, what: &str) {
        let class = error.class();
        if self.told.replace(class) == Some(class) {
            return;
        }
        tracing::warn!(
            event = events::LOGIN_FAILED,
            pipeline = &*self.pipeline,
            class = class.name(),
            detail = error.detail(),
            help = class.help(),
            "{what}: {}",
            class.meaning()
        );
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
