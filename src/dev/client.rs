//! A plain caller of OpenBao's HTTP API for set-up, contract and tests. It repeats nothing, follows nothing and trusts the
//! given authority alone.

use std::sync::Arc;
use std::time::Duration;

use reqwest::Method;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;

use super::certificate::ClientIdentity;

/// Where an OpenBao is and how to trust it.
#[derive(Clone)]
pub struct Endpoint {
    /// The base URL, without a slash at the end.
    pub url: String,
    /// The authority that signed its certificate, as PEM.
    pub ca_pem: String,
}

/// A caller with a token and, perhaps, a client certificate and a namespace.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    url: String,
    /// The token that goes with each call; none when empty.
    pub token: String,
    /// The namespace header of each call; none when empty.
    pub namespace: String,
}

/// What OpenBao answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The body, word for word.
    pub text: String,
    /// The body as JSON; null when it is empty or something else.
    pub body: Value,
    /// The reply's headers.
    pub headers: reqwest::header::HeaderMap,
}

/// Why a call had no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The authority or the client certificate cannot be used.
    #[error("certificates: {0}")]
    Certificates(String),
    /// The exchange failed.
    #[error("{0}")]
    Http(#[from] reqwest::Error),
    /// The method is not one.
    #[error("{0} is not an HTTP method")]
    Method(String),
}

impl Client {
    /// A caller of `endpoint` with this token.
    ///
    /// # Errors
    /// When the authority or the identity is not usable.
    pub fn new(endpoint: &Endpoint, token: &str, identity: Option<&ClientIdentity>) -> Result<Client, ClientError> {
        let wrong = |error: &dyn std::fmt::Display| ClientError::Certificates(error.to_string());
        let mut roots = RootCertStore::empty();
        for cert in CertificateDer::pem_slice_iter(endpoint.ca_pem.as_bytes()) {
            roots.add(cert.map_err(|e| wrong(&e))?).map_err(|e| wrong(&e))?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| wrong(&e))?
            .with_root_certificates(roots);
        let tls = match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let chain = CertificateDer::pem_slice_iter(identity.cert_pem.as_bytes())
                    .collect::<Result<Vec<_>, _>>()
                    .map_err(|e| wrong(&e))?;
                let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).map_err(|e| wrong(&e))?;
                builder.with_client_auth_cert(chain, key).map_err(|e| wrong(&e))?
            }
        };
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .timeout(Duration::from_secs(30))
            .build()?;
        Ok(Client { http, url: endpoint.url.clone(), token: token.to_owned(), namespace: String::new() })
    }

    /// This caller in a namespace.
    pub fn in_namespace(mut self, namespace: &str) -> Client {
        namespace.clone_into(&mut self.namespace);
        self
    }

    /// This caller with another token.
    pub fn with_token(&self, token: &str) -> Client {
        Client { token: token.to_owned(), ..self.clone() }
    }

    /// Calls `path` (below `/v1/`) with a JSON body, or none when `body` is null.
    ///
    /// # Errors
    /// When there was no answer.
    pub async fn call(&self, method: &str, path: &str, body: &Value) -> Result<Answer, ClientError> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.send(method, &format!("v1/{path}"), body).await
    }

    /// Sends `body` as it is to `path` below the base URL.
    ///
    /// # Errors
    /// When there was no answer.
    pub async fn send(&self, method: &str, path: &str, body: String) -> Result<Answer, ClientError> {
        let verb = Method::from_bytes(method.as_bytes()).map_err(|_| ClientError::Method(method.to_owned()))?;
        let mut request = self.http.request(verb, format!("{}/{path}", self.url));
        if !self.token.is_empty() {
            request = request.header("x-vault-token", &self.token);
        }
        if !self.namespace.is_empty() {
            request = request.header("x-vault-namespace", &self.namespace);
        }
        let response = request.header("content-type", "application/json").body(body).send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await?;
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        Ok(Answer { status, text, body, headers })
    }
}

impl Answer {
    /// Whether the status says success.
    pub fn is_ok(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The token of a login or create reply; empty when there is none.
    pub fn client_token(&self) -> String {
        self.body["auth"]["client_token"].as_str().unwrap_or_default().to_owned()
    }
}
