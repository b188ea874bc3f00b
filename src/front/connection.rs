//! One connection: counted while it is open, repaired as it is read, and closed so that its caller learns why. A caller
//! that writes to a socket which is gone meets a broken pipe before it reads which of its calls were never begun; so our
//! half closes first, and what still comes is read and dropped for a moment.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::Sleep;
use tonic::transport::server::Connected;

use super::authority::Repair;
use crate::telemetry::metrics::PipelineMetrics;

/// How long a caller may take to close its half.
const LINGER: Duration = Duration::from_millis(500);

/// A connection that is counted until it closes.
pub(super) struct Connection {
    stream: UnixStream,
    repair: Repair,
    open: Arc<AtomicUsize>,
    metrics: Arc<PipelineMetrics>,
    /// Set once our half is closed.
    linger: Option<Pin<Box<Sleep>>>,
}

// === impl Connection ===

impl Connection {
    /// One more of the `open` ones.
    pub(super) fn new(
        stream: UnixStream,
        repair: Repair,
        open: Arc<AtomicUsize>,
        metrics: Arc<PipelineMetrics>,
    ) -> Self {
        Self { stream, repair, open, metrics, linger: None }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let left = self.open.fetch_sub(1, Ordering::Relaxed) - 1;
        self.metrics.set_connections(left);
    }
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, repair, .. } = &mut *self;
        repair.poll_read(stream, cx, buf)
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
        let timer = match linger {
            Some(timer) => timer,
            None => {
                ready!(Pin::new(&mut *stream).poll_shutdown(cx))?;
                linger.insert(Box::pin(tokio::time::sleep(LINGER)))
            }
        };
        let mut space = [0; 1024];
        loop {
            let mut rest = ReadBuf::new(&mut space);
            match Pin::new(&mut *stream).poll_read(cx, &mut rest) {
                Poll::Ready(Ok(())) if !rest.filled().is_empty() => {}
                // The caller has closed its half too, or there is nothing more to wait for.
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => return timer.as_mut().poll(cx).map(Ok),
            }
        }
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
