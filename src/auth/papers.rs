//! The files that a login is made of. They are read beside the runtime's workers, one read at a time, so that a volume that
//! hangs holds up nobody else; what the credential says of itself is told at each login and between logins each minute.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::session::Reload;
use super::{Attempt, Method};
use crate::error::{Class, Error};
use crate::request::BaoCall;
use crate::telemetry::events;
use crate::telemetry::metrics::PipelineMetrics;

/// How long a read may take; a volume that works needs a thousandth of it.
const READ_WITHIN: Duration = Duration::from_secs(5);
/// A file that is renewed, or is not, is noticed this soon, however far away the next login is.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// A session's files.
pub(super) struct Papers {
    method: Arc<dyn Method>,
    reload: Reload,
    metrics: Arc<PipelineMetrics>,
    pipeline: Arc<str>,
    /// The read that has not come back; another one would only hang beside it.
    reading: tokio::sync::Mutex<Option<JoinHandle<Read>>>,
    /// When what the credential says of itself changes next, Unix seconds.
    changes: watch::Sender<Option<u64>>,
    told: Mutex<Told>,
}

/// What the files hold.
struct Read {
    attempt: Result<Attempt, Error>,
    reloaded: Result<(), Error>,
}

/// What the log has said already.
#[derive(Default)]
struct Told {
    /// Of the credential.
    findings: Vec<String>,
    /// Of the files behind the connection.
    reload: Option<String>,
}

// === impl Papers ===

impl Papers {
    pub(super) fn new(
        method: Arc<dyn Method>,
        reload: Reload,
        metrics: Arc<PipelineMetrics>,
        pipeline: Arc<str>,
    ) -> Self {
        let (changes, told) = (watch::Sender::new(None), Mutex::default());
        Self { method, reload, metrics, pipeline, reading: tokio::sync::Mutex::default(), changes, told }
    }

    /// The login call from what the files hold now; the client's own files are read again as well.
    ///
    /// # Errors
    /// `credential_unavailable` when a file is missing or unusable, or its volume hangs.
    pub(super) async fn login(&self) -> Result<BaoCall, Error> {
        let Read { attempt, reloaded } = self.read(Some(self.reload.clone())).await?;
        // Files that went bad do not end what was built from good ones: whether the pipe works is for the exchange to show.
        self.tell_reload(reloaded.err());
        let attempt = attempt?;
        self.note(&attempt);
        Ok(attempt.call)
    }

    /// Looks at the files each minute, when what the credential says of itself changes, and when it is asked to; never
    /// returns.
    pub(super) async fn watch(&self, asked: &Notify) {
        let mut changes = self.changes.subscribe();
        loop {
            let pause = pause(*changes.borrow_and_update(), SystemTime::now());
            tokio::select! {
                () = tokio::time::sleep(pause) => self.look().await,
                () = asked.notified() => self.look().await,
                // A login that found another credential has looked just now.
                _ = changes.changed() => {}
            }
        }
    }

    /// What the files behind the connection hold takes effect by their content: a CA that was withdrawn must not be trusted
    /// until the next login, which may be hours away.
    async fn look(&self) {
        let reload = (!self.method.binds_connection()).then(|| self.reload.clone());
        let read = self.read(reload).await.map(|read| {
            self.tell_reload(read.reloaded.err());
            read.attempt
        });
        match read.flatten() {
            Ok(attempt) => self.note(&attempt),
            // The next login needs the file, and may be hours away.
            Err(error) => {
                self.plan(None);
                self.tell(vec![error.detail().to_owned()]);
            }
        }
    }

    /// Reads the files in a thread of their own.
    async fn read(&self, reload: Option<Reload>) -> Result<Read, Error> {
        let mut reading = self.reading.lock().await;
        if let Some(before) = reading.as_mut() {
            // What it found may be old by now.
            tokio::time::timeout(READ_WITHIN, before).await.map(drop).map_err(|_| hangs())?;
        }
        let method = self.method.clone();
        let read = reading.insert(tokio::task::spawn_blocking(move || {
            let reloaded = reload.map_or(Ok(()), |reload| reload());
            Read { attempt: method.login(), reloaded }
        }));
        let outcome = tokio::time::timeout(READ_WITHIN, read).await.map_err(|_| hangs())?;
        *reading = None;
        outcome.map_err(|_| Error::new(Class::Internal, "the login's files were not read to the end"))
    }

    /// Keeps what a credential says of itself. That of one that cannot be read stays: it is the last that is known.
    fn note(&self, attempt: &Attempt) {
        self.metrics.set_credential_expiry(attempt.expires_unix.unwrap_or(0) as f64);
        self.plan(attempt.changes_unix);
        self.tell(attempt.findings.clone());
    }

    fn plan(&self, changes: Option<u64>) {
        self.changes.send_if_modified(|known| std::mem::replace(known, changes) != changes);
    }

    fn tell(&self, findings: Vec<String>) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        for finding in findings.iter().filter(|finding| !told.findings.contains(finding)) {
            tracing::warn!(event = events::CREDENTIAL_FINDING, pipeline = &*self.pipeline, "{finding}");
        }
        told.findings = findings;
    }

    fn tell_reload(&self, trouble: Option<Error>) {
        let text = trouble.map(|error| format!("{}: {}", error.class().meaning(), error.detail()));
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(text) = text.as_ref().filter(|text| told.reload.as_ref() != Some(text)) {
            tracing::warn!(event = events::CREDENTIAL_FINDING, pipeline = &*self.pipeline, "{text}");
        }
        told.reload = text;
    }
}

/// How long the next look can wait.
fn pause(changes: Option<u64>, now: SystemTime) -> Duration {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    // Whole seconds only: a moment that has not quite come is looked at a second later.
    let until = changes.map(|at| Duration::from_secs(at.saturating_sub(now).max(1)));
    until.map_or(LOOK_EVERY, |until| until.min(LOOK_EVERY))
}

fn hangs() -> Error {
    let detail = "the files of the login are not read within 5 s; look at the volume that they are on";
    Error::new(Class::CredentialUnavailable, detail)
}

#[cfg(test)]
#[path = "papers_tests.rs"]
mod tests;
