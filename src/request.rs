//! The words that the rooms on the path share: the KMS call ([`Request`], [`Response`]), the same call bound to its
//! associated data ([`Bound`], [`Reply`]), and what OpenBao is asked ([`BaoCall`], [`BaoReply`]).
//!
//! Above the `aad` layer a call is a [`Request`]; below it only a [`Bound`] exists, so that nothing can reach OpenBao
//! without associated data: the type does not allow it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use secrecy::SecretSlice;
use tokio::time::Instant;
use tower::util::BoxCloneSyncService;

use crate::error::Error;
use crate::key::{KeyId, Version};

mod bao;
mod progress;

pub use bao::{BaoCall, BaoReply, Credential, Exchange, Method, Purpose};
pub use progress::{Progress, Stage};

/// Bytes that are wiped when their last holder lets go, and never printed.
pub type Secret = Arc<SecretSlice<u8>>;

/// Encrypt and Decrypt as the stack serves them.
pub type KmsService = BoxCloneSyncService<Request, Response, Error>;

/// OpenBao as Transit, login, renewal and the keeper see it: address choice, health and redirects are behind it.
pub type BaoService = BoxCloneSyncService<BaoCall, BaoReply, Error>;

/// The two calls that walk the hallway.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// KMS v2 Encrypt: wraps a seed.
    Encrypt,
    /// KMS v2 Decrypt: unwraps a seed.
    Decrypt,
}

/// Calls that share one exchange with the backend: one Encrypt, or one Decrypt or more.
pub type Lot = Vec<Bound>;

/// What became of the calls of a [`Lot`], in its order.
pub type Outcomes = Vec<Result<Reply, Error>>;

/// W3C trace context of a caller, handed on to OpenBao unchanged but for the span.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TraceContext {
    /// The `traceparent` header.
    pub parent: String,
    /// The `tracestate` header, empty when absent.
    pub state: String,
}

/// What travels with a call through every layer.
#[derive(Clone, Debug)]
pub struct Context {
    /// The caller's id of this call; for logs and traces, never for a decision.
    pub uid: Arc<str>,
    /// When the call entered.
    pub arrived: Instant,
    /// How long the caller waits (`grpc-timeout`), if it says so.
    pub patience: Option<Duration>,
    /// When the answer is due; set by the `deadline` layer, honoured by everything below.
    pub deadline: Option<Instant>,
    /// The caller's trace.
    pub trace: Option<TraceContext>,
    /// Where the call is.
    pub progress: Progress,
}

/// A KMS v2 call in our own words.
#[derive(Clone, Debug)]
pub struct Request {
    /// What is asked.
    pub operation: Operation,
    /// What travels with it.
    pub context: Context,
}

/// What a KMS v2 call asks.
#[derive(Clone, Debug)]
pub enum Operation {
    /// Wrap this seed.
    Encrypt {
        /// The seed.
        plaintext: Secret,
    },
    /// Unwrap what this key wrapped.
    Decrypt {
        /// The stored text, `vault:vN:...`.
        ciphertext: Bytes,
        /// The key_id that stands beside it in etcd.
        key_id: String,
        /// The annotations that stand beside it in etcd.
        annotations: BTreeMap<String, Vec<u8>>,
    },
}

/// The answer to a KMS v2 call.
#[derive(Clone, Debug)]
pub enum Response {
    /// A wrapped seed.
    Encrypt {
        /// The text to store.
        ciphertext: Bytes,
        /// The key_id to store beside it: what Status last announced.
        key_id: KeyId,
        /// The annotations to store beside it.
        annotations: Arc<BTreeMap<String, Vec<u8>>>,
    },
    /// An unwrapped seed.
    Decrypt {
        /// The seed.
        plaintext: Secret,
    },
}

/// A call with the key version and the associated data that it is bound to; the only thing that goes below `aad`.
#[derive(Clone, Debug)]
pub struct Bound {
    /// What Transit is asked to work on.
    pub payload: Payload,
    /// The key version with its key_id, annotations and associated data.
    pub version: Arc<Version>,
    /// What travels with it.
    pub context: Context,
}

/// What Transit works on.
#[derive(Clone, Debug)]
pub enum Payload {
    /// A seed to wrap.
    Encrypt(Secret),
    /// A stored text to unwrap.
    Decrypt(Bytes),
}

/// What Transit made of a [`Bound`].
#[derive(Clone, Debug)]
pub enum Reply {
    /// The text to store.
    Encrypted(Bytes),
    /// The seed.
    Decrypted(Secret),
}

// === impl Kind ===

impl Kind {
    /// The word for logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Encrypt => "encrypt",
            Self::Decrypt => "decrypt",
        }
    }
}

// === impl Context ===

impl Context {
    /// The context of a call that enters now.
    pub fn new(uid: impl Into<Arc<str>>) -> Self {
        Self {
            uid: uid.into(),
            arrived: Instant::now(),
            patience: None,
            deadline: None,
            trace: None,
            progress: Progress::default(),
        }
    }
}

// === impl Request ===

impl Request {
    /// Encrypt or Decrypt.
    pub fn kind(&self) -> Kind {
        match self.operation {
            Operation::Encrypt { .. } => Kind::Encrypt,
            Operation::Decrypt { .. } => Kind::Decrypt,
        }
    }
}

// === impl Bound ===

impl Bound {
    /// Encrypt or Decrypt.
    pub fn kind(&self) -> Kind {
        match self.payload {
            Payload::Encrypt(_) => Kind::Encrypt,
            Payload::Decrypt(_) => Kind::Decrypt,
        }
    }
}

/// Takes bytes into a wiping, unprintable home.
pub fn secret(bytes: Vec<u8>) -> Secret {
    Arc::new(SecretSlice::from(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_print() {
        let request = Request {
            operation: Operation::Encrypt { plaintext: secret(b"seed-of-a-cluster".to_vec()) },
            context: Context::new("u"),
        };
        assert!(!format!("{request:?}").contains("115, 101"), "decimal bytes of the seed");
        assert!(!format!("{request:?}").contains("seed"));
    }
}
