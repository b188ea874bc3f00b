//! The server's certificates and its TLS: an authority made for this process, and a listener that asks for a client
//! certificate without insisting. Whether a certificate is any good is decided at login, as OpenBao does.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};

use super::StartError;
use super::line::Flaw;

/// A certificate authority and the server certificate it signed.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    leaf: Leaf,
}

struct Leaf {
    certificate: CertificateDer<'static>,
    key: Vec<u8>,
}

impl Authority {
    /// Makes both, for 127.0.0.1 and localhost.
    pub fn generate() -> Result<Authority, rcgen::Error> {
        Authority::named("OpenBao for development: certificate authority")
    }

    fn named(name: &str) -> Result<Authority, rcgen::Error> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;

        let leaf = Leaf::signed_by(&issuer, None)?;
        Ok(Authority { issuer, leaf })
    }

    /// The authority's certificate as PEM.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// TLS 1.2 and 1.3, HTTP/1.1, client certificates welcome.
    pub fn server_config(&self) -> Result<Arc<ServerConfig>, rustls::Error> {
        self.leaf.server_config()
    }

    /// The same with a certificate that no client should take, and the authority that signed it, as PEM.
    pub fn flawed_config(&self, flaw: Flaw) -> Result<(Arc<ServerConfig>, String), StartError> {
        if flaw == Flaw::OtherAuthority {
            // Of another name: with ours it would be taken for a bad signature of ours.
            let other = Authority::named("another certificate authority")?;
            return Ok((other.server_config()?, other.pem()));
        }
        Ok((Leaf::signed_by(&self.issuer, Some(flaw))?.server_config()?, self.pem()))
    }
}

impl Leaf {
    fn signed_by(issuer: &CertifiedIssuer<'static, KeyPair>, flaw: Option<Flaw>) -> Result<Leaf, rcgen::Error> {
        let key = KeyPair::generate()?;
        let names = match flaw {
            Some(Flaw::OtherName) => vec!["elsewhere.invalid".to_owned()],
            _ => vec!["127.0.0.1".to_owned(), "localhost".to_owned()],
        };
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, "localhost");
        params.use_authority_key_identifier_extension = true;
        if flaw == Some(Flaw::Expired) {
            params.not_after = rcgen::date_time_ymd(2001, 1, 1);
        }
        let certificate = params.signed_by(&key, issuer)?.der().clone();
        Ok(Leaf { certificate, key: key.serialize_der() })
    }

    fn server_config(&self) -> Result<Arc<ServerConfig>, rustls::Error> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.clone()));
        let mut config = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(Arc::new(AnyCertificate { provider }))
            .with_single_cert(vec![self.certificate.clone()], key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

/// Takes any certificate whose key the client holds.
#[derive(Debug)]
struct AnyCertificate {
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for AnyCertificate {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
