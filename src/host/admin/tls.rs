//! TLS for the admin listener: a client certificate of the configured CA, or no connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::Tls;
use crate::files::{self, Secrecy};

/// A handshake that takes longer is given up.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// Hands out connections whose client has shown its certificate.
pub(super) struct Listener {
    ready: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    address: SocketAddr,
    /// Ends with this value, and the port with it.
    _accepting: JoinSet<()>,
}

// === impl Listener ===

impl Listener {
    pub(super) fn new(listener: TcpListener, files: &Tls) -> Result<Self, String> {
        let acceptor = TlsAcceptor::from(Arc::new(server_config(files)?));
        let address = listener.local_addr().map_err(|error| error.to_string())?;
        let (sender, ready) = mpsc::channel(16);
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            loop {
                let Ok((stream, peer)) = listener.accept().await else {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                };
                let (acceptor, sender) = (acceptor.clone(), sender.clone());
                // Each handshake on its own, so that a slow client keeps nobody out.
                tokio::spawn(async move {
                    if let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                        // The listener is gone: so is the need for this connection.
                        let _ = sender.send((stream, peer)).await;
                    }
                });
            }
        });
        Ok(Self { ready, address, _accepting: accepting })
    }
}

impl axum::serve::Listener for Listener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some(connection) => connection,
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        Ok(self.address)
    }
}

fn server_config(config: &Tls) -> Result<ServerConfig, String> {
    let read =
        |path: &std::path::Path, secrecy| files::read(path, secrecy, files::MAX_PEM).map_err(|error| error.to_string());
    let certificates = |pem: &[u8], path: &std::path::Path| {
        let list: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
        list.map_err(|_| format!("{}: not PEM", path.display()))
    };
    let mut roots = RootCertStore::empty();
    for ca in certificates(&read(&config.client_ca_file, Secrecy::Public)?, &config.client_ca_file)? {
        roots.add(ca).map_err(|error| format!("{}: {error}", config.client_ca_file.display()))?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|error| format!("{}: {error}", config.client_ca_file.display()))?;
    let chain = certificates(&read(&config.cert_file, Secrecy::Public)?, &config.cert_file)?;
    let key = PrivateKeyDer::from_pem_slice(&read(&config.key_file, Secrecy::Private)?)
        .map_err(|_| format!("{}: no PEM private key", config.key_file.display()))?;
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_client_cert_verifier(verifier).with_single_cert(chain, key))
        .map_err(|error| error.to_string())
}
