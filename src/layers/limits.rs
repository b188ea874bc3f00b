//! Sizes, shapes, and how many calls may be inside at once: together they bound the memory that callers can take.

use std::sync::Arc;
use std::task::{Context, Poll};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tower::Service;

use super::Answer;
use crate::error::{Class, Error};
use crate::key::annotations::{MAX_BYTES, is_well_formed_key};
use crate::request::{Operation, Request, Response};

/// A seed has 32 bytes; 1 KiB of ciphertext, kube-apiserver's limit, holds no more than this.
const MAX_PLAINTEXT: usize = 704;
/// kube-apiserver stores no larger ciphertext and no larger key_id.
const MAX_STORED: usize = 1024;

/// `layers.limits`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[schemars(rename = "LimitsLayer")]
pub struct Config {
    /// Calls inside at once, waiting ones included; more are refused. 1 to 65536; to raise it above 8192 takes a restart.
    /// Default 8192.
    #[schemars(range(min = 1, max = 65_536))]
    pub max_calls: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { max_calls: 8192 }
    }
}

/// The layer's service.
#[derive(Clone)]
pub(super) struct Limits<S> {
    inner: S,
    room: Arc<Semaphore>,
}

// === impl Limits ===

impl<S> Limits<S> {
    pub(super) fn new(inner: S, config: &Config) -> Self {
        Self { inner, room: Arc::new(Semaphore::new(config.max_calls)) }
    }
}

/// Refuses what no API server sends.
fn check(operation: &Operation) -> Result<(), Error> {
    use secrecy::ExposeSecret;
    let invalid = |detail| Err(Error::new(Class::InvalidRequest, detail));
    let too_large = |detail| Err(Error::new(Class::TooLarge, detail));
    match operation {
        Operation::Encrypt { plaintext } => match plaintext.expose_secret().len() {
            0 => invalid("empty plaintext"),
            1..=MAX_PLAINTEXT => Ok(()),
            _ => too_large("plaintext"),
        },
        Operation::Decrypt { ciphertext, key_id, annotations } => {
            let bytes: usize = annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
            if ciphertext.is_empty() {
                invalid("empty ciphertext")
            } else if ciphertext.len() > MAX_STORED {
                too_large("ciphertext")
            } else if key_id.len() > MAX_STORED {
                too_large("key_id")
            } else if bytes > MAX_BYTES {
                too_large("annotations")
            } else if !annotations.keys().all(|key| is_well_formed_key(key)) {
                invalid("an annotation key that is no domain name")
            } else {
                Ok(())
            }
        }
    }
}

impl<S> Service<Request> for Limits<S>
where
    S: Service<Request, Response = Response, Error = Error>,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = Error;
    type Future = Answer<Response>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let room = self.room.clone().try_acquire_owned();
        let refusal = match (&room, check(&request.operation)) {
            (_, Err(error)) => Some(error),
            (Err(_), Ok(())) => Some(Error::new(Class::Overloaded, "more calls inside than layers.limits.maxCalls")),
            (Ok(_), Ok(())) => None,
        };
        if let Some(error) = refusal {
            return Box::pin(std::future::ready(Err(error)));
        }
        let answer = self.inner.call(request);
        Box::pin(async move {
            let _room = room;
            answer.await
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::request::{Context as CallContext, secret};

    fn encrypt(bytes: usize) -> Request {
        Request { operation: Operation::Encrypt { plaintext: secret(vec![1; bytes]) }, context: CallContext::new("u") }
    }

    fn decrypt(ciphertext: usize, key_id: usize, annotation: (&str, usize)) -> Request {
        let annotations = BTreeMap::from([(annotation.0.to_owned(), vec![0; annotation.1])]);
        let operation =
            Operation::Decrypt { ciphertext: vec![1; ciphertext].into(), key_id: "k".repeat(key_id), annotations };
        Request { operation, context: CallContext::new("u") }
    }

    #[test]
    fn sizes_and_shapes_are_refused_before_any_work() {
        let cases = [
            (encrypt(0), Some(Class::InvalidRequest)),
            (encrypt(32), None),
            (encrypt(705), Some(Class::TooLarge)),
            (decrypt(0, 48, ("a.b", 1)), Some(Class::InvalidRequest)),
            (decrypt(89, 48, ("a.b", 1)), None),
            (decrypt(1025, 48, ("a.b", 1)), Some(Class::TooLarge)),
            (decrypt(89, 1025, ("a.b", 1)), Some(Class::TooLarge)),
            (decrypt(89, 48, ("a.b", 32 * 1024)), Some(Class::TooLarge)),
            (decrypt(89, 48, ("nodot", 1)), Some(Class::InvalidRequest)),
            (decrypt(89, 48, ("A.b", 1)), Some(Class::InvalidRequest)),
            (decrypt(89, 48, ("a.b/c", 1)), Some(Class::InvalidRequest)),
        ];
        for (request, expected) in cases {
            assert_eq!(check(&request.operation).err().map(|error| error.class()), expected);
        }
    }

    #[tokio::test]
    async fn one_call_too_many_is_refused_and_room_comes_back() {
        let pending = tower::service_fn(|_: Request| std::future::pending::<Result<Response, Error>>());
        let mut limits = Limits::new(pending, &Config { max_calls: 1 });
        let first = limits.call(encrypt(32));
        let refused = limits.call(encrypt(32)).await.expect_err("refused");
        assert_eq!(refused.class(), Class::Overloaded);
        drop(first);
        let third = limits.call(encrypt(32));
        assert!(tokio::time::timeout(std::time::Duration::from_millis(10), third).await.is_err(), "it waits inside");
    }
}
