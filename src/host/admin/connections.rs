//! Connections of the admin listener: few, short, one request each. So whoever opens many and says nothing takes no
//! descriptor that the KMS sockets need, and keeps nobody out for longer than some seconds.

use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tower::Service;

use super::tls::Identity;

/// Open at once; more wait in the listener's queue.
const MAX_CONNECTIONS: usize = 64;
/// A handshake, and then a request's head, that takes longer is given up.
const HEAD: Duration = Duration::from_secs(5);
/// A connection ends after this long, whatever it is doing.
const WHOLE: Duration = Duration::from_secs(10);
/// Without descriptors an accept fails at once; others must end first.
const PAUSE: Duration = Duration::from_millis(50);

/// Serves until it is dropped, which closes the listener and its connections.
pub(super) async fn serve(listener: TcpListener, identity: Option<Identity>, app: Router) {
    let mut open = JoinSet::new();
    loop {
        while open.len() >= MAX_CONNECTIONS {
            open.join_next().await;
        }
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    open.spawn(timeout(WHOLE, converse(stream, identity.clone(), app.clone())));
                }
                Err(_) => tokio::time::sleep(PAUSE).await,
            },
            Some(_) = open.join_next() => {}
        }
    }
}

async fn converse(stream: TcpStream, identity: Option<Identity>, app: Router) {
    match identity {
        None => answer(stream, app).await,
        Some(identity) => {
            if let Ok(Ok(stream)) = timeout(HEAD, identity.accept(stream)).await {
                answer(stream, app).await;
            }
        }
    }
}

async fn answer(stream: impl AsyncRead + AsyncWrite + Unpin, app: Router) {
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| app.clone().call(request));
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD).keep_alive(false);
    // A client that left or sent something else than HTTP is nobody's trouble.
    let _ = server.serve_connection(TokioIo::new(stream), service).await;
}
