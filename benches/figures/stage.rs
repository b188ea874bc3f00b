//! OpenBao for the figures: the real one when its binary is there, the embedded one otherwise; and the baselines.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bao_kms_provider::dev::client::{Client as BaoClient, Endpoint};
use bao_kms_provider::dev::jwt::Signer;
use bao_kms_provider::dev::provision::{JwtLogin, Setup, provision};
use bao_kms_provider::dev::server::{Options, Server};
use bao_kms_provider::front::client::Client;
use bao_kms_provider::front::v2::key_management_service_server::{KeyManagementService, KeyManagementServiceServer};
use bao_kms_provider::front::v2::{
    DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener};

/// A wrapped seed as etcd holds it.
#[derive(Clone)]
pub struct Sealed {
    pub seed: Vec<u8>,
    pub ciphertext: Vec<u8>,
    pub key_id: String,
    pub annotations: BTreeMap<String, Vec<u8>>,
}

/// OpenBao with a key and a role, and the files of a node.
pub struct Stage {
    pub url: String,
    /// What it is, for the table.
    pub openbao: &'static str,
    endpoint: Endpoint,
    token: String,
    setup: Setup,
    dir: tempfile::TempDir,
    kept: tokio::sync::Mutex<Arc<Vec<String>>>,
    _running: Running,
}

enum Running {
    Real(Child),
    Embedded { _server: Server },
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Self::Real(child) = self {
            // A process that is gone already is as good as killed.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A free port on the loopback.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port()
}

/// Where the tests against real components keep OpenBao.
fn real_binary() -> Option<PathBuf> {
    let cache = std::env::var_os("BAO_KMS_COMPONENT_CACHE").map(PathBuf::from).or_else(|| {
        let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let base = base.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
        Some(base.join("bao-kms-provider/components"))
    })?;
    Some(cache.join("bin/bao")).filter(|path| path.exists())
}

impl Stage {
    pub async fn set() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let (url, ca_pem, token, openbao, running) = match real_binary() {
            Some(binary) => real(&binary, dir.path()).await,
            None => {
                let server = Server::start(Options::default()).await.expect("the embedded server");
                let (url, ca, token) = (server.url(), server.ca_pem(), server.root_token());
                (url, ca, token, "embedded server", Running::Embedded { _server: server })
            }
        };
        let endpoint = Endpoint { url: url.clone(), ca_pem: ca_pem.clone() };
        let signer = Signer::generate().expect("a key");
        let login = JwtLogin::of(signer.public_key_pem());
        let jwt = signer.token(&login.issuer, &login.audience, &login.subject, 3_600).expect("signed");
        let setup = Setup { jwt: Some(login), ..Setup::default() };
        provision(&endpoint, &token, &setup).await.expect("set up");
        for (name, content) in [("ca.pem", &ca_pem), ("identity.jwt", &jwt)] {
            use std::os::unix::fs::PermissionsExt;
            let path = dir.path().join(name);
            std::fs::write(&path, content).expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("mode");
        }
        let kept = tokio::sync::Mutex::default();
        Self { url, openbao, endpoint, token, setup, dir, kept, _running: running }
    }

