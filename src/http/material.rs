//! What the files behind a client hold: trust roots and, for certificate login, the client's identity. They are read here,
//! at run time, so that a missing one is a reason and not an exit; a digest over all of them says whether they changed.

use std::path::Path;

use aws_lc_rs::digest;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::PipeOptions;
use crate::error::{Class, Error};
use crate::files::{self, Secrecy};

/// SHA-256 over the content of every file.
pub(super) type Mark = [u8; 32];

/// Everything that a TLS configuration is made of.
pub(super) struct Material {
    /// Trust roots.
    pub(super) roots: RootCertStore,
    /// The client's chain, leaf first, and its key.
    pub(super) identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    /// Names this content.
    pub(super) mark: Mark,
}

/// Digests several parts so that no two lists of parts look the same.
struct Marker(digest::Context);

// === impl Marker ===

impl Marker {
    fn add(&mut self, part: &[u8]) {
        self.0.update(&(part.len() as u64).to_be_bytes());
        self.0.update(part);
    }

    fn finish(self) -> Mark {
        let mut mark = [0; 32];
        mark.copy_from_slice(self.0.finish().as_ref());
        mark
    }
}

// === impl Material ===

impl Material {
    /// Reads every file that the options name.
    ///
    /// # Errors
    /// `trust_unavailable` for the CA file or the system's roots, `credential_unavailable` for certificate and key. The
    /// detail names the file.
    pub(super) fn read(options: &PipeOptions) -> Result<Self, Error> {
        let mut marker = Marker(digest::Context::new(&digest::SHA256));
        let roots = match options.tls.ca_file.as_deref() {
            Some(path) => from_file(path, &mut marker)?,
            None => from_system(&mut marker)?,
        };
        let identity = match &options.client_identity {
            Some((certificate, key)) => Some(client_identity(certificate, key, &mut marker)?),
            None => None,
        };
        Ok(Self { roots, identity, mark: marker.finish() })
    }
}

fn from_file(path: &Path, marker: &mut Marker) -> Result<RootCertStore, Error> {
    let bad = |what: &str| Error::new(Class::TrustUnavailable, format!("{}: {what}", path.display()));
    let content = files::read(path, Secrecy::Public, files::MAX_PEM)
        .map_err(|error| Error::new(Class::TrustUnavailable, error.to_string()))?;
    marker.add(&content);
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&content) {
        let certificate = certificate.map_err(|_| bad("is not PEM"))?;
        roots.add(certificate).map_err(|_| bad("holds a certificate that cannot be parsed"))?;
    }
    if roots.is_empty() { Err(bad("holds no PEM certificate")) } else { Ok(roots) }
}

fn from_system(marker: &mut Marker) -> Result<RootCertStore, Error> {
    let native = rustls_native_certs::load_native_certs().certs;
    let mut roots = RootCertStore::empty();
    native.iter().for_each(|certificate| marker.add(certificate));
    // System stores hold odd certificates; what cannot be parsed cannot sign OpenBao's either.
    roots.add_parsable_certificates(native);
    if roots.is_empty() {
        let detail = "the system has no usable CA certificates; set backend.transit.tls.caFile";
        return Err(Error::new(Class::TrustUnavailable, detail));
    }
    Ok(roots)
}

fn client_identity(
    certificate: &Path,
    key: &Path,
    marker: &mut Marker,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Error> {
    let unavailable = |error: files::FileError| Error::new(Class::CredentialUnavailable, error.to_string());
    let bad = |path: &Path, what: &str| Error::new(Class::CredentialUnavailable, format!("{}: {what}", path.display()));
    let content = files::read(certificate, Secrecy::Public, files::MAX_PEM).map_err(unavailable)?;
    marker.add(&content);
    let chain = CertificateDer::pem_slice_iter(&content)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| bad(certificate, "is not PEM"))?;
    if chain.is_empty() {
        return Err(bad(certificate, "holds no PEM certificate"));
    }
    let content = files::read(key, Secrecy::Private, files::MAX_PEM).map_err(unavailable)?;
    marker.add(&content);
    let private = PrivateKeyDer::from_pem_slice(&content).map_err(|_| bad(key, "holds no PEM private key"))?;
    Ok((chain, private))
}
