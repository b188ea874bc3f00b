//! One session for each pipeline: logs in, renews ahead of expiry, logs in again when renewal cannot help, and lets
//! every call share whatever it has. A call that holds a valid token never waits for any of it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use secrecy::SecretString;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tower::Service;

use super::lease::Lease;
use super::{Attempt, Method};
use crate::error::{Class, Error};
use crate::request::{BaoCall, BaoReply, BaoService, Credential, Method as HttpMethod, Purpose};
use crate::telemetry::events;
use crate::telemetry::metrics::PipelineMetrics;

const RENEW_WITHIN: Duration = Duration::from_secs(5);
const REVOKE_WITHIN: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LAST_PAUSE: Duration = Duration::from_secs(30);
/// Two logins are at least this far apart, whoever asks for them: a repaired role is noticed, OpenBao is not flooded.
const APART: Duration = Duration::from_millis(500);

/// A token and its number: a higher one is newer.
#[derive(Clone, Debug)]
pub struct Token {
    /// The token.
    pub secret: SecretString,
    /// Counts logins and never repeats within a process.
    pub generation: u64,
}

/// Reads the pipe's files again; called before each login.
pub type Reload = Arc<dyn Fn() -> Result<(), Error> + Send + Sync>;

/// The session of one pipeline.
pub struct Session {
    shared: Arc<Shared>,
    bao: BaoService,
    task: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    token: ArcSwapOption<Token>,
    /// What the last round came to; changes wake whoever waits.
    round: watch::Sender<Round>,
    wake: Notify,
    /// The generation that OpenBao rejected, if a new login is wanted for that.
    rejected: watch::Sender<u64>,
    credential_expiry: Mutex<Option<u64>>,
}

#[derive(Clone, Debug, Default)]
struct Round {
    count: u64,
    busy: bool,
    error: Option<Error>,
}

struct Worker {
    shared: Arc<Shared>,
    method: Arc<dyn Method>,
    bao: BaoService,
    reload: Reload,
    metrics: Arc<PipelineMetrics>,
    pipeline: Arc<str>,
    generation: u64,
    told: Option<Class>,
    findings: Vec<String>,
}

// === impl Session ===

impl Session {
    /// Starts the session; its first login begins at once. `bao` is the endpoint: login does not pass `token`.
    pub fn start(
        method: Arc<dyn Method>,
        bao: BaoService,
        reload: Reload,
        metrics: Arc<PipelineMetrics>,
        pipeline: Arc<str>,
    ) -> Arc<Self> {
        let shared = Arc::new(Shared {
            token: ArcSwapOption::empty(),
            round: watch::Sender::new(Round { busy: true, ..Round::default() }),
            wake: Notify::new(),
            rejected: watch::Sender::new(0),
            credential_expiry: Mutex::new(None),
        });
        let worker = Worker {
            shared: shared.clone(),
            method,
            bao: bao.clone(),
            reload,
            metrics,
            pipeline,
            generation: 0,
            told: None,
            findings: Vec::new(),
        };
        let task = tokio::spawn(worker.run());
        Arc::new(Self { shared, bao, task: Mutex::new(Some(task)) })
    }

    /// The token, if there is a valid one.
    pub fn token(&self) -> Option<Token> {
        self.shared.token.load().as_deref().cloned()
    }

    /// The token; waits for a login that is under way.
    ///
    /// # Errors
    /// That of the last login, when it failed and the next one has not begun.
    pub async fn wait(&self) -> Result<Token, Error> {
        let mut rounds = self.shared.round.subscribe();
        loop {
            if let Some(token) = self.token() {
                return Ok(token);
            }
            {
                let round = rounds.borrow_and_update();
                if let (false, Some(error)) = (round.busy, &round.error) {
                    return Err(error.clone());
                }
            }
            rounds.changed().await.map_err(|_| Error::from(Class::Cancelled))?;
        }
    }

