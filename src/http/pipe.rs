//! The service that performs one exchange. Its client is built from files at the first exchange and again when their
//! content changes, so that a CA or a client certificate is replaced without a restart. It starts over with new connections
//! when one of them has died: behind a load balancer that fails over they all have, and none of them says so.

use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use ::http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue};
use arc_swap::ArcSwapOption;
use bytes::Bytes;
use reqwest::Url;
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::OwnedMutexGuard;
use tower::Service;
use zeroize::Zeroizing;

use super::material::{Mark, Material};
use super::{TlsConfig, client, failure, reply, trust};
use crate::error::{Class, Error};
use crate::request::{BaoReply, Credential, Exchange, Method, Secret};
use crate::telemetry::events;

const NAMESPACE: HeaderName = HeaderName::from_static("x-vault-namespace");
const REQUEST_MARK: HeaderName = HeaderName::from_static("x-vault-request");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const TRUE: HeaderValue = HeaderValue::from_static("true");
/// A pipeline asks a handful of paths at a handful of addresses; beyond this something makes paths up.
const MAX_URLS: usize = 512;
/// Reading a few small files takes longer than this only on a volume that hangs; a caller has three seconds for everything.
const READ_WITHIN: Duration = Duration::from_secs(1);
/// An exchange without an answer for so long may stand on a connection that is dead: who comes next gets a new one. An
/// address that is merely slow is met with a handshake more for each exchange that takes longer.
const SILENT: Duration = Duration::from_secs(1);
/// An address is begun with anew no more often than this, however many of its connections break.
const OVER_APART: Duration = Duration::from_secs(1);
/// Failed handshakes lead to a look at the files no more often than this.
const READ_APART: Duration = Duration::from_secs(1);

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

/// `Service<Exchange>`; clones share connections. The call's deadline is kept by whoever makes the exchange.
#[derive(Clone)]
pub struct Pipe(Arc<Inner>);

struct Inner {
    options: PipeOptions,
    trust: ArcSwapOption<Trust>,
    /// Held while a client is built, so that a burst builds one.
    files: Mutex<Files>,
    /// Held by the one thread that an exchange has sent to the files: on a volume that hangs there is not one for each.
    reading: Arc<tokio::sync::Mutex<()>>,
    urls: Mutex<Urls>,
}

/// What the files gave, and the clients that were built from it: one for each origin, because what happens to the
/// connections of one says nothing of another's.
struct Trust {
    tls: rustls::ClientConfig,
    clients: Mutex<HashMap<Arc<str>, Arc<Built>>>,
}

/// A client with its connections.
struct Built {
    client: reqwest::Client,
    since: Instant,
}

/// By origin and path.
type Urls = HashMap<(Arc<str>, Arc<str>), Url>;

/// What is known of the files behind the client.
#[derive(Default)]
struct Files {
    /// What the client was built from.
    mark: Option<Mark>,
    /// When they were last read.
    read: Option<Instant>,
}

// === impl Pipe ===

impl Pipe {
    /// A pipe without a client yet; nothing is read before the first exchange.
    pub fn new(options: PipeOptions) -> Self {
        let (trust, files, urls) = (ArcSwapOption::empty(), Mutex::default(), Mutex::default());
        Self(Arc::new(Inner { options, trust, files, reading: Arc::default(), urls }))
    }

    /// Reads the files again and, when their content changed, starts over with a new client and new connections. Blocks for
    /// as long as their volume does.
    ///
    /// # Errors
    /// When a file is missing or unusable; a client that was built before stays in use.
    pub fn reload(&self) -> Result<(), Error> {
        self.0.renew_client(&mut self.0.files())
    }

    async fn trust(&self) -> Result<Arc<Trust>, Error> {
        if let Some(trust) = self.0.trust.load_full() {
            return Ok(trust);
        }
        let hangs = |_| {
            let names = self.0.options.files();
            let detail = format!("{names} cannot be read within 1 s; look at the volume");
            Error::new(Class::TrustUnavailable, detail)
        };
        let built = async {
            let turn = self.0.reading.clone().lock_owned().await;
            self.beside(turn, Inner::build).await
        };
        tokio::time::timeout(READ_WITHIN, built).await.map_err(hangs)?
    }