    /// The program's configuration: defaults but for what must be named, and a line more for the pipeline.
    pub fn config(&self, url: &str, socket: &Path, admin: &str, more: &str) -> String {
        format!(
            "configVersion: v1
pipelines:
  - name: bench
    socket: {{ path: {socket}, mode: \"0600\" }}
    identity: {{ providerName: bench, clusterId: c, openbaoId: b, transitMountId: m, keyLineageId: l }}
    auth: {{ jwt: {{ role: kms, file: {jwt} }} }}
    backend: {{ transit: {{ endpoints: [ \"{url}\" ], mount: {mount}, key: {key}, tls: {{ caFile: {ca} }} }} }}
    {more}
admin: {{ listen: {admin} }}
",
            socket = socket.display(),
            jwt = self.dir.path().join("identity.jwt").display(),
            ca = self.dir.path().join("ca.pem").display(),
            mount = self.setup.mount,
            key = self.setup.key,
        )
    }

    /// At least this many request bodies of distinct decrypts, made once and used by every round.
    pub async fn bodies(&self, count: usize) -> Arc<Vec<String>> {
        let mut kept = self.kept.lock().await;
        if kept.len() < count {
            *kept = Arc::new(self.sealed_bodies(count).await);
        }
        kept.clone()
    }

    /// Sealed by bare Transit calls.
    async fn sealed_bodies(&self, count: usize) -> Vec<String> {
        const BATCH: usize = 100;
        let bao = BaoClient::new(&self.endpoint, &self.token, None).expect("a client");
        let aad = STANDARD.encode("x".repeat(600));
        let mut bodies = Vec::with_capacity(count);
        while bodies.len() < count {
            let items: Vec<_> = (0..BATCH)
                .map(|at| json!({ "plaintext": STANDARD.encode([at as u8; 32]), "associated_data": aad }))
                .collect();
            let path = format!("{}/encrypt/{}", self.setup.mount, self.setup.key);
            let answer = bao.call("POST", &path, &json!({ "batch_input": items })).await.expect("sealed");
            for item in answer.body["data"]["batch_results"].as_array().expect("results") {
                bodies.push(json!({ "ciphertext": item["ciphertext"], "associated_data": aad }).to_string());
            }
        }
        bodies
    }

    /// The bare client: the same HTTP library with the same settings, and nothing else.
    pub fn bare(&self) -> Bare {
        let certificate = reqwest::Certificate::from_pem(self.endpoint.ca_pem.as_bytes()).expect("PEM");
        let client = reqwest::Client::builder()
            .tls_certs_only([certificate])
            .no_proxy()
            .tcp_nodelay(true)
            .pool_max_idle_per_host(64)
            .build()
            .expect("a client");
        let url = format!("{}/v1/{}/decrypt/{}", self.url, self.setup.mount, self.setup.key);
        Bare { client, url: url.into(), token: self.token.as_str().into() }
    }

    /// The same OpenBao behind a proxy that takes this long for each way of a round trip together.
    pub async fn farther(&self, by: Duration) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let target = self.url.trim_start_matches("https://").to_owned();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let target = target.clone();
                tokio::spawn(async move {
                    let far = TcpStream::connect(target).await.expect("OpenBao");
                    for stream in [&near, &far] {
                        stream.set_nodelay(true).expect("no delay");
                    }
                    let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
                    tokio::join!(carry(near_read, far_write, by / 2), carry(far_read, near_write, by / 2));
                });
            }
        });
        format!("https://127.0.0.1:{port}")
    }
}

/// Carries bytes one way, each a fixed time late, without holding up those behind it.
async fn carry(mut from: tokio::net::tcp::OwnedReadHalf, mut to: tokio::net::tcp::OwnedWriteHalf, late: Duration) {
    let (sender, mut queue) = tokio::sync::mpsc::unbounded_channel::<(tokio::time::Instant, Vec<u8>)>();
    let write = async move {
        while let Some((due, bytes)) = queue.recv().await {
            tokio::time::sleep_until(due).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    let read = async move {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            if sender.send((tokio::time::Instant::now() + late, buffer[..count].to_vec())).is_err() {
                return;
            }
        }
    };
    tokio::join!(read, write);
}

async fn real(binary: &Path, dir: &Path) -> (String, String, String, &'static str, Running) {
    let port = free_port();
    let child = Command::new(binary)
        .args(["server", "-dev", "-dev-tls", "-dev-no-store-token", "-dev-root-token-id=root"])
        .arg(format!("-dev-tls-cert-dir={}", dir.display()))
        .arg(format!("-dev-listen-address=127.0.0.1:{port}"))
        .env("HOME", dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("OpenBao starts");
    let (began, ca) = (Instant::now(), dir.join("vault-ca.pem"));
    while !ca.exists() || std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(began.elapsed() < Duration::from_secs(30), "OpenBao never came");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let ca = std::fs::read_to_string(ca).expect("its CA");
    (
        format!("https://127.0.0.1:{port}"),
        ca,
        "root".to_owned(),
        "OpenBao 2.4.0, dev mode with TLS",
        Running::Real(child),
    )
}

/// Bare Transit calls.
#[derive(Clone)]
pub struct Bare {
    client: reqwest::Client,
    url: Arc<str>,
    token: Arc<str>,
}

impl Bare {
    pub async fn decrypt(&self, body: &str) {
        let request = self.client.post(&*self.url).bearer_auth(&self.token).body(body.to_owned());
        let reply = request.send().await.expect("a reply");
        assert_eq!(reply.status(), 200);
        reply.bytes().await.expect("a body");
    }
}

/// A tonic server that answers Status with nothing behind it.
pub struct EmptyServer {
    pub client: Client,
    _dir: tempfile::TempDir,
}

struct Empty;

#[tonic::async_trait]
impl KeyManagementService for Empty {
    async fn status(&self, _: tonic::Request<StatusRequest>) -> Result<tonic::Response<StatusResponse>, tonic::Status> {
        let answer = StatusResponse { version: "v2".into(), healthz: "ok".into(), key_id: "k".repeat(48) };
        Ok(tonic::Response::new(answer))
    }

    async fn encrypt(
        &self,
        _: tonic::Request<EncryptRequest>,
    ) -> Result<tonic::Response<EncryptResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("only Status"))
    }

    async fn decrypt(
        &self,
        _: tonic::Request<DecryptRequest>,
    ) -> Result<tonic::Response<DecryptResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("only Status"))
    }
}

impl EmptyServer {
    /// On a runtime of its own with as many workers as the program has, as a process of its own would have.
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("empty.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
        listener.set_nonblocking(true).expect("non-blocking");
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let incoming = tokio_stream::wrappers::UnixListenerStream::new(
                    UnixListener::from_std(listener).expect("a listener"),
                );
                let service = KeyManagementServiceServer::new(Empty);
                tonic::transport::Server::builder()
                    .add_service(service)
                    .serve_with_incoming(incoming)
                    .await
                    .expect("served");
            });
        });
        Self { client: Client::connect(&path).await.expect("a connection"), _dir: dir }
    }
}
