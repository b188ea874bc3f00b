//! Transit: seals and opens seeds under an explicit key version with associated data, and reads what the key is. It never
//! creates, rotates, exports or deletes a key: there is no code here that could.

mod config;
mod errors;
mod wire;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use secrecy::ExposeSecret;
use tokio::time::Instant;
use tower::Service;

pub use config::Config;

use crate::error::{Class, Error};
use crate::key::{Metadata, Version};
use crate::request::{
    BaoCall, BaoReply, BaoService, Bound, Credential, Lot, Method, Outcomes, Payload, Progress, Purpose, Reply, secret,
};

/// A call without a deadline cannot come through the hallway; this bounds one that an embedder makes.
const NO_DEADLINE: Duration = Duration::from_secs(30);
/// The associated data of deep probes: never that of a stored object.
const PROBE_AAD: &str = r#"{"purpose":"bao-kms-provider-deep-probe"}"#;

/// `Service<Lot>` over OpenBao, and the keeper's questions.
#[derive(Clone)]
pub struct Transit {
    /// Shared, because the layers above clone this service several times for each call and a boxed one is dear to clone.
    bao: Arc<BaoService>,
    paths: Arc<Paths>,
    /// How long a question of our own (metadata, probe) may take.
    patience: Duration,
}

/// What a look at the key's metadata brought.
#[derive(Clone, Debug)]
pub struct Look {
    /// What OpenBao says of the key.
    pub metadata: Metadata,
    /// OpenBao's clock, when the reply tells it.
    pub date: Option<SystemTime>,
    /// Position of the address that answered in the configured endpoints; `None` for a redirect host.
    pub endpoint: Option<usize>,
}

struct Paths {
    encrypt: Arc<str>,
    decrypt: Arc<str>,
    key: Arc<str>,
    keys_config: Arc<str>,
}

// === impl Transit ===

impl Transit {
    /// Transit of this mount and key, reached through `bao` (which enters at `token`). `patience` is for questions of our own:
    /// no longer than a call's, or Status would go on when calls no longer do.
    pub fn new(config: &Config, bao: BaoService, patience: Duration) -> Self {
        let (mount, key) = (&config.mount, &config.key);
        let paths = Paths {
            encrypt: format!("{mount}/encrypt/{key}").into(),
            decrypt: format!("{mount}/decrypt/{key}").into(),
            key: format!("{mount}/keys/{key}").into(),
            keys_config: format!("{mount}/config/keys").into(),
        };
        Self { bao: Arc::new(bao), paths: Arc::new(paths), patience }
    }

    /// The key's metadata, from an address that `progress` does not avoid when there is one.
    ///
    /// # Errors
    /// Whatever keeps the read from succeeding, by class.
    pub async fn metadata(&self, progress: Progress) -> Result<Look, Error> {
        let call = BaoCall::own(Purpose::Metadata, Method::Get, self.paths.key.clone(), self.patience);
        let reply = self.ask(BaoCall { progress, ..call }).await?;
        Ok(Look { metadata: wire::metadata(&reply.body)?, date: reply.date, endpoint: reply.endpoint })
    }