    /// A handshake that failed may mean that a CA or a certificate was replaced: the files are read again, so that the
    /// next exchange succeeds, and not only the next login.
    async fn broken(&self, error: Error) -> Error {
        if error.class() != Class::Tls {
            return error;
        }
        // Whoever waits for somebody else's look finds its outcome when it goes again.
        let look = async {
            let turn = self.0.reading.clone().lock_owned().await;
            self.beside(turn, Inner::look).await
        };
        match tokio::time::timeout(READ_WITHIN, look).await {
            Ok(Err(unusable)) => Error::new(error.class(), format!("{}; {}", error.detail(), unusable.detail())),
            Ok(Ok(())) | Err(_) => error,
        }
    }

    /// Does what may block in a thread of its own, which keeps its turn to the end.
    async fn beside<T, F>(&self, turn: OwnedMutexGuard<()>, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&Inner) -> Result<T, Error> + Send + 'static,
    {
        let inner = self.0.clone();
        let done = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work(&inner)
        });
        done.await.unwrap_or_else(|_| Err(Error::new(Class::Internal, "the files were not read to the end")))
    }
}

impl PipeOptions {
    /// The files that a client is built from, for a sentence.
    fn files(&self) -> String {
        let identity = self.client_identity.iter().flat_map(|(certificate, key)| [certificate, key]);
        let named: Vec<_> = self.tls.ca_file.iter().chain(identity).map(|path| path.display().to_string()).collect();
        if named.is_empty() { "the system's CA certificates".to_owned() } else { named.join(", ") }
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
        let pipe = self.clone();
        Box::pin(async move {
            let trust = pipe.trust().await?;
            let built = pipe.0.client(&trust, &exchange.origin)?;
            let response = pipe.0.request(&built.client, &exchange)?.send();
            tokio::pin!(response);
            let response = match tokio::time::timeout(SILENT, &mut response).await {
                Ok(response) => response,
                Err(_) => {
                    pipe.0.start_over(&trust, &exchange.origin, &built);
                    response.await
                }
            };
            let broken = match response {
                Ok(response) => match reply::read(response, exchange.endpoint).await {
                    Ok(reply) => return Ok(reply),
                    Err(error) => error,
                },
                Err(error) => pipe.broken(failure::classify(&error)).await,
            };
            if broken.class() == Class::ConnectionLost {
                pipe.0.start_over(&trust, &exchange.origin, &built);
            }
            Err(broken)
        })
    }
}

// === impl Inner ===

impl Inner {
    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What clients are built from, read now if nobody has done so before.
    fn build(&self) -> Result<Arc<Trust>, Error> {
        let mut files = self.files();
        // Whoever held the lock before may have read it.
        if self.trust.load().is_none() {
            self.renew_client(&mut files)?;
        }
        self.trust.load_full().ok_or_else(|| Class::TrustUnavailable.into())
    }

    /// Another client if the files are others than a while ago.
    fn look(&self) -> Result<(), Error> {
        let mut files = self.files();
        match files.read {
            Some(at) if at.elapsed() < READ_APART => Ok(()),
            _ => self.renew_client(&mut files),
        }
    }

    /// The client for an origin.
    fn client(&self, trust: &Trust, origin: &Arc<str>) -> Result<Arc<Built>, Error> {
        let mut clients = trust.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = clients.get(origin) {
            return Ok(known.clone());
        }
        let client = client::build(trust.tls.clone(), self.options.max_idle)?;
        let built = Arc::new(Built { client, since: Instant::now() });
        if clients.len() < MAX_URLS {
            clients.insert(origin.clone(), built.clone());
        }
        Ok(built)
    }

    /// Leaves the connections of this client to the exchanges that are on them; the next ones get new ones.
    fn start_over(&self, trust: &Trust, origin: &Arc<str>, old: &Arc<Built>) {
        let mut clients = trust.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let is_current = clients.get(origin).is_some_and(|known| Arc::ptr_eq(known, old));
        if is_current && old.since.elapsed() >= OVER_APART {
            clients.remove(origin);
        }
    }

    fn renew_client(&self, files: &mut Files) -> Result<(), Error> {
        files.read = Some(Instant::now());
        let material = Material::read(&self.options)?;
        let fresh = material.mark;
        if files.mark == Some(fresh) {
            return Ok(());
        }
        let roots = material.roots.len();
        let tls = trust::config(material, self.options.tls.server_name.as_deref())?;
        self.trust.store(Some(Arc::new(Trust { tls, clients: Mutex::default() })));
        files.mark = Some(fresh);
        let file = self.options.tls.ca_file.as_deref().map(|path| path.display().to_string());
        let from = file.as_deref().unwrap_or("system");
        tracing::info!(event = events::TRUST_LOADED, from, roots, "trust roots were loaded");
        Ok(())
    }

