//! What a connection meets before any request: silence, or a certificate that is no good. A change cuts the connections
//! that are served; those that met silence stay silent for ever, as half-open ones do.

use std::sync::Arc;

use rustls::ServerConfig;
use tokio::sync::watch;

/// How a server treats new connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Line {
    /// TLS and HTTP, as it should be.
    #[default]
    Open,
    /// TCP is accepted, then nothing: not a byte of TLS.
    SilentBeforeTls,
    /// The handshake succeeds, then nothing is read or answered.
    SilentAfterTls,
    /// The handshake shows a certificate that no client should take.
    Shows(Flaw),
}

/// What is wrong with a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// It ended years ago.
    Expired,
    /// It is for another host.
    OtherName,
    /// An authority of its own signed it.
    OtherAuthority,
}

/// A line, with the TLS that goes with it.
type Shown = (Line, Arc<ServerConfig>);

/// What the connections of one server watch.
pub struct Wire {
    now: watch::Sender<Shown>,
}

// === impl Wire ===

impl Wire {
    /// An open line.
    pub fn new(tls: Arc<ServerConfig>) -> Wire {
        Wire { now: watch::Sender::new((Line::Open, tls)) }
    }

    /// Cuts what is served; connections from now on are treated so.
    pub fn set(&self, line: Line, tls: Arc<ServerConfig>) {
        self.now.send_replace((line, tls));
    }

    /// How a new connection is treated; it changes when that does.
    pub fn join(&self) -> watch::Receiver<Shown> {
        self.now.subscribe()
    }
}
