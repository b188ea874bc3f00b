//! The background task of a session: logs in, renews ahead of expiry, and logs in again when renewal cannot help. It says
//! each change of its state once, and none of its waits is a caller's.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;
use tower::Service;

use super::lease::Lease;
use super::session::{Reload, Shared, Token};
use super::{Attempt, Method};
use crate::error::{Class, Error};
use crate::request::{BaoCall, BaoService, Credential, Method as HttpMethod, Purpose};
use crate::telemetry::events;
use crate::telemetry::metrics::PipelineMetrics;

const RENEW_WITHIN: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// After a refusal, which seldom heals by itself within a second.
const FIRST_PAUSE_REFUSED: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(30);
/// Two logins are at least this far apart, whoever asks for them: a repaired role is noticed, OpenBao is not flooded.
const APART: Duration = Duration::from_millis(500);

/// What the task works with.
pub(super) struct Renewal {
    shared: Arc<Shared>,
    method: Arc<dyn Method>,
    bao: BaoService,
    reload: Reload,
    metrics: Arc<PipelineMetrics>,
    pipeline: Arc<str>,
    generation: u64,
    /// The trouble that the log speaks of.
    told: Option<Class>,
    findings: Vec<String>,
}

/// Growing pauses between attempts that fail.
#[derive(Default)]
struct Backoff(Duration);

// === impl Backoff ===

impl Backoff {
    /// The next pause: doubles up to 30 s, a quarter more or less so that nodes do not ask in step.
    fn next(&mut self, class: Class) -> Duration {
        let first = if is_refusal(class) { FIRST_PAUSE_REFUSED } else { FIRST_PAUSE };
        let pause = self.0.clamp(first, LAST_PAUSE);
        self.0 = pause * 2;
        pause.mul_f64(0.75 + 0.5 * fastrand::f64())
    }
}

// === impl Renewal ===

impl Renewal {
    pub(super) fn new(
        shared: Arc<Shared>,
        method: Arc<dyn Method>,
        bao: BaoService,
        reload: Reload,
        metrics: Arc<PipelineMetrics>,
        pipeline: Arc<str>,
    ) -> Self {
        let (generation, told, findings) = (0, None, Vec::new());
        Self { shared, method, bao, reload, metrics, pipeline, generation, told, findings }
    }

    /// Keeps a token until the task is aborted.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::default();
        loop {
            let began = Instant::now();
            self.shared.begin();
            match self.login().await {
                Ok(lease) => {
                    backoff = Backoff::default();
                    self.keep(lease).await;
                }
                Err(error) => {
                    let pause = backoff.next(error.class());
                    self.note_failure(&error, "no token could be obtained");
                    self.shared.fail(error);
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = self.shared.woken() => {}
                    }
                }
            }
            tokio::time::sleep_until(began + APART).await;
        }
    }

    /// One login, with files as they are now.
    async fn login(&mut self) -> Result<Lease, Error> {
        // Files that went bad do not end what was built from good ones: whether the pipe works is for the exchange to show.
        let reloaded = (self.reload)();
        let Attempt { call, expires_unix, mut findings } = self.method.login()?;
        findings.extend(reloaded.err().map(|error| format!("{}: {}", error.class().meaning(), error.detail())));
        self.shared.set_credential_expiry(expires_unix);
        self.metrics.set_credential_expiry(expires_unix.unwrap_or(0) as f64);
        self.note_findings(findings);
        let outcome = self.ask(call).await;
        self.metrics.logged_in("login", outcome.as_ref().err().map(Error::class));
        let lease = outcome?;
        self.generation += 1;
        self.told = None;
        self.adopt(&lease);
        tracing::info!(
            event = events::LOGIN_SUCCEEDED,
            pipeline = &*self.pipeline,
            lease_seconds = lease.duration.as_secs(),
            renewable = lease.renewable,
            "logged in to OpenBao"
        );
        Ok(lease)
    }

    /// Keeps the token of a login alive; returns when a new login is needed.
    async fn keep(&mut self, granted: Lease) {
        let shared = self.shared.clone();
        let full = granted.duration;
        let mut lease = granted;
        let mut act_at = lease.act_at();
        let mut failed: Option<Backoff> = None;
        loop {
            tokio::select! {
                () = until(act_at) => {}
                () = shared.woken(), if failed.is_some() => {}
                () = shared.rejected(self.generation) => return,
            }
            if !lease.renewable {
                return;
            }
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
                    let at = Instant::now() + failed.get_or_insert_default().next(error.class());
                    self.shared.fail(error);
                    if lease.ends_at().is_some_and(|end| at >= end) {
                        return;
                    }
                    act_at = Some(at);
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
        let token = Token { secret: lease.token.clone(), generation: self.generation };
        self.shared.hold(token, lease.ends_at());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let expiry = lease.ends_at().map_or(0.0, |_| (now + lease.duration).as_secs_f64());
        self.metrics.set_token_expiry(expiry);
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

    fn note_findings(&mut self, findings: Vec<String>) {
        for finding in findings.iter().filter(|finding| !self.findings.contains(finding)) {
            tracing::warn!(event = events::CREDENTIAL_FINDING, pipeline = &*self.pipeline, "{finding}");
        }
        self.findings = findings;
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Whether OpenBao has said no, as opposed to not having answered.
fn is_refusal(class: Class) -> bool {
    matches!(class, Class::LoginRefused | Class::NamespaceMissing)
}
