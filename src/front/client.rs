//! The KMS v2 client of `probe`, of the quick start and of the tests: what kube-apiserver does with a socket, in Rust.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
pub use tonic::Code;
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

use super::v2::key_management_service_client::KeyManagementServiceClient;
use super::v2::{DecryptRequest, EncryptRequest, StatusRequest};
pub use super::v2::{EncryptResponse, StatusResponse};

/// What kube-apiserver waits by default.
pub const TIMEOUT: Duration = Duration::from_secs(3);

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody accepts connections at the path.
    #[error("cannot connect to {path}: {source}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What went wrong.
        source: tonic::transport::Error,
    },
    /// The answer is an error.
    #[error("{}: {}", .0.code(), .0.message())]
    Call(#[from] Box<tonic::Status>),
}

/// A connection to a plugin's socket; clones share it.
#[derive(Clone, Debug)]
pub struct Client {
    kms: KeyManagementServiceClient<Channel>,
    timeout: Duration,
}

// === impl Client ===

impl Client {
    /// Connects to the socket at this path. Calls wait [`TIMEOUT`].
    ///
    /// # Errors
    /// When nobody accepts the connection.
    pub async fn connect(path: impl AsRef<Path>) -> Result<Self, ClientError> {
        let path = path.as_ref().to_owned();
        let target = path.clone();
        let connector = tower::service_fn(move |_| {
            let target = target.clone();
            async move { UnixStream::connect(target).await.map(TokioIo::new) }
        });
        // The address is never dialled; its host becomes `:authority`, as kube-apiserver sends it.
        let channel = Endpoint::from_static("http://localhost")
            .connect_with_connector(connector)
            .await
            .map_err(|source| ClientError::Connect { path, source })?;
        Ok(Self { kms: KeyManagementServiceClient::new(channel), timeout: TIMEOUT })
    }

    /// The same connection with another time-out.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Status.
    ///
    /// # Errors
    /// When the plugin answers with an error.
    pub async fn status(&self) -> Result<StatusResponse, ClientError> {
        let answer = self.kms.clone().status(self.request(StatusRequest {})).await;
        Ok(answer.map_err(Box::new)?.into_inner())
    }

    /// Encrypt.
    ///
    /// # Errors
    /// When the plugin answers with an error.
    pub async fn encrypt(&self, plaintext: impl Into<Vec<u8>>, uid: &str) -> Result<EncryptResponse, ClientError> {
        let message = EncryptRequest { plaintext: plaintext.into(), uid: uid.to_owned() };
        let answer = self.kms.clone().encrypt(self.request(message)).await;
        Ok(answer.map_err(Box::new)?.into_inner())
    }

    /// Decrypt.
    ///
    /// # Errors
    /// When the plugin answers with an error.
    pub async fn decrypt(
        &self,
        ciphertext: impl Into<Vec<u8>>,
        uid: &str,
        key_id: &str,
        annotations: BTreeMap<String, Vec<u8>>,
    ) -> Result<Vec<u8>, ClientError> {
        let ciphertext: Vec<u8> = ciphertext.into();
        let message = DecryptRequest {
            ciphertext: ciphertext.into(),
            uid: uid.to_owned(),
            key_id: key_id.to_owned(),
            annotations,
        };
        let answer = self.kms.clone().decrypt(self.request(message)).await;
        Ok(answer.map_err(Box::new)?.into_inner().plaintext)
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        request
    }
}
