//! The TLS side of the client: TLS 1.2 and 1.3 alone, trust roots, an optional name to insist on, an optional client
//! identity. Nothing here can switch verification off.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};

use super::material::Material;
use crate::error::{Class, Error};

/// Checks certificates against one configured name, whatever host was dialled.
#[derive(Debug)]
struct NamedVerifier {
    name: ServerName<'static>,
    inner: Arc<WebPkiServerVerifier>,
}

/// The TLS configuration that the material makes; `server_name` replaces the endpoint's host in the certificate's check.
pub(super) fn config(material: Material, server_name: Option<&str>) -> Result<ClientConfig, Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let roots = Arc::new(material.roots);
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|error| Error::new(Class::Internal, error.to_string()))?;
    let builder = match server_name {
        None => builder.with_root_certificates(roots),
        Some(name) => {
            let bad = |what: &str| Error::new(Class::TrustUnavailable, format!("tls.serverName {what}"));
            let name = ServerName::try_from(name.to_owned()).map_err(|_| bad("is no DNS name and no IP address"))?;
            let inner = WebPkiServerVerifier::builder_with_provider(roots, provider)
                .build()
                .map_err(|_| bad("cannot be checked against these trust roots"))?;
            builder.dangerous().with_custom_certificate_verifier(Arc::new(NamedVerifier { name, inner }))
        }
    };
    match material.identity {
        None => Ok(builder.with_no_client_auth()),
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(|_| {
            let detail = "the client certificate and its key do not belong together, or TLS does not know their kind";
            Error::new(Class::CredentialUnavailable, detail)
        }),
    }
}

// === impl NamedVerifier ===

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
