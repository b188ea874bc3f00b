//! One session for each pipeline: whatever token there is, shared by every call. A call that finds a valid token never
//! waits; the keeping of it is the work of one background task.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use secrecy::SecretString;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tower::Service;

use super::Method;
use super::backoff::is_refusal;
use super::papers::Papers;
use super::renewal::Renewal;
use crate::error::{Class, Error};
use crate::request::{BaoCall, BaoService, Credential, Method as HttpMethod, Purpose};
use crate::telemetry::events;
use crate::telemetry::metrics::PipelineMetrics;

/// How long the end of a session may take.
const REVOKE_WITHIN: Duration = Duration::from_secs(1);

/// A token and its number: a higher one is newer.
#[derive(Clone, Debug)]
pub struct Token {
    /// The token.
    pub secret: SecretString,
    /// Counts logins and never repeats within a process.
    pub generation: u64,
    /// When its login began: what the role grants later is not in it.
    pub since: Instant,
}

/// Reads the pipe's files again; called before each login, in a thread that may block.
pub type Reload = Arc<dyn Fn() -> Result<(), Error> + Send + Sync>;

/// The session of one pipeline.
pub struct Session {
    shared: Arc<Shared>,
    bao: BaoService,
    pipeline: Arc<str>,
    /// Asks for a look at the files.
    look: Arc<Notify>,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// What callers and the background task share.
pub(super) struct Shared {
    token: ArcSwapOption<Held>,
    round: watch::Sender<Round>,
    /// The newest generation that OpenBao rejected.
    rejected: watch::Sender<u64>,
}

/// A token with the moment after which it is no good; `None`: never.
struct Held {
    token: Token,
    ends: Option<Instant>,
}

/// Where the logins stand. The background task waits for changes of it, so that nothing that is said here is missed.
#[derive(Clone, Debug, Default)]
struct Round {
    /// A login or renewal is under way, or begins as soon as it may: its outcome is worth waiting for.
    busy: bool,
    /// Another one was wanted while it was under way.
    again: bool,
    /// A call found no token and did not wait.
    asked: bool,
    /// The newest rejection that the last login knew of when it began.
    answers: u64,
    /// Why the last login or renewal failed.
    error: Option<Error>,
    /// No login comes any more.
    closed: bool,
}

// === impl Session ===

impl Session {
    /// Starts the session; its first login begins at once. `bao` is the endpoint: a login does not pass `token`.
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
            rejected: watch::Sender::new(0),
        });
        let papers = Arc::new(Papers::new(method, reload, metrics.clone(), pipeline.clone()));
        let renewal = Renewal::new(shared.clone(), papers.clone(), bao.clone(), metrics, pipeline.clone());
        let look = Arc::new(Notify::new());
        let asked = look.clone();
        let task = tokio::spawn(async move {
            tokio::select! {
                () = renewal.run() => {}
                () = papers.watch(&asked) => {}
            }
        });
        Arc::new(Self { shared, bao, pipeline, look, task: Mutex::new(Some(task)) })
    }

    /// The token, if there is one whose lease has not ended.
    pub fn token(&self) -> Option<Token> {
        let held = self.shared.token.load();
        let held = held.as_deref().filter(|held| held.ends.is_none_or(|ends| Instant::now() < ends))?;
        Some(held.token.clone())
    }

    /// The token; waits for a login that is under way or about to begin.
    ///
    /// # Errors
    /// That of the last login, when it failed and none is about to begin. Whoever gets it has asked for another one, which
    /// the next caller may find.
    pub async fn wait(&self) -> Result<Token, Error> {
        self.newer_than(0, 0).await
    }

    /// A newer token than the one that OpenBao rejected; one login for all who ask. Returns at once when there is a newer
    /// one already. The rejected token stays with whoever can use it: a 403 may speak of one path only.
    ///
    /// # Errors
    /// That of the login. A refusal that is known is not waited for again.
    pub async fn renew_after_rejection(&self, generation: u64) -> Result<Token, Error> {
        let first = self.shared.rejected.send_if_modified(|rejected| {
            let newer = *rejected < generation;
            *rejected = generation.max(*rejected);
            newer
        });
        if !first {
            // That OpenBao says no ends whatever kept it from saying anything.
            self.shared.round.send_if_modified(|round| !round.busy && round.absent() && round.wake());
        }
        self.newer_than(generation, generation).await
    }

    /// A token newer than `generation`, or the error of a login that began knowing of the rejection of `answers`.
    async fn newer_than(&self, generation: u64, answers: u64) -> Result<Token, Error> {
        let mut rounds = self.shared.round.subscribe();
        let mut waited = false;
        loop {
            // Before the look for a token: one that comes in between is then there, or a change that is still to be seen.
            let known = rounds.borrow_and_update().outcome(answers);
            if let Some(token) = self.token().filter(|token| token.generation > generation) {
                return Ok(token);
            }
            if let Some(error) = known {
                if !waited {
                    self.shared.round.send_if_modified(Round::ask);
                }
                return Err(error);
            }
            waited = true;
            rounds.changed().await.map_err(|_| closed())?;
        }
    }

    /// OpenBao is back, or files have changed: what waits in back-off is tried as soon as it may be, and whoever waits for a
    /// token from now on waits for that.
    pub fn wake(&self) {
        self.shared.round.send_if_modified(Round::wake);
    }

    /// Somebody says that files may have changed: they are looked at now instead of within a minute. No login is made for it.
    pub fn look(&self) {
        self.look.notify_one();
    }

    /// The error of the last login or renewal, until the next one succeeds.
    pub fn last_error(&self) -> Option<Error> {
        self.shared.round.borrow().error.clone()
    }

    /// Ends the session and gives the token back, within a second. Whoever still waits for a token gets an error.
    pub async fn close(&self) {
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            task.abort();
            // An aborted task ends with a cancellation, which is what was asked for.
            let _ = task.await;
        }
        let held = self.shared.token.swap(None);
        self.shared.round.send_modify(|round| {
            *round = Round { answers: u64::MAX, error: Some(closed()), closed: true, ..Round::default() };
        });
        let Some(held) = held else {
            return;
        };
        let call = BaoCall::own(Purpose::Revoke, HttpMethod::Post, "auth/token/revoke-self", REVOKE_WITHIN)
            .with_credential(Credential::Token(held.token.secret.clone()));
        let pipeline = &*self.pipeline;
        match tokio::time::timeout(REVOKE_WITHIN, self.bao.clone().call(call)).await {
            Ok(Ok(reply)) if reply.status < 300 => {
                tracing::info!(event = events::TOKEN_REVOKED, pipeline, "the token was given back");
            }
            _ => tracing::warn!(pipeline, "the token could not be given back; it ends with its lease"),
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

fn closed() -> Error {
    Error::new(Class::Cancelled, "the session is closed")
}

// === impl Round ===

impl Round {
    /// The error for whoever wants a login that knew of this rejection; `None`: there is something to wait for.
    fn outcome(&self, answers: u64) -> Option<Error> {
        self.error.clone().filter(|_| !self.busy && self.answers >= answers)
    }

    /// Another attempt is wanted; says whether somebody is to be told. One that is healthy is left alone.
    fn wake(&mut self) -> bool {
        if self.busy {
            self.again = true;
            return false;
        }
        self.busy = self.error.is_some() && !self.closed;
        self.busy
    }

    /// A call goes away with the error of a login that is over; says whether somebody is to be told.
    fn ask(&mut self) -> bool {
        !self.busy && !self.closed && !std::mem::replace(&mut self.asked, true)
    }

    /// Whether the last attempt failed because OpenBao did not answer it.
    fn absent(&self) -> bool {
        self.error.as_ref().is_some_and(|error| !is_refusal(error.class()))
    }
}

// === impl Shared ===

impl Shared {
    /// A login begins; it answers every rejection so far, the newest of which is returned.
    pub(super) fn begin(&self) -> u64 {
        let rejected = *self.rejected.borrow();
        self.round.send_modify(|round| {
            *round = Round { busy: true, answers: rejected, error: round.error.take(), ..Round::default() };
        });
        rejected
    }

    /// A login or renewal succeeded: from now on this is the token.
    pub(super) fn hold(&self, token: Token, ends: Option<Instant>) {
        self.token.store(Some(Arc::new(Held { token, ends })));
        self.round.send_modify(|round| *round = Round { answers: round.answers, ..Round::default() });
    }

    /// A login or renewal failed. A token that is still valid stays.
    pub(super) fn fail(&self, error: Error) {
        self.round.send_modify(|round| {
            round.busy = std::mem::take(&mut round.again);
            round.error = Some(error);
        });
    }

    /// Returns when OpenBao has rejected this generation or a newer one.
    pub(super) async fn rejected(&self, generation: u64) {
        // The sender lives in `self`, so that the wait ends with a value.
        let _ = self.rejected.subscribe().wait_for(|rejected| *rejected >= generation).await;
    }

    /// Returns when [`Session::wake`] has been called since the last attempt began.
    pub(super) async fn woken(&self) {
        let _ = self.round.subscribe().wait_for(|round| round.busy).await;
    }

    /// Returns when a call has found no token since the last attempt failed.
    pub(super) async fn asked(&self) {
        let _ = self.round.subscribe().wait_for(|round| round.asked).await;
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
