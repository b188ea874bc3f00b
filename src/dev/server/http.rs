//! Connections: TLS, HTTP/1.1 keep-alive, one task each. Faults act here, around the answer; the answer itself comes from
//! [`super::route`].

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::calls::{Calls, Event, operation};
use super::faults::{Fault, Faults};
use super::line::{Line, Wire};
use super::reply::Reply;
use super::route::{self, Call};
use super::state::State;

/// The largest request body: OpenBao's `max_request_size`.
const MAX_BODY: usize = 32 * 1024 * 1024;

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// What the connections of one server share.
pub struct Shared {
    state: Arc<State>,
    pub faults: Faults,
    pub calls: Calls,
    pub wire: Wire,
    standby: Mutex<Option<Duration>>,
}

impl Shared {
    pub fn new(state: Arc<State>, tls: Arc<ServerConfig>) -> Shared {
        Shared {
            state,
            faults: Faults::default(),
            calls: Calls::default(),
            wire: Wire::new(tls),
            standby: Mutex::default(),
        }
    }

    pub fn set_standby(&self, behind: Option<Duration>) {
        *self.standby.lock().unwrap_or_else(PoisonError::into_inner) = behind;
    }

    fn standby(&self) -> Option<Duration> {
        *self.standby.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Accepts connections until the task is aborted; then all of them are cut.
pub async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((tcp, _)) = accepted {
                    connections.spawn(connection(tcp, shared.clone()));
                }
            }
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

async fn connection(tcp: TcpStream, shared: Arc<Shared>) {
    // Without it a small reply waits for the peer's delayed acknowledgement.
    let _ = tcp.set_nodelay(true);
    let mut changed = shared.wire.join();
    let (line, tls) = changed.borrow_and_update().clone();
    if line == Line::SilentBeforeTls {
        return silent(tcp).await;
    }
    let Ok(stream) = TlsAcceptor::from(tls).accept(tcp).await else { return };
    if line == Line::SilentAfterTls {
        return silent(stream).await;
    }
    let peer: Arc<[CertificateDer<'static>]> = stream
        .get_ref()
        .1
        .peer_certificates()
        .unwrap_or_default()
        .iter()
        .map(|cert| cert.clone().into_owned())
        .collect();
    let service = service_fn(move |request| {
        let (shared, peer) = (shared.clone(), peer.clone());
        async move { handle(request, &shared, peer).await }
    });
    let served = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    // How a connection ends is the client's business or a fault's.
    tokio::select! {
        _ = served => {}
        _ = changed.changed() => {}
    }
}

/// Keeps a connection open and does nothing with it.
async fn silent<T>(_open: T) {
    std::future::pending().await
}

/// A fault that ends the connection.
#[derive(Debug, thiserror::Error)]
#[error("cut on purpose")]
struct Cut;

async fn handle(
    request: Request<Incoming>,
    shared: &Shared,
    peer: Arc<[CertificateDer<'static>]>,
) -> Result<Response<Body>, Cut> {
    let started = Instant::now();
    let (head, body) = request.into_parts();
    let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let path = head.uri.path().strip_prefix("/v1/").unwrap_or(head.uri.path()).to_owned();
    let kind = operation(head.method.as_str(), &path);
    let state = &shared.state;
    shared.calls.count(&kind);
    state.calls.count(&kind);

    let bearer = header("authorization").and_then(|value| value.strip_prefix("Bearer ").map(str::to_owned));
    let namespace = header("x-vault-namespace");
    let traceparent = header("traceparent").unwrap_or_default();
    let mut call = Call {
        method: head.method.as_str().to_owned(),
        uri_path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        content_type: header("content-type").unwrap_or_default(),
        token: header("x-vault-token").or(bearer).filter(|token| !token.is_empty()),
        namespace: namespace.clone(),
        body: Bytes::new(),
        peer,
        standby: shared.standby(),
    };

    let fault = shared.faults.take(&path).or_else(|| state.faults.take(&path));
    let event = |status: u16| {
        let event = Event {
            method: call.method.clone(),
            path: path.clone(),
            namespace: namespace.clone().unwrap_or_default(),
            operation: kind.clone(),
            traceparent: traceparent.clone(),
            status,
            elapsed: started.elapsed(),
        };
        shared.calls.tell(&event);
        state.calls.tell(&event);
    };
    let instead = match &fault {
        Some(Fault::Reply { status, body }) => Some(Reply { status: *status, body: body.clone() }),
        Some(Fault::Limited(_)) => {
            Some(Reply::plain(429, format!("request path \"{path}\": rate limit quota exceeded")))
        }
        Some(Fault::Huge(size)) => Some(Reply { status: 200, body: huge(*size) }),
        Some(Fault::Malformed) => Some(Reply { status: 200, body: "{\"data\":{\"ciphertext\":\"vau".into() }),
        Some(Fault::Reset) => {
            event(0);
            return Err(Cut);
        }
        Some(Fault::Hang) => {
            event(0);
            return std::future::pending().await;
        }
        Some(Fault::Redirect(base)) => {
            event(307);
            let rest = head.uri.path_and_query().map_or("", |full| full.as_str());
            let mut response = respond(Reply { status: 307, body: String::new() }, state, namespace.as_deref());
            if let Ok(location) = format!("{}{rest}", base.trim_end_matches('/')).parse() {
                response.headers_mut().insert(header::LOCATION, location);
            }
            return Ok(response);
        }
        Some(Fault::Delay(time)) => {
            tokio::time::sleep(*time).await;
            None
        }
        _ => None,
    };
    let read = Limited::new(body, MAX_BODY).collect().await;
    let reply = match (instead, read) {
        (Some(reply), _) => reply,
        (None, Ok(read)) => {
            call.body = read.to_bytes();
            let items = items(&kind, &call.body);
            shared.calls.carried(&kind, items);
            state.calls.carried(&kind, items);
            route::answer(state, &call)
        }
        (None, Err(error)) if error.is::<LengthLimitError>() => Reply::plain(413, "error parsing JSON"),
        (None, Err(_)) => {
            event(0);
            return Err(Cut);
        }
    };
    event(reply.status);
    let mut response = respond(reply, state, namespace.as_deref());
    Ok(match fault {
        Some(Fault::Limited(Some(seconds))) => {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
            response
        }
        Some(Fault::ResetMidBody) => broken(response, false),
        Some(Fault::HangMidBody) => broken(response, true),
        Some(Fault::WrongKeyVersion(version)) => renumbered(response, version).await,
        _ => response,
    })
}

fn respond(reply: Reply, state: &State, namespace: Option<&str>) -> Response<Body> {
    let status = reply.status;
    let body = Full::new(Bytes::from(reply.body)).map_err(|never: Infallible| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    headers.insert(
        header::STRICT_TRANSPORT_SECURITY,
        header::HeaderValue::from_static("max-age=31536000; includeSubDomains"),
    );
    if let Ok(date) = httpdate::fmt_http_date(state.clock.now()).parse() {
        headers.insert(header::DATE, date);
    }
    if let Some(Ok(namespace)) = namespace.map(str::parse) {
        headers.insert("x-vault-namespace", namespace);
    }
    if status == 413 {
        headers.insert(header::CONNECTION, header::HeaderValue::from_static("close"));
    }
    response
}

/// How many pieces of work a body holds. No value can hold the quotes that stand around a name, so the names are counted
/// and the body is not parsed a second time.
fn items(kind: &str, body: &[u8]) -> u64 {
    let name: &[u8] = match kind {
        "transit/encrypt" => b"\"plaintext\":",
        "transit/decrypt" => b"\"ciphertext\":",
        _ => return 0,
    };
    body.windows(name.len()).filter(|part| *part == name).count() as u64
}

/// The head and half a body; then the connection is cut, or nothing more comes.
fn broken(response: Response<Body>, hang: bool) -> Response<Body> {
    let (head, _) = response.into_parts();
    let first = tokio_stream::once(Ok(Frame::data(Bytes::from_static(b"{\"request_id\":\""))));
    let rest = StreamBody::new(tokio_stream::StreamExt::chain(first, Stuck { hang }));
    Response::from_parts(head, rest.boxed_unsync())
}

/// A stream that never ends, or ends with an error.
struct Stuck {
    hang: bool,
}

impl tokio_stream::Stream for Stuck {
    type Item = Result<Frame<Bytes>, io::Error>;

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        if self.hang {
            return std::task::Poll::Pending;
        }
        std::task::Poll::Ready(Some(Err(io::Error::other(Cut))))
    }
}

async fn renumbered(response: Response<Body>, version: u64) -> Response<Body> {
    let (head, body) = response.into_parts();
    let bytes = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let mut text = String::from_utf8_lossy(&bytes).into_owned();
    if let Some(at) = text.find("\"key_version\":") {
        let from = at + "\"key_version\":".len();
        let to = text[from..].find(|c: char| !c.is_ascii_digit()).map_or(text.len(), |len| from + len);
        text.replace_range(from..to, &version.to_string());
    }
    let body = Full::new(Bytes::from(text)).map_err(|never: Infallible| match never {}).boxed_unsync();
    Response::from_parts(head, body)
}

fn huge(size: usize) -> String {
    const HEAD: &str = "{\"data\":{\"filler\":\"";
    format!("{HEAD}{}\"}}}}\n", "x".repeat(size.saturating_sub(HEAD.len() + 4)))
}
