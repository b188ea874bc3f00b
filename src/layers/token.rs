//! Attaches the session's token. A 403 with the current token leads to one login that all callers share and one repeat;
//! when fresh tokens meet 403 too, the right is gone, and logins pause.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;
use tower::Service;

use super::Answer;
use crate::auth::{Session, Token};
use crate::error::Error;
use crate::request::{BaoCall, BaoReply, BaoService, Credential, Purpose, Stage};

const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LAST_PAUSE: Duration = Duration::from_secs(60);

/// The layer's service, over the endpoint.
#[derive(Clone)]
pub(super) struct AttachToken {
    inner: BaoService,
    session: Arc<Session>,
    patience: Arc<Mutex<Patience>>,
}

/// When a 403 may next lead to a login.
#[derive(Debug, Default)]
struct Patience {
    not_before: Option<Instant>,
    pause: Duration,
}

// === impl Patience ===

impl Patience {
    fn allows(&self, now: Instant) -> bool {
        self.not_before.is_none_or(|at| now >= at)
    }

    /// A fresh token met 403 as well.
    fn lose(&mut self, now: Instant) {
        self.pause = if self.pause.is_zero() { FIRST_PAUSE } else { (self.pause * 2).min(LAST_PAUSE) };
        self.not_before = Some(now + self.pause);
    }

    fn regain(&mut self) {
        *self = Self::default();
    }
}

// === impl AttachToken ===

impl AttachToken {
    pub(super) fn new(inner: BaoService, session: Arc<Session>) -> Self {
        Self { inner, session, patience: Arc::default() }
    }

    async fn run(mut self, call: BaoCall) -> Result<BaoReply, Error> {
        if !matches!(call.credential, Credential::Session) {
            return self.inner.call(call).await;
        }
        let token = match self.session.token() {
            Some(token) => token,
            None => {
                call.progress.enter(Stage::Token);
                self.session.wait().await?
            }
        };
        let reply = self.inner.call(with(&call, &token)).await?;
        // A policy need not show `config/keys`: that 403 says nothing of the token.
        if reply.status != 403 || call.purpose == Purpose::KeysConfig {
            return Ok(reply);
        }
        if !self.patience().allows(Instant::now()) {
            return Ok(reply);
        }
        call.progress.enter(Stage::Token);
        let fresh = self.session.renew_after_rejection(token.generation).await?;
        let reply = self.inner.call(with(&call, &fresh)).await?;
        let mut patience = self.patience();
        match reply.status {
            403 if patience.allows(Instant::now()) => patience.lose(Instant::now()),
            403 => {}
            _ => patience.regain(),
        }
        drop(patience);
        Ok(reply)
    }

    fn patience(&self) -> std::sync::MutexGuard<'_, Patience> {
        self.patience.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn with(call: &BaoCall, token: &Token) -> BaoCall {
    BaoCall { credential: Credential::Token(token.secret.clone()), ..call.clone() }
}

impl Service<BaoCall> for AttachToken {
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
#[path = "token_tests.rs"]
mod tests;