    /// `disable_upsert` of the mount; `None` when the policy does not show it.
    ///
    /// # Errors
    /// As [`Transit::metadata`], but for a refusal by policy.
    pub async fn disable_upsert(&self) -> Result<Option<bool>, Error> {
        let call = BaoCall::own(Purpose::KeysConfig, Method::Get, self.paths.keys_config.clone(), self.patience);
        match self.ask(call).await {
            Ok(reply) => wire::disable_upsert(&reply.body).map(Some),
            Err(error) if error.class() == Class::TokenRejected => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Seals a random seed under this version, opens it again and compares, at an address that `progress` does not avoid when
    /// there is one.
    ///
    /// # Errors
    /// Whatever keeps one of the two from succeeding, by class; `key_unusable` when what it seals does not open, or opens as
    /// something else: that is trouble with the key, and nothing that is sealed meanwhile may be the last copy of a seed.
    pub async fn probe(&self, version: &Version, progress: Progress) -> Result<(), Error> {
        self.prove(version, progress).await.map_err(|error| match error.class() {
            Class::CiphertextInvalid | Class::WrongVersion => {
                Error::new(Class::KeyUnusable, format!("a probe failed: {}", error.detail()))
            }
            _ => error,
        })
    }

    async fn prove(&self, version: &Version, progress: Progress) -> Result<(), Error> {
        let mut seed = vec![0; 32];
        aws_lc_rs::rand::fill(&mut seed).map_err(|_| Error::new(Class::Internal, "no random bytes"))?;
        let seed = secret(seed);
        let aad = wire::base64(PROBE_AAD.as_bytes());
        let body = wire::encrypt_body(&seed, &aad, version.number);
        let call = BaoCall::own(Purpose::Encrypt, Method::Post, self.paths.encrypt.clone(), self.patience);
        let call = BaoCall { progress: progress.clone(), ..call };
        let sealed = wire::encrypted(&self.ask(call.with_body(body)).await?.body, version.number)?;
        let body = wire::decrypt_body(&sealed, &aad)?;
        let call = BaoCall::own(Purpose::Decrypt, Method::Post, self.paths.decrypt.clone(), self.patience);
        let call = BaoCall { progress, ..call };
        let opened = wire::decrypted(&self.ask(call.with_body(body)).await?.body)?;
        if opened.expose_secret() == seed.expose_secret() {
            Ok(())
        } else {
            Err(Error::new(Class::KeyUnusable, "a probe came back as another text"))
        }
    }

    async fn ask(&self, call: BaoCall) -> Result<BaoReply, Error> {
        let purpose = call.purpose;
        let reply = BaoService::clone(&self.bao).call(call).await?;
        if reply.status == 200 { Ok(reply) } else { Err(errors::classify(purpose, &reply)) }
    }

    async fn work(self, lot: Lot) -> Result<Outcomes, Error> {
        match <[Bound; 1]>::try_from(lot) {
            Ok([bound]) => Ok(vec![Ok(self.one(bound).await?)]),
            Err(lot) if lot.is_empty() => Ok(Vec::new()),
            Err(lot) => self.many(lot).await,
        }
    }

    async fn one(self, bound: Bound) -> Result<Reply, Error> {
        let (version, context) = (&bound.version, bound.context);
        let (purpose, path, body) = match &bound.payload {
            Payload::Encrypt(seed) => (
                Purpose::Encrypt,
                &self.paths.encrypt,
                wire::encrypt_body(seed, &version.associated_data, version.number),
            ),
            Payload::Decrypt(text) => {
                (Purpose::Decrypt, &self.paths.decrypt, wire::decrypt_body(text, &version.associated_data)?)
            }
        };
        let call = BaoCall {
            method: Method::Post,
            path: path.clone(),
            body: Some(secret(body)),
            credential: Credential::Session,
            namespaced: true,
            purpose,
            deadline: context.deadline.unwrap_or_else(|| Instant::now() + NO_DEADLINE),
            progress: context.progress,
            trace: context.trace,
        };
        let (progress, sealing) = (call.progress.clone(), matches!(bound.payload, Payload::Encrypt(_)));
        let reply = BaoService::clone(&self.bao).call(call).await?;
        let outcome = match reply.status {
            200 if sealing => wire::encrypted(&reply.body, version.number).map(Reply::Encrypted),
            200 => wire::decrypted(&reply.body).map(Reply::Decrypted),
            _ => Err(errors::classify(purpose, &reply)),
        };
        outcome.map_err(|error| about(version, elsewhere(error, &progress, reply.endpoint)))
    }

    /// Several decrypts in one question. Its time is that of the item that may wait longest; each caller keeps its own.
    async fn many(self, lot: Lot) -> Result<Outcomes, Error> {
        let mut items = Vec::with_capacity(lot.len());
        for bound in &lot {
            match &bound.payload {
                Payload::Decrypt(text) => items.push((text.as_ref(), &*bound.version.associated_data)),
                Payload::Encrypt(_) => return Err(Error::new(Class::Internal, "only decrypts go in batches")),
            }
        }
        let longest = lot.iter().map(|bound| bound.context.deadline.unwrap_or_else(|| Instant::now() + NO_DEADLINE));
        let call = BaoCall {
            method: Method::Post,
            path: self.paths.decrypt.clone(),
            body: Some(secret(wire::batch_body(&items)?)),
            credential: Credential::Session,
            namespaced: true,
            purpose: Purpose::Decrypt,
            deadline: longest.max().unwrap_or_else(Instant::now),
            progress: Progress::of_all(lot.iter().map(|bound| bound.context.progress.clone())),
            trace: lot.first().and_then(|bound| bound.context.trace.clone()),
        };
        let progress = call.progress.clone();
        let reply = BaoService::clone(&self.bao).call(call).await?;
        // A batch with failed items answers with their status and still carries the outcome of each.
        let outcomes = match wire::batch_results(&reply.body) {
            Some(outcomes) => outcomes,
            None => {
                let error = match reply.status {
                    200 => Error::new(Class::BadReply, "no results in the answer to a batch"),
                    _ => errors::classify(Purpose::Decrypt, &reply),
                };
                return Err(elsewhere(error, &progress, reply.endpoint));
            }
        };
        let named = |(bound, outcome): (&Bound, Result<Reply, Error>)| {
            outcome.map_err(|error| about(&bound.version, elsewhere(error, &bound.context.progress, reply.endpoint)))
        };
        if outcomes.len() != lot.len() {
            let error = Error::new(Class::BadReply, "the answer to a batch has another length");
            return Err(elsewhere(error, &progress, reply.endpoint));
        }
        Ok(lot.iter().zip(outcomes).map(named).collect())
    }
}

/// Lets the call try another address where this one's answer may be the address's own doing: a node that lags, or
/// something in front of it.
fn elsewhere(error: Error, progress: &Progress, endpoint: Option<usize>) -> Error {
    if let (Some(at), Class::StaleNode | Class::BadReply | Class::WrongVersion) = (endpoint, error.class()) {
        progress.avoid(at);
    }
    error
}

/// Names the key version in errors that are about one.
fn about(version: &Version, error: Error) -> Error {
    match error.class() {
        Class::VersionTooOld | Class::StaleNode | Class::CiphertextInvalid => error.with_version(version.number),
        _ => error,
    }
}

impl Service<Lot> for Transit {
    type Response = Outcomes;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Outcomes, Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, lot: Lot) -> Self::Future {
        Box::pin(self.clone().work(lot))
    }
}
