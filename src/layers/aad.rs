//! Binds a call to a key version and its associated data. Decrypt is validated here, locally and in the order of the
//! format; below this layer only what agrees with a known version exists.

use std::sync::Arc;
use std::task::{Context, Poll};

use tower::Service;

use super::Answer;
use crate::error::{Class, Error};
use crate::key::check::{Refusal, check};
use crate::key::{KeyState, Version, Why};
use crate::request::{Bound, Kind, Operation, Payload, Reply, Request, Response, Stage};

/// Looks at the key after OpenBao has refused a version. The first may share one that had begun before the minimum was
/// raised; the second cannot.
const LOOKS: usize = 2;

/// The layer's service.
#[derive(Clone)]
pub(super) struct Aad<S> {
    inner: S,
    key: Arc<KeyState>,
}

// === impl Aad ===

impl<S> Aad<S> {
    pub(super) fn new(inner: S, key: Arc<KeyState>) -> Self {
        Self { inner, key }
    }
}

/// Takes the view once and binds the call to a version of it.
async fn bind(key: &KeyState, request: Request) -> Result<Bound, Error> {
    let Request { operation, context } = request;
    context.progress.enter(Stage::View);
    match operation {
        Operation::Encrypt { plaintext } => {
            may_seal(key)?;
            let version = key.announced().await.active().clone();
            // After the wait as well: the first view may be one to open with alone.
            may_seal(key)?;
            Ok(Bound { payload: Payload::Encrypt(plaintext), version, context })
        }
        Operation::Decrypt { ciphertext, key_id, annotations } => {
            let found = check(&*key.current().await, &key_id, &annotations, &ciphertext);
            let found = match found {
                // Another node may have seen a rotation, or a lowered minimum, before us.
                Err(Refusal::KeyIdUnknown | Refusal::TooOld(_)) => {
                    key.refresh(Why::UnknownKeyId).await;
                    check(&*key.current().await, &key_id, &annotations, &ciphertext)
                }
                found => found,
            };
            let version = found.map_err(refused)?;
            Ok(Bound { payload: Payload::Decrypt(ciphertext), version, context })
        }
    }
}

fn may_seal(key: &KeyState) -> Result<(), Error> {
    key.seals_nothing().map_or(Ok(()), |class| Err(class.into()))
}

fn refused(refusal: Refusal) -> Error {
    let class = match refusal {
        Refusal::KeyIdMalformed => Class::KeyIdMalformed,
        Refusal::KeyIdUnknown => Class::KeyIdUnknown,
        Refusal::TooOld(_) => Class::VersionTooOld,
        Refusal::Missing(_) | Refusal::Disagrees(_) | Refusal::Annotations => Class::AnnotationsInvalid,
        Refusal::Prefix => Class::CiphertextInvalid,
    };
    let error = Error::new(class, refusal.to_string());
    match refusal {
        Refusal::TooOld(version) => error.with_version(version),
        _ => error,
    }
}

fn respond(key: &KeyState, reply: Reply, version: &Version) -> Result<Response, Error> {
    match reply {
        Reply::Encrypted(ciphertext) => {
            // Once more: what became known meanwhile is true of what was sealed meanwhile.
            may_seal(key)?;
            let (key_id, annotations) = (version.key_id.clone(), version.annotations.clone());
            Ok(Response::Encrypt { ciphertext, key_id, annotations })
        }
        Reply::Decrypted(plaintext) => Ok(Response::Decrypt { plaintext }),
    }
}

impl<S> Service<Request> for Aad<S>
where
    S: Service<Bound, Response = Reply, Error = Error> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = Error;
    type Future = Answer<Response>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let Self { mut inner, key } = self.clone();
        Box::pin(async move {
            let again = (request.kind() == Kind::Encrypt).then(|| request.clone());
            let bound = bind(&key, request).await?;
            let version = bound.version.clone();
            let error = match inner.call(bound).await {
                Ok(reply) => return respond(&key, reply, &version),
                Err(error) if error.class() == Class::VersionTooOld => error,
                Err(error) => {
                    key.call_met(error.class());
                    return Err(error);
                }
            };
            // OpenBao names no version; we know which one was asked for.
            let error = error.with_version(version.number);
            let Some(request) = again else {
                return Err(error);
            };
            // The minimum for encryption was raised a moment ago; a look at the key says which version takes over.
            for _ in 0..LOOKS {
                key.refresh(Why::ViewIsOld).await;
                let bound = bind(&key, request.clone()).await?;
                if bound.version.number != version.number {
                    let version = bound.version.clone();
                    return respond(&key, inner.call(bound).await?, &version);
                }
            }
            Err(error)
        })
    }
}
