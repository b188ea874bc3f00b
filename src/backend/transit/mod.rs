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
use crate::request::{BaoCall, BaoReply, BaoService, Bound, Credential, Method, Payload, Purpose, Reply, secret};

/// How long a question of our own (metadata, probe) may take.
const OWN_DEADLINE: Duration = Duration::from_secs(5);
/// A call without a deadline cannot come through the hallway; this bounds one that an embedder makes.
const NO_DEADLINE: Duration = Duration::from_secs(30);
/// The associated data of deep probes: never that of a stored object.
const PROBE_AAD: &str = r#"{"purpose":"bao-kms-provider-deep-probe"}"#;

/// `Service<Bound>` over OpenBao, and the keeper's questions.
#[derive(Clone)]
pub struct Transit {
    bao: BaoService,
    paths: Arc<Paths>,
}

struct Paths {
    encrypt: Arc<str>,
    decrypt: Arc<str>,
    key: Arc<str>,
    keys_config: Arc<str>,
}

// === impl Transit ===

impl Transit {
    /// Transit of this mount and key, reached through `bao` (which enters at `token`).
    pub fn new(config: &Config, bao: BaoService) -> Self {
        let (mount, key) = (&config.mount, &config.key);
        let paths = Paths {
            encrypt: format!("{mount}/encrypt/{key}").into(),
            decrypt: format!("{mount}/decrypt/{key}").into(),
            key: format!("{mount}/keys/{key}").into(),
            keys_config: format!("{mount}/config/keys").into(),
        };
        Self { bao, paths: Arc::new(paths) }
    }

    /// The key's metadata, with OpenBao's clock when the reply tells it.
    ///
    /// # Errors
    /// Whatever keeps the read from succeeding, by class.
    pub async fn metadata(&self) -> Result<(Metadata, Option<SystemTime>), Error> {
        let call = BaoCall::own(Purpose::Metadata, Method::Get, self.paths.key.clone(), OWN_DEADLINE);
        let reply = self.ask(call).await?;
        Ok((wire::metadata(&reply.body)?, reply.date))
    }

    /// `disable_upsert` of the mount; `None` when the policy does not show it.
    ///
    /// # Errors
    /// As [`Transit::metadata`], but for a refusal by policy.
    pub async fn disable_upsert(&self) -> Result<Option<bool>, Error> {
        let call = BaoCall::own(Purpose::KeysConfig, Method::Get, self.paths.keys_config.clone(), OWN_DEADLINE);
        match self.ask(call).await {
            Ok(reply) => wire::disable_upsert(&reply.body).map(Some),
            Err(error) if error.class() == Class::TokenRejected => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Seals a random seed under this version, opens it again and compares.
    ///
    /// # Errors
    /// Whatever keeps one of the two from succeeding, by class.
    pub async fn probe(&self, version: &Version) -> Result<(), Error> {
        let mut seed = vec![0; 32];
        aws_lc_rs::rand::fill(&mut seed).map_err(|_| Error::new(Class::Internal, "no random bytes"))?;
        let seed = secret(seed);
        let aad = wire::base64(PROBE_AAD.as_bytes());
        let body = wire::encrypt_body(&seed, &aad, version.number);
        let call = BaoCall::own(Purpose::Encrypt, Method::Post, self.paths.encrypt.clone(), OWN_DEADLINE);
        let sealed = wire::encrypted(&self.ask(call.with_body(body)).await?.body, version.number)?;
        let body = wire::decrypt_body(&sealed, &aad)?;
        let call = BaoCall::own(Purpose::Decrypt, Method::Post, self.paths.decrypt.clone(), OWN_DEADLINE);
        let opened = wire::decrypted(&self.ask(call.with_body(body)).await?.body)?;
        if opened.expose_secret() == seed.expose_secret() {
            Ok(())
        } else {
            Err(Error::new(Class::BadReply, "a probe came back as another text"))
        }
    }

    async fn ask(&self, call: BaoCall) -> Result<BaoReply, Error> {
        let purpose = call.purpose;
        let reply = self.bao.clone().call(call).await?;
        if reply.status == 200 { Ok(reply) } else { Err(errors::classify(purpose, &reply)) }
    }

    async fn work(self, bound: Bound) -> Result<Reply, Error> {
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
        let reply = self.ask(call).await.map_err(|error| about(version, error))?;
        match bound.payload {
            Payload::Encrypt(_) => wire::encrypted(&reply.body, version.number).map(Reply::Encrypted),
            Payload::Decrypt(_) => wire::decrypted(&reply.body).map(Reply::Decrypted),
        }
    }
}

/// Names the key version in errors that are about one.
fn about(version: &Version, error: Error) -> Error {
    match error.class() {
        Class::VersionTooOld | Class::StaleNode | Class::CiphertextInvalid => error.with_version(version.number),
        _ => error,
    }
}

impl Service<Bound> for Transit {
    type Response = Reply;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Reply, Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, bound: Bound) -> Self::Future {
        Box::pin(self.clone().work(bound))
    }
}
