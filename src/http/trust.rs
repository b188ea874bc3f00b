//! The TLS side of the client: trust roots from a file or the system, an optional name to insist on, an optional client
//! identity. Files are read here, at run time, so that a missing one is a reason and not an exit.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::pipe::PipeOptions;
use crate::error::{Class, Error};
use crate::files::{self, Secrecy};

/// What the files held, to see whether a client must be built anew.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Material {
    ca: Option<zeroize::Zeroizing<Vec<u8>>>,
    identity: Option<(zeroize::Zeroizing<Vec<u8>>, zeroize::Zeroizing<Vec<u8>>)>,
}

/// Checks certificates against one configured name, whatever host was dialled.
#[derive(Debug)]
struct NamedVerifier {
    name: ServerName<'static>,
    inner: Arc<WebPkiServerVerifier>,
}

// === impl Material ===

impl Material {
    /// Reads every file that the options name.
    pub(super) fn read(options: &PipeOptions) -> Result<Self, Error> {
        let public = |path: &std::path::Path, class| {
            files::read(path, Secrecy::Public, files::MAX_PEM).map_err(|error| Error::new(class, error.to_string()))
        };
        let ca = options.tls.ca_file.as_deref().map(|path| public(path, Class::TrustUnavailable)).transpose()?;
        let identity = options.client_identity.as_ref().map(|(certificate, key)| {
            let certificate = public(certificate, Class::CredentialUnavailable)?;
            let key = files::read(key, Secrecy::Private, files::MAX_PEM)
                .map_err(|error| Error::new(Class::CredentialUnavailable, error.to_string()))?;
            Ok::<_, Error>((certificate, key))
        });
        Ok(Self { ca, identity: identity.transpose()? })
    }

    /// The TLS configuration that the material makes.
    pub(super) fn tls(&self, options: &PipeOptions) -> Result<ClientConfig, Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let roots = Arc::new(self.roots(options)?);
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|error| Error::new(Class::Internal, error.to_string()))?;
        let builder = match &options.tls.server_name {
            None => builder.with_root_certificates(roots),
            Some(name) => {
                let trust = |error: &dyn std::fmt::Display| Error::new(Class::TrustUnavailable, error.to_string());
                let inner = WebPkiServerVerifier::builder_with_provider(roots, provider)
                    .build()
                    .map_err(|error| trust(&error))?;
                let name = ServerName::try_from(name.clone()).map_err(|error| trust(&error))?;
                builder.dangerous().with_custom_certificate_verifier(Arc::new(NamedVerifier { name, inner }))
            }
        };
        let Some((certificate, key)) = &self.identity else {
            return Ok(builder.with_no_client_auth());
        };
        let bad = |what: &str| Error::new(Class::CredentialUnavailable, what.to_owned());
        let chain = CertificateDer::pem_slice_iter(certificate)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| bad("the client certificate file is not PEM"))?;
        if chain.is_empty() {
            return Err(bad("the client certificate file holds no certificate"));
        }
        let key =
            PrivateKeyDer::from_pem_slice(key).map_err(|_| bad("the client key file holds no PEM private key"))?;
        builder.with_client_auth_cert(chain, key).map_err(|_| {
            bad("the client certificate and key do not belong together or are of a kind that TLS does not know")
        })
    }

    fn roots(&self, options: &PipeOptions) -> Result<RootCertStore, Error> {
        let mut store = RootCertStore::empty();
        let Some(ca) = &self.ca else {
            let native = rustls_native_certs::load_native_certs();
            store.add_parsable_certificates(native.certs);
            let none = || Error::new(Class::TrustUnavailable, "the system has no usable CA certificates");
            return if store.is_empty() { Err(none()) } else { Ok(store) };
        };
        let path = options.tls.ca_file.as_deref().unwrap_or(std::path::Path::new("caFile")).display();
        for certificate in CertificateDer::pem_slice_iter(ca) {
            let certificate =
                certificate.map_err(|_| Error::new(Class::TrustUnavailable, format!("{path}: not PEM")))?;
            store.add(certificate).map_err(|error| Error::new(Class::TrustUnavailable, format!("{path}: {error}")))?;
        }
        if store.is_empty() {
            return Err(Error::new(Class::TrustUnavailable, format!("{path}: holds no certificate")));
        }
        Ok(store)
    }
}

impl ServerCertVerifier for NamedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.inner.verify_server_cert(end_entity, intermediates, &self.name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
