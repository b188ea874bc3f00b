//! A TLS listener with a certificate of the test's choice that answers every request with the same bytes. It keeps the
//! heads of the requests and counts connections.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// A certificate authority of the test.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// The listener; it ends with the test's runtime.
pub struct Stub {
    pub origin: Arc<str>,
    pub connections: Arc<AtomicUsize>,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Authority {
    pub fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A server certificate for `name`, valid between these years.
    fn server(&self, name: &str, years: (i32, i32)) -> ServerConfig {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(years.0, 1, 1);
        params.not_after = rcgen::date_time_ymd(years.1, 1, 1);
        let leaf = params.signed_by(&key, &self.0).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)
            .unwrap()
    }
}

impl Stub {
    /// Answers with `answer` under a certificate for `name`, valid between these years.
    pub async fn start(authority: &Authority, name: &str, years: (i32, i32), answer: Vec<u8>) -> Stub {
        let acceptor = TlsAcceptor::from(Arc::new(authority.server(name, years)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = format!("https://{}", listener.local_addr().unwrap()).into();
        let (connections, heads) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let stub = Stub { origin, connections: connections.clone(), heads: heads.clone() };
        let answer: Arc<[u8]> = answer.into();
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                connections.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(tcp, acceptor.clone(), heads.clone(), answer.clone()));
            }
        });
        stub
    }

    /// The heads of all requests so far, in lower case.
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

/// A success with this body.
pub fn ok(body: &[u8]) -> Vec<u8> {
    let mut answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len()).into_bytes();
    answer.extend_from_slice(body);
    answer
}

async fn serve(tcp: TcpStream, acceptor: TlsAcceptor, heads: Arc<Mutex<Vec<String>>>, answer: Arc<[u8]>) -> Option<()> {
    let mut tls = acceptor.accept(tcp).await.ok()?;
    let mut seen = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = seen.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if tls.read_buf(&mut seen).await.ok()? == 0 {
                return None;
            }
        };
        let head = String::from_utf8_lossy(&seen[..end]).to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
        while seen.len() < end + length {
            if tls.read_buf(&mut seen).await.ok()? == 0 {
                return None;
            }
        }
        heads.lock().unwrap().push(head);
        seen.drain(..end + length);
        tls.write_all(&answer).await.ok()?;
        tls.flush().await.ok()?;
    }
}
