//! What OpenBao is asked and what it answers, in words that name no HTTP library: [`BaoCall`], [`BaoReply`], and the
//! [`Exchange`] that carries one to one address.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use secrecy::SecretString;
use serde::Deserialize;
use tokio::time::Instant;

use super::{Progress, Secret, TraceContext, secret};
use crate::error::{Class, Error};

/// HTTP methods that OpenBao is asked with.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Method {
    /// Read.
    Get,
    /// Write, login, encrypt, decrypt.
    Post,
}

/// What an exchange with OpenBao is for: a metric label and a span name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Purpose {
    /// Transit encrypt.
    Encrypt,
    /// Transit decrypt, single or batch.
    Decrypt,
    /// Reading the key's metadata.
    Metadata,
    /// Reading `config/keys`.
    KeysConfig,
    /// A login.
    Login,
    /// A renewal of the token.
    Renew,
    /// Giving the token back.
    Revoke,
    /// `sys/health`.
    Health,
}

/// Which token a [`BaoCall`] carries.
#[derive(Clone, Debug)]
pub enum Credential {
    /// None: login and `sys/health`.
    Anonymous,
    /// The session's, attached by the `token` layer.
    Session,
    /// This one: renewal, revocation, and what the `token` layer makes of `Session`.
    Token(SecretString),
}

/// One question to OpenBao. Cheap to clone.
#[derive(Clone, Debug)]
pub struct BaoCall {
    /// GET or POST.
    pub method: Method,
    /// Below `/v1/`, already escaped, without leading slash: `transit/decrypt/k8s`.
    pub path: Arc<str>,
    /// The JSON body, wiped after use as it may hold plaintext or credentials.
    pub body: Option<Secret>,
    /// Which token goes along.
    pub credential: Credential,
    /// Whether the namespace header goes along: always, but for `sys/health`, which refuses it.
    pub namespaced: bool,
    /// What it is for.
    pub purpose: Purpose,
    /// When the answer is due.
    pub deadline: Instant,
    /// Where the KMS call that leads to it is; a call of our own has one nobody looks at.
    pub progress: Progress,
    /// The trace to join.
    pub trace: Option<TraceContext>,
}

/// OpenBao's answer, whatever its status.
#[derive(Clone)]
pub struct BaoReply {
    /// The HTTP status.
    pub status: u16,
    /// The body, bounded in size; may hold plaintext, so it has no `Debug`.
    pub body: Bytes,
    /// OpenBao's clock: the `Date` header.
    pub date: Option<SystemTime>,
    /// `Retry-After`, in seconds form.
    pub retry_after: Option<Duration>,
    /// `Location` of a redirect.
    pub location: Option<String>,
    /// Position of the answering address in the configured endpoints; `None` for a redirect host.
    pub endpoint: Option<usize>,
}

/// What every answer of OpenBao that is no success has one of.
#[derive(Deserialize)]
struct Refusal {
    errors: Option<Vec<String>>,
    data: Option<serde::de::IgnoredAny>,
}

/// One exchange: a question and the address that gets it. `http` serves it; `endpoint` makes it.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// Scheme, host and port: `https://bao-0:8200`.
    pub origin: Arc<str>,
    /// Position in the configured endpoints; `None` for a redirect host.
    pub endpoint: Option<usize>,
    /// The question.
    pub call: BaoCall,
}

// === impl Purpose ===

impl Purpose {
    /// Every purpose, for tables.
    pub const ALL: [Purpose; 8] = [
        Self::Encrypt,
        Self::Decrypt,
        Self::Metadata,
        Self::KeysConfig,
        Self::Login,
        Self::Renew,
        Self::Revoke,
        Self::Health,
    ];

    /// The word for logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Encrypt => "encrypt",
            Self::Decrypt => "decrypt",
            Self::Metadata => "metadata",
            Self::KeysConfig => "keys_config",
            Self::Login => "login",
            Self::Renew => "renew",
            Self::Revoke => "revoke",
            Self::Health => "health",
        }
    }
}

// === impl BaoReply ===

impl BaoReply {
    /// The texts of a refusal, none when it carries outcomes instead (`openbao.md` A.7, A.8). `None`: these are not
    /// OpenBao's words. What stands before it has answered, which proves nothing of a key, a right or a login.
    pub fn errors(&self) -> Option<Vec<String>> {
        let Refusal { errors, data } = serde_json::from_slice(&self.body).ok()?;
        errors.or_else(|| data.map(|_| Vec::new()))
    }

    /// The error of an answer that is not in OpenBao's words.
    pub fn of_a_stranger(&self) -> Error {
        let detail = format!("an answer that is not OpenBao's (HTTP {})", self.status);
        match self.status {
            429 => Error::new(Class::RateLimited, detail).with_retry_after(self.retry_after),
            502..=504 => Error::new(Class::NoLeader, detail),
            500..=599 => Error::new(Class::ServerError, detail),
            _ => Error::new(Class::BadReply, detail),
        }
    }
}

// === impl BaoCall ===

impl BaoCall {
    /// A call of our own (not on behalf of a KMS call), due after `within`.
    pub fn own(purpose: Purpose, method: Method, path: impl Into<Arc<str>>, within: Duration) -> Self {
        Self {
            method,
            path: path.into(),
            body: None,
            credential: Credential::Session,
            namespaced: true,
            purpose,
            deadline: Instant::now() + within,
            progress: Progress::default(),
            trace: None,
        }
    }

    /// The same call with a JSON body.
    pub fn with_body(mut self, body: Vec<u8>) -> Self {
        self.body = Some(secret(body));
        self
    }

    /// The same call with this credential.
    pub fn with_credential(mut self, credential: Credential) -> Self {
        self.credential = credential;
        self
    }
}
