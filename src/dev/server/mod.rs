//! One listening server: TLS on the loopback, in front of a [`State`] that outlives it. Several servers over one state
//! are the nodes of one cluster; stopping and starting one is OpenBao going away and coming back.

mod acl;
mod calls;
mod clock;
mod faults;
mod fields;
mod hcl;
mod health;
mod http;
mod line;
mod login_cert;
mod login_jwt;
mod mounts;
mod namespaces;
mod reply;
mod route;
mod state;
mod sys;
mod tls;
mod token_api;
mod tokens;
mod transit;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;

pub use calls::{Calls, Event};
pub use faults::{Fault, FaultId, Faults};
pub use line::{Flaw, Line};
pub use state::State;

/// The version that the server says it is; its answers are held to this release by the contract.
pub const VERSION: &str = "2.4.0";

/// How to start a server.
#[derive(Default)]
pub struct Options {
    /// TCP port on 127.0.0.1; 0 picks a free one.
    pub port: u16,
    /// The state behind the server; a fresh one when absent.
    pub state: Option<Arc<State>>,
    /// The root token of a fresh state; a random one when absent. Ignored when `state` is given.
    pub root_token: Option<String>,
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The port could not be taken.
    #[error("cannot listen on 127.0.0.1:{port}: {source}")]
    Listen {
        /// The port asked for.
        port: u16,
        /// What the system said.
        source: std::io::Error,
    },
    /// The certificates could not be made.
    #[error("cannot make the server's certificates: {0}")]
    Certificates(#[from] rcgen::Error),
    /// The TLS library refused the certificates.
    #[error("cannot use the server's certificates: {0}")]
    Tls(#[from] rustls::Error),
}

/// A running server. Dropping it ends it at once: the port closes and every connection is cut.
pub struct Server {
    state: Arc<State>,
    shared: Arc<http::Shared>,
    port: u16,
    accepting: JoinHandle<()>,
}

impl Server {
    /// Starts a server and returns when its port accepts connections.
    ///
    /// # Errors
    /// When the port is taken or the certificates cannot be made.
    pub async fn start(options: Options) -> Result<Server, StartError> {
        let state = match options.state {
            Some(state) => state,
            None => State::new(options.root_token)?,
        };
        let tls = state.authority().server_config()?;
        let listener = TcpListener::bind(("127.0.0.1", options.port))
            .await
            .map_err(|source| StartError::Listen { port: options.port, source })?;
        let port = listener.local_addr().map_err(|source| StartError::Listen { port: options.port, source })?.port();
        let shared = Arc::new(http::Shared::new(state.clone(), tls));
        let accepting = tokio::spawn(http::accept(listener, shared.clone()));
        Ok(Server { state, shared, port, accepting })
    }

    /// The base URL, without a slash at the end.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// The port the server listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The certificate authority that signed the server's certificate, as PEM.
    pub fn ca_pem(&self) -> String {
        self.state.ca_pem()
    }

    /// The root token.
    pub fn root_token(&self) -> String {
        self.state.root_token()
    }

    /// The state behind this server, with the hooks that reach every node.
    pub fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// Faults of this node alone; those of the state come after.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// Cuts every connection that is served; new ones are treated so. Returns the authority that signed what they are
    /// shown, as PEM.
    ///
    /// # Errors
    /// When a certificate cannot be made.
    pub fn set_line(&self, line: Line) -> Result<String, StartError> {
        let (tls, pem) = match line {
            Line::Shows(flaw) => self.state.authority().flawed_config(flaw)?,
            _ => (self.state.authority().server_config()?, self.ca_pem()),
        };
        self.shared.wire.set(line, tls);
        Ok(pem)
    }

    /// Makes this node a standby as OpenBao has them since 2.5: it answers reads, encrypt and decrypt itself, from keys as
    /// they were that long ago, and forwards what writes. `None` makes it the active node, as every node is at first.
    pub fn set_standby(&self, behind: Option<Duration>) {
        self.shared.set_standby(behind);
    }

    /// What this node has answered.
    pub fn calls(&self) -> &Calls {
        &self.shared.calls
    }

    /// Closes the port and cuts every connection; returns when both are done. The state lives on.
    pub async fn shutdown(mut self) {
        self.accepting.abort();
        // An aborted task ends with a cancellation error, which is what was asked for.
        let _ = (&mut self.accepting).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}