    /// A newer token than the one that OpenBao rejected; one login for all who ask.
    ///
    /// # Errors
    /// That of the login.
    pub async fn renew_after_rejection(&self, generation: u64) -> Result<Token, Error> {
        let mut rounds = self.shared.round.subscribe();
        let before = rounds.borrow_and_update().count;
        self.shared.rejected.send_if_modified(|rejected| {
            let newer = *rejected < generation;
            *rejected = generation.max(*rejected);
            newer
        });
        loop {
            if let Some(token) = self.token().filter(|token| token.generation > generation) {
                return Ok(token);
            }
            {
                let round = rounds.borrow_and_update();
                if let (true, false, Some(error)) = (round.count > before, round.busy, &round.error) {
                    return Err(error.clone());
                }
            }
            rounds.changed().await.map_err(|_| Error::from(Class::Cancelled))?;
        }
    }

    /// OpenBao may be back: a login that waits in back-off begins now.
    pub fn wake(&self) {
        self.shared.wake.notify_one();
    }

    /// The error of the last login, while there is no token because of it.
    pub fn last_error(&self) -> Option<Error> {
        self.shared.round.borrow().error.clone()
    }

    /// When the login credential expires by its own word, Unix seconds.
    pub fn credential_expiry(&self) -> Option<u64> {
        *self.shared.credential_expiry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the session and gives the token back, within a second.
    pub async fn close(&self) {
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            task.abort();
        }
        let Some(token) = self.shared.token.swap(None) else {
            return;
        };
        let call = BaoCall::own(Purpose::Revoke, HttpMethod::Post, "auth/token/revoke-self", REVOKE_WITHIN)
            .with_credential(Credential::Token(token.secret.clone()));
        match tokio::time::timeout(REVOKE_WITHIN, self.bao.clone().call(call)).await {
            Ok(Ok(reply)) if reply.status < 300 => tracing::info!(event = events::TOKEN_REVOKED, "token given back"),
            _ => tracing::warn!("the token could not be given back within a second; it ends with its lease"),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let task = self.task.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            task.abort();
        }
    }
}

// === impl Worker ===

