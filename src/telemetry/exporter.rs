//! The OTLP exporter, built from its files and built again when their content changes. A CA file that is missing or wrong
//! at start is a reason that is told, and traces go out as soon as it is right.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::digest;
use opentelemetry_otlp::{WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::runtime::Handle;

use super::config::Otlp;
use super::events;
use crate::files::{self, Secrecy};

/// How long an exporter is used before its files are looked at again.
const LOOK: Duration = Duration::from_secs(10);

/// Exports through whatever the files make; clones share it.
#[derive(Clone, Debug)]
pub(super) struct Exporter(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    config: Otlp,
    resource: Resource,
    /// The export thread is none of the runtime's, and a connection is made on the runtime.
    runtime: Handle,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    looked: Option<Instant>,
    /// Names the content that `built` was made of.
    mark: Vec<u8>,
    built: Option<Arc<opentelemetry_otlp::SpanExporter>>,
}

/// Why traces cannot be exported; calls are not affected.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The CA file cannot be read.
    #[error("telemetry.traces.otlp.caFile: {0}")]
    File(#[from] files::FileError),
    /// The CA file holds something else.
    #[error("telemetry.traces.otlp.caFile: {0}: holds no usable PEM certificate; put the collector's CA there")]
    NoCertificate(PathBuf),
    /// There is nothing to trust.
    #[error("the system has no usable CA certificates; set telemetry.traces.otlp.caFile")]
    NoSystemRoots,
    /// The exporter itself.
    #[error("telemetry.traces.otlp: {0}; correct the endpoint")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
}

// === impl Exporter ===

impl Exporter {
    /// Nothing is read yet. Needs a running tokio runtime.
    pub(super) fn new(config: &Otlp, resource: Resource) -> Self {
        let runtime = Handle::current();
        Self(Arc::new(Shared { config: config.clone(), resource, runtime, state: Mutex::default() }))
    }

    /// What spans go through now. One that was built stays in use while the files are unusable.
    ///
    /// # Errors
    /// When none could be built yet.
    pub(super) fn current(&self) -> Result<Arc<opentelemetry_otlp::SpanExporter>, TraceError> {
        let shared = &self.0;
        let mut state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        let due = state.looked.is_none_or(|at| at.elapsed() >= LOOK);
        match &state.built {
            Some(built) if !due => return Ok(built.clone()),
            _ => state.looked = Some(Instant::now()),
        }
        shared.renew(&mut state).or_else(|error| state.built.clone().ok_or(error))
    }
}

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let exporter = self.current().map_err(|error| OTelSdkError::InternalFailure(error.to_string()))?;
        exporter.export(batch).await
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        let built = self.0.state.lock().unwrap_or_else(PoisonError::into_inner).built.clone();
        built.map_or(Ok(()), |exporter| exporter.shutdown_with_timeout(timeout))
    }
}

// === impl Shared ===

impl Shared {
    fn renew(&self, state: &mut State) -> Result<Arc<opentelemetry_otlp::SpanExporter>, TraceError> {
        let (roots, mark) = if self.config.endpoint.starts_with("https://") {
            let (roots, mark) = self.roots()?;
            (Some(roots), mark)
        } else {
            (None, Vec::new())
        };
        if let Some(built) = state.built.as_ref().filter(|_| state.mark == mark) {
            return Ok(built.clone());
        }
        let mut builder = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_endpoint(self.config.endpoint.as_str())
            .with_timeout(self.config.timeout.get());
        if let Some(store) = roots {
            let file = self.config.ca_file.as_deref().map(|path| path.display().to_string());
            let (from, roots) = (file.as_deref().unwrap_or("system"), store.len());
            tracing::info!(event = events::TRUST_LOADED, from, roots, "trust roots for the collector were loaded");
            let tls = tonic::transport::ClientTlsConfig::new().trust_anchors(store.roots);
            builder = builder.with_tls_config(tls);
        }
        let _entered = self.runtime.enter();
        let mut built = builder.build()?;
        built.set_resource(&self.resource);
        let built = Arc::new(built);
        (state.built, state.mark) = (Some(built.clone()), mark);
        Ok(built)
    }

    /// Trust roots, and a digest that names them.
    fn roots(&self) -> Result<(RootCertStore, Vec<u8>), TraceError> {
        let certificates = match &self.config.ca_file {
            Some(path) => from_file(path)?,
            None => rustls_native_certs::load_native_certs().certs,
        };
        let mut digest = digest::Context::new(&digest::SHA256);
        certificates.iter().for_each(|certificate| digest.update(certificate));
        let mut roots = RootCertStore::empty();
        // Stores hold odd certificates; what cannot be parsed cannot sign the collector's either.
        roots.add_parsable_certificates(certificates);
        if roots.is_empty() {
            return Err(self.config.ca_file.clone().map_or(TraceError::NoSystemRoots, TraceError::NoCertificate));
        }
        Ok((roots, digest.finish().as_ref().to_vec()))
    }
}

fn from_file(path: &Path) -> Result<Vec<CertificateDer<'static>>, TraceError> {
    let pem = files::read(path, Secrecy::Public, files::MAX_PEM)?;
    let list: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    list.map_err(|_| TraceError::NoCertificate(path.to_owned()))
}
