//! What went wrong when there is no reply: the error chain of the client, read once, becomes a class.

use std::error::Error as _;
use std::io::ErrorKind;

use crate::error::{Class, Error};

/// The error of an exchange that got no reply.
pub(super) fn classify(error: &reqwest::Error) -> Error {
    let mut cause = error.source();
    let mut seen_io = None;
    while let Some(current) = cause {
        if let Some(tls) = current.downcast_ref::<rustls::Error>() {
            return Error::new(Class::Tls, tls_detail(tls));
        }
        if let Some(io) = current.downcast_ref::<std::io::Error>() {
            // rustls hides inside an io error without being its `source`.
            if let Some(tls) = io.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                return Error::new(Class::Tls, tls_detail(tls));
            }
            seen_io = Some(io.kind());
        }
        cause = current.source();
    }
    if error.is_timeout() {
        return Error::new(if error.is_connect() { Class::Unreachable } else { Class::Timeout }, "no answer in time");
    }
    if error.is_connect() {
        return match seen_io {
            Some(ErrorKind::ConnectionRefused) => Error::new(Class::Unreachable, "connection refused"),
            Some(ErrorKind::TimedOut) => Error::new(Class::Unreachable, "no answer to the connection attempt"),
            Some(ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe) => {
                Error::new(Class::Unreachable, "the connection was closed while it was made")
            }
            Some(ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable) => {
                Error::new(Class::Unreachable, "no route to the host")
            }
            _ if names_resolution(error) => Error::new(Class::NameResolution, "the host name does not resolve"),
            _ => Error::new(Class::Unreachable, "no connection"),
        };
    }
    Error::new(Class::ConnectionLost, "the connection broke before the whole answer came")
}

/// The resolver's errors have no type of their own; hyper-util marks them with this text.
fn names_resolution(error: &reqwest::Error) -> bool {
    let mut cause = error.source();
    while let Some(current) = cause {
        if current.to_string().starts_with("dns error") {
            return true;
        }
        cause = current.source();
    }
    false
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
