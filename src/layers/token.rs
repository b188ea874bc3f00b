//! Attaches the session's token. A 403 that a newer token may not meet leads to one login that all callers share and one
//! repeat; while new tokens meet it too, the right is gone, and logins are made only to notice its repair.
//!
//! Two repairs look alike from here. A policy that is put back serves the token that is held: nothing is kept in mind that
//! would have to be forgotten for it. A role that is given its policies back serves new tokens alone, and nothing but a login
//! tells: so there is one each [`REPAIR_INTERVAL`] for each pipeline as long as something asks and is denied. What bounds
//! them is the age of the token, which a revocation in between does not have to wait for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use tower::Service;

use super::Answer;
use crate::auth::{REPAIR_INTERVAL, Session, Token};
use crate::error::{Class, Error};
use crate::request::{BaoCall, BaoReply, BaoService, Credential, Purpose, Stage};

/// The layer's service, over the endpoint.
#[derive(Clone)]
pub(super) struct AttachToken {
    inner: BaoService,
    session: Arc<Session>,
    /// The newest generation that met a 403 when it was to help against one.
    no_help: Arc<AtomicU64>,
}

/// What a 403 speaks of, by its text (`openbao.md` A.8). What a proxy answers in OpenBao's place speaks of neither.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Denial {
    /// The token is unknown: it has expired or was revoked. Another one helps.
    Token,
    /// The token is good, and its policies do not allow this call.
    Policy,
}

// === impl Denial ===

impl Denial {
    /// What the reply denies, if it does.
    fn of(reply: &BaoReply) -> Option<Self> {
        if !matches!(reply.status, 401 | 403) {
            return None;
        }
        let by_policy = reply.errors()?.iter().any(|error| error.starts_with("1 error occurred"));
        Some(if by_policy { Self::Policy } else { Self::Token })
    }
}

// === impl AttachToken ===

impl AttachToken {
    pub(super) fn new(inner: BaoService, session: Arc<Session>) -> Self {
        Self { inner, session, no_help: Arc::default() }
    }

    async fn run(mut self, call: BaoCall) -> Result<BaoReply, Error> {
        if !matches!(call.credential, Credential::Session) {
            return self.inner.call(call).await;
        }
        let token = match self.session.token() {
            Some(token) => token,
            None => self.in_time(&call, self.session.wait()).await?,
        };
        let reply = self.inner.call(with(&call, &token)).await?;
        // A policy need not show `config/keys`: that 403 says nothing of the token.
        let denial = match Denial::of(&reply) {
            Some(denial) if call.purpose != Purpose::KeysConfig => denial,
            _ => return Ok(reply),
        };
        let newer = match self.session.token().filter(|held| held.generation > token.generation) {
            // Somebody else's login came in between.
            Some(newer) => newer,
            None if !self.may_help(&token, denial) => return Ok(reply),
            None => match self.in_time(&call, self.session.renew_after_rejection(token.generation)).await {
                Ok(newer) => newer,
                // The token that is held is good: its denial says more than a login that nobody else needed.
                Err(_) if denial == Denial::Policy => return Ok(reply),
                Err(error) => return Err(error),
            },
        };
        let reply = self.inner.call(with(&call, &newer)).await?;
        if Denial::of(&reply).is_some() {
            self.no_help.fetch_max(newer.generation, Ordering::Relaxed);
        }
        Ok(reply)
    }

    /// Whether a login may help where this token met a 403. A token that is old enough may lack what its role grants now; a
    /// younger one is replaced only when it is said to be unknown, and not when it replaced another in vain itself.
    fn may_help(&self, token: &Token, denial: Denial) -> bool {
        let known_no_help = self.no_help.load(Ordering::Relaxed) >= token.generation;
        token.since.elapsed() >= REPAIR_INTERVAL || (denial == Denial::Token && !known_no_help)
    }

    /// Waits for the session no longer than the call may take: calls of our own have no `deadline` layer above them.
    async fn in_time(&self, call: &BaoCall, token: impl Future<Output = Result<Token, Error>>) -> Result<Token, Error> {
        call.progress.enter(Stage::Token);
        tokio::time::timeout_at(call.deadline, token).await.unwrap_or_else(|_| {
            let late = || Error::new(Class::DeadlineExceeded, "no token before the deadline").with_stage(Stage::Token);
            // Why there is none says more than that there is none.
            Err(self.session.last_error().unwrap_or_else(late))
        })
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
