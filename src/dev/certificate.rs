//! Client certificates for the quick start and the tests: an authority, and leaves for a common name.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

/// An authority for client certificates.
pub struct ClientAuthority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key, both PEM (the key as PKCS#8).
#[derive(Clone)]
pub struct ClientIdentity {
    /// The certificate.
    pub cert_pem: String,
    /// The private key.
    pub key_pem: String,
}

impl ClientAuthority {
    /// Makes a fresh authority.
    ///
    /// # Errors
    /// When the crypto library cannot make one.
    pub fn generate() -> Result<ClientAuthority, rcgen::Error> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, "clients for development: certificate authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ok(ClientAuthority { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate()?)? })
    }

    /// The authority's certificate as PEM, as a certificate role takes it.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A client certificate for `common_name`.
    ///
    /// # Errors
    /// When the crypto library cannot make one.
    pub fn issue(&self, common_name: &str) -> Result<ClientIdentity, rcgen::Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let cert = params.signed_by(&key, &self.issuer)?;
        Ok(ClientIdentity { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
    }
}