    fn request(&self, client: &reqwest::Client, exchange: &Exchange) -> Result<reqwest::RequestBuilder, Error> {
        let call = &exchange.call;
        let method = match call.method {
            Method::Get => reqwest::Method::GET,
            Method::Post => reqwest::Method::POST,
        };
        let mut request = client.request(method, self.url(&exchange.origin, &call.path)?).header(REQUEST_MARK, TRUE);
        if call.namespaced && !self.options.namespace.is_empty() {
            request = request.header(NAMESPACE, namespace(&self.options.namespace)?);
        }
        match &call.credential {
            Credential::Token(token) => request = request.header(AUTHORIZATION, bearer(token)?),
            Credential::Anonymous => {}
            // The `token` layer turns this into the token; nothing that lacks one may leave as an anonymous call.
            Credential::Session => {
                return Err(Error::new(Class::Internal, "a call for the session's token came without it"));
            }
        }
        if let Some(trace) = &call.trace {
            // A caller's trace that is no header is the caller's loss, not a reason to fail.
            for (name, value) in [(TRACEPARENT, &trace.parent), (TRACESTATE, &trace.state)] {
                if let (false, Ok(value)) = (value.is_empty(), HeaderValue::from_str(value)) {
                    request = request.header(name, value);
                }
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
        let bad = || Error::new(Class::Internal, format!("{origin} is not the https origin of a URL"));
        let url = Url::parse(&format!("{origin}/v1/{path}")).map_err(|_| bad())?;
        if url.scheme() != "https" {
            return Err(bad());
        }
        if urls.len() < MAX_URLS {
            urls.insert(key, url.clone());
        }
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

/// Never left out because it does not fit: a call without it would go to the root namespace.
fn namespace(text: &str) -> Result<HeaderValue, Error> {
    HeaderValue::from_bytes(text.as_bytes())
        .map_err(|_| Error::new(Class::NamespaceMissing, "the namespace holds characters that no header may"))
}

fn bearer(token: &SecretString) -> Result<HeaderValue, Error> {
    let text = Zeroizing::new(["Bearer ", token.expose_secret()].concat());
    let mut value = HeaderValue::from_str(&text)
        .map_err(|_| Error::new(Class::BadReply, "the token holds characters that no header may"))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{BaoCall, Purpose};

    fn ask(pipe: &Pipe) -> Pin<Box<dyn Future<Output = Result<BaoReply, Error>> + Send>> {
        let call = BaoCall::own(Purpose::Health, Method::Get, "sys/health", Duration::from_secs(60));
        let call = call.with_credential(Credential::Anonymous);
        pipe.clone().call(Exchange { origin: "https://127.0.0.1:1".into(), endpoint: None, call })
    }

    #[test]
    fn files_on_a_volume_that_hangs_hold_up_nobody_else() {
        let certificate = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("ca.pem");
        std::fs::write(&file, certificate.cert.pem()).expect("written");
        let tls = TlsConfig { ca_file: Some(file), server_name: None };
        let options = PipeOptions { tls, namespace: String::new(), client_identity: None, max_idle: 1 };
        let pipe = Pipe::new(options);
        // As a login's thread does that hangs at reading them.
        let files = pipe.0.files();
        // One thread for everybody: whoever blocked it would block this test as well. Two for what blocks.
        let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime");
        runtime.block_on(async {
            let asking: Vec<_> = (0..50).map(|_| tokio::spawn(ask(&pipe))).collect();
            for asked in asking {
                let error = asked.await.expect("no panic").err().expect("no client");
                assert_eq!(error.class(), Class::TrustUnavailable);
                assert!(error.detail().contains("ca.pem") && error.detail().contains("volume"), "{error}");
            }
            let other = tokio::time::timeout(Duration::from_secs(60), tokio::task::spawn_blocking(|| ())).await;
            other.expect("one thread hangs and no more").expect("no panic");
        });
        drop(files);
        let class = || runtime.block_on(ask(&pipe)).err().expect("nobody listens there").class();
        // On a busy machine building a client may take as long as a look is waited for; it is built once.
        assert!((0..30).any(|_| class() == Class::Unreachable), "the files can be read again");
    }
}