impl Worker {
    async fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let began = Instant::now();
            self.shared.round.send_modify(|round| round.busy = true);
            match self.login().await {
                Ok(lease) => {
                    pause = FIRST_PAUSE;
                    self.keep(lease).await;
                    tokio::time::sleep_until(began + APART).await;
                }
                Err(error) => {
                    self.note_failure(&error);
                    self.shared.round.send_modify(|round| {
                        round.count += 1;
                        round.busy = false;
                        round.error = Some(error);
                    });
                    let wait = pause.mul_f64(0.75 + 0.5 * fastrand::f64());
                    pause = (pause * 2).min(LAST_PAUSE);
                    let woken = tokio::time::timeout(wait, self.shared.wake.notified()).await.is_ok();
                    if woken {
                        tokio::time::sleep_until(began + APART).await;
                    }
                }
            }
        }
    }

    /// One login, with files as they are now.
    async fn login(&mut self) -> Result<Lease, Error> {
        (self.reload)()?;
        let Attempt { call, expires_unix, findings } = self.method.login()?;
        *self.shared.credential_expiry.lock().unwrap_or_else(PoisonError::into_inner) = expires_unix;
        self.metrics.set_credential_expiry(expires_unix.unwrap_or(0) as f64);
        self.note_findings(findings);
        let asked = Instant::now();
        let outcome = self.bao.call(call).await.and_then(|reply| lease_of(&reply, asked));
        self.metrics.logged_in("login", outcome.as_ref().err().map(Error::class));
        let lease = outcome?;
        self.generation += 1;
        self.adopt(&lease);
        self.told = None;
        tracing::info!(
            event = events::LOGIN_SUCCEEDED,
            pipeline = &*self.pipeline,
            lease_seconds = lease.duration.as_secs(),
            renewable = lease.renewable,
            "logged in to OpenBao"
        );
        Ok(lease)
    }

    /// Keeps a token alive; returns when a new login is needed.
    async fn keep(&mut self, mut lease: Lease) {
        let mut rejected = self.shared.rejected.subscribe();
        let generation = self.generation;
        let mut act_at = lease.act_at();
        let mut pause = FIRST_PAUSE;
        loop {
            let due = async {
                match act_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => {}
                _ = rejected.wait_for(|rejected| *rejected >= generation) => {
                    self.shared.token.store(None);
                    return;
                }
            }
            if !lease.renewable {
                return;
            }
            match self.renew(&lease).await {
                // OpenBao shortens a lease near its maximum: then only a login helps.
                Ok(next) if next.duration * 2 >= lease.duration => {
                    lease = next;
                    self.adopt(&lease);
                    act_at = lease.act_at();
                    pause = FIRST_PAUSE;
                    tracing::debug!(event = events::TOKEN_RENEWED, pipeline = &*self.pipeline, "token renewed");
                }
                Ok(_) => return,
                Err(error) if is_refusal(error.class()) => return,
                Err(error) => {
                    self.note_failure(&error);
                    if lease.ends_at().is_some_and(|end| Instant::now() + pause >= end) {
                        self.shared.token.store(None);
                        return;
                    }
                    act_at = Some(Instant::now() + pause);
                    pause = (pause * 2).min(LAST_PAUSE);
                }
            }
        }
    }

    async fn renew(&mut self, lease: &Lease) -> Result<Lease, Error> {
        let asked = Instant::now();
        let call = BaoCall::own(Purpose::Renew, HttpMethod::Post, "auth/token/renew-self", RENEW_WITHIN)
            .with_credential(Credential::Token(lease.token.clone()));
        let outcome = self.bao.call(call).await.and_then(|reply| lease_of(&reply, asked));
        self.metrics.logged_in("renew", outcome.as_ref().err().map(Error::class));
        // The reply of a renewal repeats the token; ours is the one that is in use.
        outcome.map(|next| Lease { token: lease.token.clone(), ..next })
    }

    fn adopt(&self, lease: &Lease) {
        let token = Token { secret: lease.token.clone(), generation: self.generation };
        self.shared.token.store(Some(Arc::new(token)));
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.metrics.set_token_expiry(if lease.duration.is_zero() {
            0.0
        } else {
            (unix + lease.duration).as_secs_f64()
        });
        self.shared.round.send_modify(|round| {
            round.count += 1;
            round.busy = false;
            round.error = None;
        });
    }

    fn note_failure(&mut self, error: &Error) {
        if self.told.replace(error.class()) == Some(error.class()) {
            return;
        }
        tracing::warn!(
            event = events::LOGIN_FAILED,
            pipeline = &*self.pipeline,
            class = error.class().name(),
            detail = error.detail(),
            help = error.class().help(),
            "no token: {}",
            error.class().meaning()
        );
    }

    fn note_findings(&mut self, findings: Vec<String>) {
        for finding in findings.iter().filter(|finding| !self.findings.contains(finding)) {
            tracing::warn!(event = events::CREDENTIAL_FINDING, pipeline = &*self.pipeline, "{finding}");
        }
        self.findings = findings;
    }
}

/// Whether OpenBao has said no, as opposed to not having answered.
fn is_refusal(class: Class) -> bool {
    matches!(class, Class::LoginRefused | Class::TokenRejected)
}

fn lease_of(reply: &BaoReply, asked: Instant) -> Result<Lease, Error> {
    let of = |class, detail: &str| Err(Error::new(class, format!("{detail} (HTTP {})", reply.status)));
    match reply.status {
        200 => Lease::parse(reply, asked),
        400 | 401 | 403 | 404 | 405 => of(Class::LoginRefused, "OpenBao refuses the credential, the role or the mount"),
        429 => of(Class::RateLimited, "OpenBao limits the rate of logins"),
        503 if contains(&reply.body, b"sealed") => of(Class::Sealed, "OpenBao is sealed"),
        502..=504 => of(Class::NoLeader, "no node serves logins"),
        500..=599 => of(Class::ServerError, "internal error of OpenBao"),
        _ => of(Class::BadReply, "an answer that OpenBao does not give"),
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}
