//! The service that performs one exchange. Its client is built from files at the first exchange and again when their
//! content changes, so that a CA or a client certificate is replaced without a restart.

use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use ::http::header::{AUTHORIZATION, CONTENT_TYPE, DATE, HeaderName, HeaderValue, LOCATION, RETRY_AFTER};
use arc_swap::ArcSwapOption;
use bytes::{Bytes, BytesMut};
use reqwest::Url;
use secrecy::ExposeSecret;
use tower::Service;

use super::trust::Material;
use super::{TlsConfig, client, failure};
use crate::error::{Class, Error};
use crate::request::{BaoReply, Credential, Exchange, Method, Secret};
use crate::telemetry::events;

/// Larger replies are not OpenBao's: a batch of 128 answers is below 64 KiB.
const MAX_REPLY: usize = 1 << 20;
const NAMESPACE: HeaderName = HeaderName::from_static("x-vault-namespace");
const REQUEST_MARK: HeaderName = HeaderName::from_static("x-vault-request");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// What a pipe is built from.
#[derive(Clone, Debug)]
pub struct PipeOptions {
    /// Trust roots and name.
    pub tls: TlsConfig,
    /// The namespace header of every namespaced request; empty: none.
    pub namespace: String,
    /// Files of the client certificate and its key, for certificate login.
    pub client_identity: Option<(PathBuf, PathBuf)>,
    /// Idle connections kept for each address.
    pub max_idle: usize,
}

/// `Service<Exchange>`; clones share connections.
#[derive(Clone)]
pub struct Pipe(Arc<Inner>);

struct Inner {
    options: PipeOptions,
    namespace: Option<HeaderValue>,
    client: ArcSwapOption<reqwest::Client>,
    material: Mutex<Option<Material>>,
    urls: Mutex<HashMap<(Arc<str>, Arc<str>), Url>>,
}

// === impl Pipe ===

impl Pipe {
    /// A pipe without a client yet; nothing is read before the first exchange.
    pub fn new(options: PipeOptions) -> Self {
        let namespace =
            (!options.namespace.is_empty()).then(|| HeaderValue::from_str(&options.namespace).ok()).flatten();
        Self(Arc::new(Inner {
            options,
            namespace,
            client: ArcSwapOption::empty(),
            material: Mutex::new(None),
            urls: Mutex::new(HashMap::new()),
        }))
    }

    /// Reads the files again and, when their content changed, starts over with a new client and new connections.
    ///
    /// # Errors
    /// When a file is missing or unusable; a client that was built before stays in use.
    pub fn reload(&self) -> Result<(), Error> {
        let inner = &self.0;
        let fresh = Material::read(&inner.options)?;
        let mut known = inner.material.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_ref() == Some(&fresh) && inner.client.load().is_some() {
            return Ok(());
        }
        let client = client::build(&fresh, &inner.options)?;
        let from =
            inner.options.tls.ca_file.as_deref().map_or("the system's roots".into(), |path| path.display().to_string());
        tracing::info!(event = events::TRUST_LOADED, from, "trust roots loaded");
        inner.client.store(Some(Arc::new(client)));
        *known = Some(fresh);
        Ok(())
    }

    fn client(&self) -> Result<Arc<reqwest::Client>, Error> {
        if let Some(client) = self.0.client.load_full() {
            return Ok(client);
        }
        self.reload()?;
        self.0.client.load_full().ok_or_else(|| Class::TrustUnavailable.into())
    }
}

impl Service<Exchange> for Pipe {
    type Response = BaoReply;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<BaoReply, Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, exchange: Exchange) -> Self::Future {
        let request = self.client().and_then(|client| self.0.request(&client, &exchange));
        Box::pin(async move {
            let response = request?.send().await.map_err(|error| failure::classify(&error))?;
            reply(response, exchange.endpoint).await
        })
    }
}

// === impl Inner ===

impl Inner {
    fn request(&self, client: &reqwest::Client, exchange: &Exchange) -> Result<reqwest::RequestBuilder, Error> {
        let call = &exchange.call;
        let method = match call.method {
            Method::Get => reqwest::Method::GET,
            Method::Post => reqwest::Method::POST,
        };
        let mut request = client.request(method, self.url(&exchange.origin, &call.path)?).header(REQUEST_MARK, "true");
        if let (true, Some(namespace)) = (call.namespaced, &self.namespace) {
            request = request.header(NAMESPACE, namespace.clone());
        }
        if let Credential::Token(token) = &call.credential {
            request = request.header(AUTHORIZATION, bearer(token)?);
        }
        if let Some(trace) = &call.trace {
            request = request.header(TRACEPARENT, trace.parent.as_str());
            if !trace.state.is_empty() {
                request = request.header(TRACESTATE, trace.state.as_str());
            }
        }
        if let Some(body) = &call.body {
            request = request.header(CONTENT_TYPE, JSON).body(Bytes::from_owner(Body(body.clone())));
        }
        Ok(request)
    }

    /// Parsed once for each origin and path: there are a handful.
    fn url(&self, origin: &Arc<str>, path: &Arc<str>) -> Result<Url, Error> {
        let mut urls = self.urls.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (origin.clone(), path.clone());
        if let Some(url) = urls.get(&key) {
            return Ok(url.clone());
        }
        let url = Url::parse(&format!("{origin}/v1/{path}"))
            .map_err(|_| Error::new(Class::Internal, format!("{origin} is not the base of a URL")))?;
        urls.insert(key, url.clone());
        Ok(url)
    }
}

/// Lends a wiping body to the client without a copy.
struct Body(Secret);

impl AsRef<[u8]> for Body {
    fn as_ref(&self) -> &[u8] {
        self.0.expose_secret()
    }
}

fn bearer(token: &secrecy::SecretString) -> Result<HeaderValue, Error> {
    let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose_secret()))
        .map_err(|_| Error::new(Class::LoginRefused, "the token holds characters that no header may"))?;
    value.set_sensitive(true);
    Ok(value)
}

async fn reply(mut response: reqwest::Response, endpoint: Option<usize>) -> Result<BaoReply, Error> {
    let text = |name: HeaderName| response.headers().get(name).and_then(|value| value.to_str().ok());
    let date: Option<SystemTime> = text(DATE).and_then(|text| httpdate::parse_http_date(text).ok());
    let retry_after = text(RETRY_AFTER).and_then(|text| text.parse().ok()).map(Duration::from_secs);
    let location = text(LOCATION).map(str::to_owned);
    let status = response.status().as_u16();
    let too_large = || Error::new(Class::BadReply, "the answer is larger than any of OpenBao's");
    if response.content_length().is_some_and(|length| length > MAX_REPLY as u64) {
        return Err(too_large());
    }
    let mut body = BytesMut::new();
    while let Some(part) = response.chunk().await.map_err(|error| failure::classify(&error))? {
        if body.len() + part.len() > MAX_REPLY {
            return Err(too_large());
        }
        body.extend_from_slice(&part);
    }
    Ok(BaoReply { status, body: body.freeze(), date, retry_after, location, endpoint })
}
