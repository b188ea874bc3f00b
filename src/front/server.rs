//! Serving a socket: at most sixteen connections of allowed peers, small frames, and so many streams that a storm of
//! calls never parks Status.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;

use super::connection::Connection;
use super::quiet::Quiet;
use super::service::Kms;
use super::v2::key_management_service_server::KeyManagementServiceServer;
use super::{Rules, Socket, peers};
use crate::key::KeyState;
use crate::request::KmsService;
use crate::telemetry::events;
use crate::telemetry::metrics::PipelineMetrics;

/// kube-apiserver opens one for each `kms:` entry; a few more for probes and overlapping restarts.
const MAX_CONNECTIONS: usize = 16;
/// No KMS v2 message is larger: 32 KiB of annotations and a ciphertext.
const MAX_MESSAGE: usize = 64 * 1024;
/// A connection has room for so many calls at least, because the room is fixed when it is made, and a reload may raise
/// `limits.maxCalls` later.
const LEAST_ROOM: usize = 8192;
/// A call may take this long at least, for the same reason: a reload may raise `deadline.max`.
const LEAST_PATIENCE: Duration = Duration::from_secs(300);
/// What a call may need beyond `layers.deadline.max` until its answer has left.
pub const PARTING: Duration = Duration::from_secs(1);
/// Streams beyond the room for calls, for Status and for calls that are being refused.
const SPARE_STREAMS: usize = 64;
/// So many calls may be taken back before the program, which stood still, has looked at them; with one more the connection
/// would end, and every call on it. An API server has 600 requests under way at once (the defaults of its flags
/// `--max-requests-inflight` and `--max-mutating-requests-inflight`). Measured: 1.3 KiB each.
const TAKEN_BACK: usize = 1024;
/// So many small frames of waiting calls must not exhaust the connection's window.
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// A dead peer is noticed after this long without an answer to a ping.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// What stands behind a socket.
#[derive(Clone)]
pub struct Door {
    /// The pipeline's label.
    pub pipeline: Arc<str>,
    /// Answers Status.
    pub key: Arc<KeyState>,
    /// Answers Encrypt and Decrypt.
    pub kms: KmsService,
    /// Instruments.
    pub metrics: Arc<PipelineMetrics>,
    /// What it asks of its callers.
    pub rules: watch::Receiver<Rules>,
    /// What a connection gives its calls.
    pub bounds: Bounds,
}

/// What a connection gives its calls: fixed when it is made, so wider than the settings that it is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// How many it has room for.
    room: usize,
    /// How long one may take. The stack ends what has come to it long before; this is for a call whose message never comes.
    patience: Duration,
}

/// Serves until `shutdown` resolves and calls in flight have ended. The socket file stays; listener and lock are let go as
/// soon as the door closes, so that nobody has to wait for its last call.
///
/// # Errors
/// When the socket cannot be served, or no longer.
pub async fn serve(socket: Socket, door: Door, shutdown: impl Future<Output = ()>) -> io::Result<()> {
    let Socket { listener, lock } = socket;
    let listener = UnixListener::from_std(listener)?;
    let Door { pipeline, key, kms, metrics, rules, bounds } = door;
    let (accepted, incoming) = mpsc::channel(1);
    let gate = Gate {
        pipeline: pipeline.clone(),
        metrics: metrics.clone(),
        rules,
        open: Arc::default(),
        refusals: Quiet::default(),
        failures: Quiet::default(),
    };
    let emptied = accepted.clone();
    let (close, closed) = oneshot::channel::<()>();
    // Ends with this future: a door that nobody serves any more must not take connections.
    let mut accepting = JoinSet::new();
    accepting.spawn(async move {
        gate.accept(listener, accepted, closed).await;
        // After the listener: whoever has the lock may find the door closed.
        drop(lock);
    });
    let service =
        KeyManagementServiceServer::new(Kms { pipeline, key, kms, metrics }).max_decoding_message_size(MAX_MESSAGE);
    let streams = u32::try_from(bounds.room.saturating_add(SPARE_STREAMS)).unwrap_or(u32::MAX);
    let mut asked = false;
    let served = Server::builder()
        .max_concurrent_streams(streams)
        .http2_max_pending_accept_reset_streams(Some(TAKEN_BACK))
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .timeout(bounds.patience)
        .add_service(service)
        .serve_with_incoming_shutdown(ReceiverStream::new(incoming).map(Ok::<_, io::Error>), async {
            tokio::select! {
                () = shutdown => asked = true,
                // Only a defect ends it.
                _ = accepting.join_next() => {}
            }
            // From here on a connection attempt meets a closed door at once instead of waiting in the backlog; whoever
            // came in before is served, and told to go elsewhere with the next call.
            drop(close);
            accepting.join_next().await;
            let _ = emptied.reserve().await;
        })
        .await;
    served.map_err(io::Error::other)?;
    if asked { Ok(()) } else { Err(io::Error::other("connections were accepted no longer")) }
}

/// Decides which connections come in.
struct Gate {
    pipeline: Arc<str>,
    metrics: Arc<PipelineMetrics>,
    rules: watch::Receiver<Rules>,
    open: Arc<AtomicUsize>,
    refusals: Quiet,
    failures: Quiet,
}

// === impl Bounds ===

impl Bounds {
    /// Under this `limits.maxCalls` and `deadline.max`.
    pub fn of(max_calls: usize, longest: Duration) -> Self {
        Self { room: max_calls.max(LEAST_ROOM), patience: (longest + PARTING).max(LEAST_PATIENCE) }
    }

    /// The settings, as key paths below the pipeline, that need wider bounds than these.
    pub fn too_narrow_for(self, asked: Self) -> impl Iterator<Item = &'static str> {
        let rows = [
            ("layers.limits.maxCalls", asked.room > self.room),
            ("layers.deadline.max", asked.patience > self.patience),
        ];
        rows.into_iter().filter(|(_, narrow)| *narrow).map(|(path, _)| path)
    }
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
                    if self.failures.tells() {
                        let pipeline = &*self.pipeline;
                        tracing::warn!(
                            event = events::PEER_REFUSED,
                            pipeline,
                            "connections cannot be accepted for now: {error}"
                        );
                    }
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
        if !peers::allowed(&stream, &self.rules.borrow().allow_peers) {
            self.refuse("its user is in none of socket.allowPeers");
            return None;
        }
        // Nobody else adds to them.
        if self.open.load(Ordering::Relaxed) >= MAX_CONNECTIONS {
            self.refuse("sixteen connections are open already");
            return None;
        }
        Some(Connection::new(stream, self.rules.clone(), self.open.clone(), self.metrics.clone()))
    }

    /// Counts always, tells once a minute.
    fn refuse(&mut self, why: &str) {
        self.metrics.peer_refused();
        if self.refusals.tells() {
            tracing::warn!(event = events::PEER_REFUSED, pipeline = &*self.pipeline, "a connection is refused: {why}");
        }
    }
}
