//! One connection: counted while it is open, repaired as it is read, and closed so that its caller learns why. One that
//! does not begin to speak is closed after a while, because each takes one of few places.
//!
//! A caller that writes to a socket which is gone meets a broken pipe before it reads which of its calls were never begun;
//! so our half closes first, and what still comes is read and dropped for a moment.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};
use tonic::transport::server::Connected;

use super::authority::Repair;
use super::{Rules, peers};
use crate::telemetry::metrics::PipelineMetrics;

/// How long a caller may take to send the preface and the head of its first frame.
const BEGIN_WITHIN: Duration = Duration::from_secs(5);
/// The preface has 24 bytes, the head of a frame nine (RFC 9113, sections 3.4 and 4.1).
const BEGINNING: usize = 24 + 9;
/// How long a caller may take to close its half.
const LINGER: Duration = Duration::from_millis(500);
/// What is dropped meanwhile at most: more than the connection's window is not what was on its way.
const LINGER_BYTES: usize = 8 * 1024 * 1024;

/// A connection that is counted until it closes.
pub(super) struct Connection {
    stream: UnixStream,
    repair: Repair,
    rules: watch::Receiver<Rules>,
    open: Arc<AtomicUsize>,
    metrics: Arc<PipelineMetrics>,
    /// Until the caller has begun to speak.
    beginning: Option<Beginning>,
    /// Set once our half is closed.
    linger: Option<Linger>,
}

/// What is still to come, and until when.
struct Beginning {
    bytes: usize,
    timer: Pin<Box<Sleep>>,
}

/// The time and the bytes that are left to the caller.
struct Linger {
    bytes: usize,
    timer: Pin<Box<Sleep>>,
}

// === impl Connection ===

impl Connection {
    /// One more of the `open` ones, under the rules as they are and as they will be.
    pub(super) fn new(
        stream: UnixStream,
        rules: watch::Receiver<Rules>,
        open: Arc<AtomicUsize>,
        metrics: Arc<PipelineMetrics>,
    ) -> Self {
        open.fetch_add(1, Ordering::Relaxed);
        metrics.connected();
        // Not marked as seen: what has changed since the caller was judged at the door is judged with its first byte.
        let repair = Repair::new(rules.borrow().escaped_authority);
        let beginning = Beginning { bytes: BEGINNING, timer: Box::pin(tokio::time::sleep(BEGIN_WITHIN)) };
        Self { stream, repair, rules, open, metrics, beginning: Some(beginning), linger: None }
    }

    /// Whether the caller may go on after a change of the rules.
    fn judge(&mut self) -> io::Result<()> {
        // Without anybody who could change them they stay as they are.
        if !self.rules.has_changed().unwrap_or(false)
            || peers::allowed(&self.stream, &self.rules.borrow_and_update().allow_peers)
        {
            return Ok(());
        }
        self.metrics.peer_refused();
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        self.metrics.disconnected();
    }
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.judge()?;
        let before = buf.filled().len();
        let Self { stream, repair, beginning, metrics, .. } = &mut *self;
        let read = repair.poll_read(stream, cx, buf);
        let Some(awaited) = beginning else {
            return read;
        };
        if read.is_pending() {
            ready!(awaited.timer.as_mut().poll(cx));
            metrics.peer_silent();
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        awaited.bytes = awaited.bytes.saturating_sub(buf.filled().len() - before);
        if awaited.bytes == 0 {
            *beginning = None;
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stream, linger, .. } = &mut *self;
        let linger = match linger {
            Some(linger) => linger,
            None => {
                ready!(Pin::new(&mut *stream).poll_shutdown(cx))?;
                linger.insert(Linger { bytes: LINGER_BYTES, timer: Box::pin(tokio::time::sleep(LINGER)) })
            }
        };
        let mut space = [0; 4096];
        // By the clock as well: whoever floods us uses up what a task may do in one turn, and a timer that is asked then
        // never fires.
        while linger.bytes > 0 && Instant::now() < linger.timer.deadline() {
            let mut rest = ReadBuf::new(&mut space);
            match Pin::new(&mut *stream).poll_read(cx, &mut rest) {
                Poll::Ready(Ok(())) if !rest.filled().is_empty() => {
                    linger.bytes = linger.bytes.saturating_sub(rest.filled().len());
                }
                // The caller has closed its half too, or there is nothing more to wait for.
                Poll::Ready(_) => break,
                Poll::Pending => return linger.timer.as_mut().poll(cx).map(Ok),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::front::AllowPeers;

    fn connection(stream: UnixStream, allow_peers: AllowPeers) -> (Connection, watch::Sender<Rules>) {
        let (rules, receiver) = watch::channel(Rules { allow_peers, escaped_authority: true });
        (Connection::new(stream, receiver, Arc::default(), PipelineMetrics::new()), rules)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_caller_that_floods_us_does_not_keep_a_closed_connection() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let (mut connection, _rules) = connection(ours, AllowPeers::default());
        let mut theirs = theirs.into_std().expect("a socket");
        theirs.set_nonblocking(false).expect("blocking");
        let flood = std::thread::spawn(move || {
            let mut sent = 0;
            while let Ok(count) = theirs.write(&[7; 64 * 1024]) {
                sent += count;
            }
            sent
        });
        let closed = tokio::time::timeout(Duration::from_secs(10), connection.shutdown()).await;
        closed.expect("it ends").expect("closed");
        drop(connection);
        assert!(flood.join().expect("the caller's thread") > 0);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_begins_may_be_silent_afterwards_and_nobody_before() {
        let begun = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat();
        for (sent, ends) in [(0, true), (24, true), (32, true), (33, false)] {
            let (ours, mut theirs) = UnixStream::pair().expect("a pair");
            let (mut connection, _rules) = connection(ours, AllowPeers::default());
            theirs.write_all(&begun[..sent]).await.expect("sent");
            let outcome = tokio::time::timeout(BEGIN_WITHIN * 2, async {
                let mut byte = [0; 64];
                while connection.read(&mut byte).await? > 0 {}
                Ok::<_, io::Error>(())
            });
            match outcome.await {
                Ok(read) => assert!(ends && read.is_err_and(|e| e.kind() == io::ErrorKind::TimedOut), "{sent} bytes"),
                Err(_) => assert!(!ends, "{sent} bytes"),
            }
        }
    }

    #[tokio::test]
    async fn a_rule_that_changes_while_a_caller_comes_in_holds_for_its_first_byte() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        // As the door has it when it judges.
        let (rules, judged) = watch::channel(Rules { allow_peers: AllowPeers::default(), escaped_authority: true });
        rules.send_modify(|rules| rules.allow_peers.uids = vec![rustix::process::geteuid().as_raw() + 1]);
        let mut connection = Connection::new(ours, judged, Arc::default(), PipelineMetrics::new());
        theirs.write_all(b"a").await.expect("sent");
        let refused = connection.read_u8().await.expect_err("shut out");
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
    }

    #[tokio::test]
    async fn a_rule_that_shuts_a_caller_out_holds_for_its_next_byte() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        let (mut connection, rules) = connection(ours, AllowPeers::default());
        theirs.write_all(b"ab").await.expect("sent");
        assert_eq!(connection.read_u8().await.expect("allowed"), b'a');
        rules.send_modify(|rules| rules.allow_peers.uids = vec![rustix::process::geteuid().as_raw() + 1]);
        let refused = connection.read_u8().await.expect_err("shut out");
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
    }
}
