//! What went wrong when there is no reply: the error chain of the client, read once, becomes a class. A class that says
//! "it did no work" is only given where the request cannot have left.

use std::error::Error as StdError;
use std::io::ErrorKind;

use crate::error::{Class, Error};

/// The error of an exchange that got no reply.
pub(super) fn classify(error: &reqwest::Error) -> Error {
    let chain: Vec<_> = std::iter::successors(error.source(), |cause| next(*cause)).collect();
    if let Some(tls) = chain.iter().find_map(|cause| cause.downcast_ref::<rustls::Error>()) {
        return Error::new(Class::Tls, tls_detail(tls));
    }
    let unreachable = |detail: &'static str| Error::new(Class::Unreachable, detail);
    if !error.is_connect() {
        return match error.is_timeout() {
            true => Error::new(Class::Timeout, "no answer in time"),
            false => Error::new(Class::ConnectionLost, "the connection broke before the whole answer came"),
        };
    }
    // The resolver's errors have no type of their own; the connector marks them with this text.
    if chain.iter().any(|cause| cause.to_string().starts_with("dns error")) {
        return Error::new(Class::NameResolution, "the host name does not resolve");
    }
    let io = chain.iter().rev().find_map(|cause| cause.downcast_ref::<std::io::Error>()).map(std::io::Error::kind);
    match io {
        Some(ErrorKind::ConnectionRefused) => unreachable("connection refused"),
        Some(ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe) => {
            unreachable("the connection was closed while it was made")
        }
        Some(ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable) => unreachable("no route to the host"),
        _ if error.is_timeout() || io == Some(ErrorKind::TimedOut) => {
            unreachable("no answer to the connection attempt")
        }
        _ => unreachable("no connection"),
    }
}

/// The next cause. An io error hides what it wraps: its `source` is that of the wrapped error, not the error itself.
fn next<'a>(cause: &'a (dyn StdError + 'static)) -> Option<&'a (dyn StdError + 'static)> {
    match cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        Some(wrapped) => Some(wrapped),
        None => cause.source(),
    }
}

/// Which of the usual troubles a handshake met, in our words.
fn tls_detail(error: &rustls::Error) -> &'static str {
    use rustls::CertificateError as C;
    match error {
        rustls::Error::InvalidCertificate(reason) => match reason {
            C::Expired | C::ExpiredContext { .. } => "OpenBao's certificate has expired, or this node's clock is ahead",
            C::NotValidYet | C::NotValidYetContext { .. } => {
                "OpenBao's certificate is not valid yet, or this node's clock is behind"
            }
            C::NotValidForName | C::NotValidForNameContext { .. } => {
                "OpenBao's certificate is for another name; see tls.serverName"
            }
            C::UnknownIssuer => "OpenBao's certificate is signed by an unknown CA; see tls.caFile",
            C::BadSignature => "OpenBao's certificate is not signed by the CA in tls.caFile",
            _ => "OpenBao's certificate is refused",
        },
        rustls::Error::AlertReceived(_) => "OpenBao refuses the handshake; it may want another client certificate",
        rustls::Error::PeerIncompatible(_) => "OpenBao does not offer TLS 1.2 or 1.3",
        _ => "the handshake failed; the endpoint may not speak TLS",
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Arc;

    use reqwest::dns::{Name, Resolve, Resolving};

    use super::*;
    use crate::http::material::Material;
    use crate::http::{PipeOptions, TlsConfig, trust};

    struct NoNames;

    impl Resolve for NoNames {
        fn resolve(&self, _: Name) -> Resolving {
            Box::pin(async { Err("no such name".into()) })
        }
    }

    #[tokio::test]
    async fn a_name_that_does_not_resolve_is_told_from_a_host_that_does_not_answer() {
        let dir = tempfile::tempdir().expect("a folder");
        let key = rcgen::KeyPair::generate().expect("key");
        let ca = rcgen::CertificateParams::new(Vec::new()).expect("params").self_signed(&key).expect("ca");
        let path = dir.path().join("ca.pem");
        std::fs::write(&path, ca.pem()).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("mode");
        let tls = TlsConfig { ca_file: Some(path), server_name: None };
        let options = PipeOptions { tls, namespace: String::new(), client_identity: None, max_idle: 1 };
        let tls = trust::config(Material::read(&options).expect("material"), None).expect("tls");
        let client = reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy();
        let client = client.dns_resolver(Arc::new(NoNames)).build().expect("client");
        let error = client.get("https://bao.example/").send().await.expect_err("no answer");
        assert_eq!(classify(&error).class(), Class::NameResolution);
        let error = client.get("https://127.0.0.1:1/").send().await.expect_err("no answer");
        assert_eq!(classify(&error).class(), Class::Unreachable);
    }
}
