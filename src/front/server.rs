//! Serving a socket: at most sixteen connections of allowed peers, small frames, and so many streams that a storm of
//! calls never parks Status.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;

use super::authority::Repair;
use super::connection::Connection;
use super::service::Kms;
use super::v2::key_management_service_server::KeyManagementServiceServer;
use super::{AllowPeers, Socket, peers};
use crate::key::KeyState;
use crate::request::KmsService;
use crate::telemetry::events;
use crate::telemetry::metrics::PipelineMetrics;

/// kube-apiserver opens one for each `kms:` entry; a few more for probes and overlapping restarts.
const MAX_CONNECTIONS: usize = 16;
/// No KMS v2 message is larger: 32 KiB of annotations and a ciphertext.
const MAX_MESSAGE: usize = 64 * 1024;
/// Streams beyond `limits.maxCalls`, for Status and for calls that are being refused.
const SPARE_STREAMS: usize = 64;
/// So many small frames of waiting calls must not exhaust the connection's window.
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// A dead peer is noticed after this long without an answer to a ping.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// What stands behind a socket.
pub struct Door {
    /// The pipeline's label.
    pub pipeline: Arc<str>,
    /// Answers Status.
    pub key: Arc<KeyState>,
    /// Answers Encrypt and Decrypt.
    pub kms: KmsService,
    /// Instruments.
    pub metrics: Arc<PipelineMetrics>,
    /// Who may connect.
    pub allow_peers: AllowPeers,
    /// `socket.escapedAuthority`.
    pub escaped_authority: bool,
    /// `limits.maxCalls`.
    pub max_calls: usize,
}

/// Serves until `shutdown` resolves and calls in flight have ended. The socket file stays.
pub async fn serve(socket: Socket, door: Door, shutdown: impl Future<Output = ()>) {
    let Socket { listener, lock } = socket;
    let listener = match UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(
                event = events::SOCKET_REFUSED,
                pipeline = &*door.pipeline,
                "the socket cannot be served: {error}"
            );
            return;
        }
    };
    let Door { pipeline, key, kms, metrics, allow_peers, escaped_authority, max_calls } = door;
    let (accepted, incoming) = mpsc::channel(1);
    let gate = Gate {
        pipeline: pipeline.clone(),
        metrics: metrics.clone(),
        allow_peers,
        escaped_authority,
        open: Arc::default(),
        told: None,
    };
    let emptied = accepted.clone();
    let (close, closed) = oneshot::channel::<()>();
    // Ends with this future: a door that nobody serves any more must not take connections.
    let mut accepting = JoinSet::new();
    accepting.spawn(gate.accept(listener, accepted, closed));
    let service = KeyManagementServiceServer::new(Kms { pipeline: pipeline.clone(), key, kms, metrics })
        .max_decoding_message_size(MAX_MESSAGE);
    let streams = u32::try_from(max_calls.saturating_add(SPARE_STREAMS)).unwrap_or(u32::MAX);
    let served = Server::builder()
        .max_concurrent_streams(streams)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .add_service(service)
        .serve_with_incoming_shutdown(ReceiverStream::new(incoming).map(Ok::<_, io::Error>), async {
            shutdown.await;
            // From here on a connection attempt meets a closed door at once instead of waiting in the backlog; whoever
            // came in before is served, and told to go elsewhere with the next call.
            drop(close);
            accepting.join_next().await;
            let _ = emptied.reserve().await;
        })
        .await;
    if let Err(error) = served {
        tracing::error!(event = events::SOCKET_REFUSED, pipeline = &*pipeline, "serving the socket ended: {error}");
    }
    drop(lock);
}

/// Decides which connections come in.
struct Gate {
    pipeline: Arc<str>,
    metrics: Arc<PipelineMetrics>,
    allow_peers: AllowPeers,
    escaped_authority: bool,
    open: Arc<AtomicUsize>,
    told: Option<Instant>,
}

// === impl Gate ===

impl Gate {
    async fn accept(
        mut self,
        listener: UnixListener,
        accepted: mpsc::Sender<Connection>,
        mut closed: oneshot::Receiver<()>,
    ) {
        loop {
            let stream = tokio::select! {
                stream = listener.accept() => stream,
                _ = &mut closed => return,
            };
            let stream = match stream {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors or memory: others may give some back.
                    tracing::warn!(pipeline = &*self.pipeline, "a connection cannot be accepted: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            if let Some(connection) = self.judge(stream)
                && accepted.send(connection).await.is_err()
            {
                return;
            }
        }
    }

    fn judge(&mut self, stream: UnixStream) -> Option<Connection> {
        if !peers::allowed(&stream, &self.allow_peers) {
            self.refuse("its user is in none of socket.allowPeers");
            return None;
        }
        let open = self.open.fetch_add(1, Ordering::Relaxed) + 1;
        let connection =
            Connection::new(stream, Repair::new(self.escaped_authority), self.open.clone(), self.metrics.clone());
        if open > MAX_CONNECTIONS {
            self.refuse("sixteen connections are open already");
            return None;
        }
        self.metrics.set_connections(open);
        Some(connection)
    }

    /// Counts always, tells once a minute.
    fn refuse(&mut self, why: &str) {
        self.metrics.peer_refused();
        if self.told.is_none_or(|told| told.elapsed() >= Duration::from_secs(60)) {
            self.told = Some(Instant::now());
            tracing::warn!(event = events::PEER_REFUSED, pipeline = &*self.pipeline, "a connection is refused: {why}");
        }
    }
}
