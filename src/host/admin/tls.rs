//! TLS for the admin listener: a client certificate of the configured CA, or no connection. The files are read again by
//! content, so that a renewed certificate or CA needs no restart; files that cannot be used change nothing and are told.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::digest;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use zeroize::Zeroizing;

use super::Tls;
use crate::files::{self, Secrecy};
use crate::telemetry::events;

/// The files are read for a connection no more often than this.
const LOOK: Duration = Duration::from_secs(1);

/// Who the listener is, and whom it lets in; clones share it.
#[derive(Clone)]
pub(super) struct Identity(Arc<Shared>);

struct Shared {
    files: Tls,
    state: Mutex<State>,
}

struct State {
    config: Arc<ServerConfig>,
    mark: Vec<u8>,
    looked: Instant,
    /// Somebody reads the files; a disk that hangs holds up that one alone.
    looking: bool,
    /// What was told of files that cannot be used.
    told: Option<String>,
}

/// What the files hold.
struct Material {
    certificate: Zeroizing<Vec<u8>>,
    key: Zeroizing<Vec<u8>>,
    clients: Zeroizing<Vec<u8>>,
}

// === impl Identity ===

impl Identity {
    /// Of the files as they are now.
    ///
    /// # Errors
    /// With the file and what is wrong with it.
    pub(super) fn load(files: Tls) -> Result<Self, String> {
        let material = Material::read(&files)?;
        let (config, mark) = (Arc::new(material.config(&files)?), material.mark());
        let state = State { config, mark, looked: Instant::now(), looking: false, told: None };
        Ok(Self(Arc::new(Shared { files, state: Mutex::new(state) })))
    }

    /// Takes a client in that shows its certificate.
    pub(super) async fn accept(&self, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        if self.0.is_due() {
            let shared = self.0.clone();
            // A look that panicked leaves what was there before in use.
            let _ = tokio::task::spawn_blocking(move || shared.look()).await;
        }
        let config = self.0.state().config.clone();
        TlsAcceptor::from(config).accept(stream).await
    }
}

// === impl Shared ===

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_due(&self) -> bool {
        let mut state = self.state();
        let due = !state.looking && state.looked.elapsed() >= LOOK;
        state.looking |= due;
        due
    }

    fn look(&self) {
        let fresh = Material::read(&self.files).and_then(|material| {
            let mark = material.mark();
            let known = self.state().mark == mark;
            Ok(if known { None } else { Some((material.config(&self.files)?, mark)) })
        });
        let mut state = self.state();
        (state.looked, state.looking) = (Instant::now(), false);
        match fresh {
            Ok(None) => state.told = None,
            Ok(Some((config, mark))) => {
                (state.config, state.mark, state.told) = (Arc::new(config), mark, None);
                tracing::info!(
                    event = events::TRUST_LOADED,
                    from = "admin.tls",
                    "the admin listener's files were renewed"
                );
            }
            Err(why) if state.told.as_ref() == Some(&why) => {}
            Err(why) => {
                tracing::warn!(
                    event = events::ADMIN_TROUBLE,
                    "admin.tls cannot be renewed, what was read before stays in use: {why}"
                );
                state.told = Some(why);
            }
        }
    }
}

// === impl Material ===

impl Material {
    fn read(files: &Tls) -> Result<Self, String> {
        let read = |path: &Path, secrecy| files::read(path, secrecy, files::MAX_PEM).map_err(|error| error.to_string());
        Ok(Self {
            certificate: read(&files.cert_file, Secrecy::Public)?,
            key: read(&files.key_file, Secrecy::Private)?,
            clients: read(&files.client_ca_file, Secrecy::Public)?,
        })
    }

    /// Names this content.
    fn mark(&self) -> Vec<u8> {
        let mut context = digest::Context::new(&digest::SHA256);
        for part in [&self.certificate, &self.key, &self.clients] {
            context.update(&part.len().to_be_bytes());
            context.update(part);
        }
        context.finish().as_ref().to_vec()
    }

    fn config(&self, files: &Tls) -> Result<ServerConfig, String> {
        let certificates = |pem: &[u8], path: &Path| {
            let list: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
            list.map_err(|_| format!("{}: not PEM", path.display()))
        };
        let mut roots = RootCertStore::empty();
        for ca in certificates(&self.clients, &files.client_ca_file)? {
            roots.add(ca).map_err(|error| format!("{}: {error}", files.client_ca_file.display()))?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .map_err(|error| format!("{}: {error}", files.client_ca_file.display()))?;
        let chain = certificates(&self.certificate, &files.cert_file)?;
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|_| format!("{}: no PEM private key", files.key_file.display()))?;
        ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_client_cert_verifier(verifier).with_single_cert(chain, key))
            .map_err(|error| format!("{}: {error}", files.cert_file.display()))
    }
}
