//! What the end-to-end tests share: an embedded OpenBao, the program as a child process, a client of its socket.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bao_kms_provider::dev::client::{Client as BaoClient, Endpoint};
use bao_kms_provider::dev::jwt::Signer;
use bao_kms_provider::dev::provision::{JwtLogin, Setup, provision};
use bao_kms_provider::dev::server::{Options, Server};
use bao_kms_provider::front::client::{Client, ClientError, StatusResponse};

/// How long anything may take before a test gives up; generous, because machines are slow.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The key of the stage, as an administrator names it.
pub const KEY: &str = "transit/keys/k8s-etcd";

/// An embedded OpenBao with a key, a policy and a role, and the folder of a node.
pub struct Stage {
    pub server: Server,
    pub setup: Setup,
    pub signer: Signer,
    pub dir: tempfile::TempDir,
    pub admin: u16,
    /// Everything secret that was used, for the search in the output.
    pub secrets: Mutex<Vec<String>>,
}

impl Stage {
    pub async fn set() -> Self {
        let server = Server::start(Options::default()).await.expect("the server starts");
        let signer = Signer::generate().expect("a key");
        let setup = Setup { jwt: Some(JwtLogin::of(signer.public_key_pem())), ..Setup::default() };
        let endpoint = Endpoint { url: server.url(), ca_pem: server.ca_pem() };
        provision(&endpoint, &server.root_token(), &setup).await.expect("set up");
        let dir = tempfile::tempdir().expect("a folder");
        let admin = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
        let stage = Self { server, setup, signer, dir, admin, secrets: Mutex::default() };
        stage.write("ca.pem", &stage.server.ca_pem());
        stage.issue_jwt(3_600);
        stage
    }

    /// Writes a JWT that ends after these seconds.
    pub fn issue_jwt(&self, seconds: i64) {
        let login = self.setup.jwt.as_ref().expect("login by JWT");
        let jwt = self.signer.token(&login.issuer, &login.audience, &login.subject, seconds).expect("signed");
        self.secrets.lock().expect("lock").push(jwt.clone());
        self.write("identity.jwt", &jwt);
    }

    pub fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, content).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("mode");
        path
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("kms.sock")
    }

    /// One pipeline `a` against the embedded server; `more` is YAML for the pipeline, indented by four.
    pub fn config(&self, more: &str) -> String {
        format!(
            "configVersion: v1
pipelines:
  - name: a
    socket: {{ path: {socket}, mode: \"0600\" }}
    identity: {{ providerName: p, clusterId: c, openbaoId: b, transitMountId: m, keyLineageId: l }}
    auth: {{ jwt: {{ role: kms, file: {jwt} }} }}
    backend:
      transit: {{ endpoints: [ \"{url}\" ], mount: {mount}, key: {key}, tls: {{ caFile: {ca} }} }}
    rotation: {{ activationDelay: 1s, metadataInterval: 500ms }}
{more}
telemetry: {{ logs: {{ level: trace }} }}
admin: {{ listen: 127.0.0.1:{admin} }}
",
            socket = self.socket().display(),
            jwt = self.path("identity.jwt").display(),
            url = self.server.url(),
            mount = self.setup.mount,
            key = self.setup.key,
            ca = self.path("ca.pem").display(),
            admin = self.admin,
        )
    }

    pub fn bao(&self) -> BaoClient {
        let endpoint = Endpoint { url: self.server.url(), ca_pem: self.server.ca_pem() };
        BaoClient::new(&endpoint, &self.server.root_token(), None).expect("a client")
    }

    /// The same configuration with a second pipeline `b` at `second.sock`: the first one's text, altered.
    pub fn with_second(config: &str, alter: impl FnOnce(String) -> String) -> String {
        let (head, tail) = config.split_once("telemetry:").expect("telemetry");
        let (_, first) = head.split_once("pipelines:\n").expect("pipelines");
        let second = alter(first.replace("name: a", "name: b").replace("kms.sock", "second.sock"));
        format!("{head}{second}telemetry:{tail}")
    }

    /// Starts the program with this configuration.
    pub fn serve(&self, config: &str) -> Program {
        self.serve_with(config, |_| {})
    }

    /// The same, with something else about the process as well.
    pub fn serve_with(&self, config: &str, alter: impl FnOnce(&mut Command)) -> Program {
        let file = self.write("config.yaml", config);
        Program::start(&file, alter)
    }

    /// Another node of the same OpenBao; port 0 picks a free one. A port that was just let go of is waited for.
    pub async fn node(&self, port: u16) -> Server {
        let began = Instant::now();
        loop {
            match Server::start(Options { state: Some(self.server.state().clone()), port, ..Options::default() }).await
            {
                Ok(server) => return server,
                Err(error) => assert!(began.elapsed() < PATIENCE, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// [`Stage::config`] with these nodes in the place of the one.
    pub fn config_of(&self, nodes: &[String], more: &str) -> String {
        let list: Vec<_> = nodes.iter().map(|url| format!("\"{url}\"")).collect();
        self.config(more).replace(&format!("\"{}\"", self.server.url()), &list.join(", "))
    }

    /// The value of one series of `/metrics`, such as `bao_kms_queued{pipeline="a"}`; 0 when there is none yet.
    pub async fn metric(&self, series: &str) -> u64 {
        value(&self.admin("/metrics").await.1, series)
    }

    /// What the admin listener answers.
    pub async fn admin(&self, path: &str) -> (u16, String) {
        // Whichever test comes first installs it; reqwest asks for one even when it speaks plain HTTP.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let url = format!("http://127.0.0.1:{}{path}", self.admin);
        let began = Instant::now();
        loop {
            match reqwest::get(&url).await {
                Ok(reply) => return (reply.status().as_u16(), reply.text().await.expect("text")),
                Err(error) => assert!(began.elapsed() < PATIENCE, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn client(&self) -> Client {
        connect(&self.socket()).await
    }
}

/// A client of the socket at this path, as soon as there is one.
pub async fn connect(path: &Path) -> Client {
    let began = Instant::now();
    loop {
        match Client::connect(path).await {
            Ok(client) => return client,
            Err(error) => assert!(began.elapsed() < PATIENCE, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What a page of metrics says of this series, 0 when nothing.
pub fn value(page: &str, series: &str) -> u64 {
    let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map_or(0, |value| value.parse::<f64>().expect("a number") as u64)
}

/// A test cannot do its work here. Where every test has to (`BAO_KMS_NO_SKIPS`, which `.ci/run` sets where disks can be
/// mounted) that is a failure.
pub fn skipped(why: &str) {
    assert!(std::env::var_os("BAO_KMS_NO_SKIPS").is_none(), "{why}");
    eprintln!("skipped: {why}");
}

/// What a call that was answered was answered with.
pub fn code(error: &ClientError) -> tonic::Code {
    match error {
        ClientError::Call(status) => status.code(),
        other => panic!("{other}"),
    }
}

/// Waits until something holds.
pub async fn until(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The program; killed when dropped.
pub struct Program {
    pub child: Child,
    output: Arc<Mutex<String>>,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl Program {
    /// Starts it with this file; `alter` may change what the process is given.
    pub fn start(file: &Path, alter: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bao-kms-provider"));
        command.args(["serve", "--config"]).arg(file);
        alter(&mut command);
        Self::spawn(command)
    }

    /// Starts it by a command of one's own; what that writes to stderr is its log.
    pub fn spawn(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().expect("the program starts");
        let mut stderr = child.stderr.take().expect("piped");
        let output: Arc<Mutex<String>> = Arc::default();
        let sink = output.clone();
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = stderr.read(&mut buffer) {
                sink.lock().expect("lock").push_str(&String::from_utf8_lossy(&buffer[..read]));
            }
        });
        Self { child, output, reader: Some(reader) }
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.child.id()).expect("a pid")).expect("not zero");
        rustix::process::kill_process(pid, signal).expect("signalled");
    }

    /// What it has logged so far.
    pub fn output(&self) -> String {
        self.output.lock().expect("lock").clone()
    }

    /// Waits until the log holds this text.
    pub async fn logged(&self, text: &str) {
        let began = Instant::now();
        while !self.output().contains(text) {
            assert!(began.elapsed() < PATIENCE, "never logged {text:?}:\n{}", self.output());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends it with SIGTERM; its exit code and whole log.
    pub fn stop(mut self) -> (Option<i32>, String) {
        self.signal(rustix::process::Signal::TERM);
        let code = self.child.wait().expect("it ends").code();
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the reader ends");
        }
        (code, self.output())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // A process that has ended already is as good as killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for a Status of which this holds.
pub async fn status_until(client: &Client, what: &str, holds: impl Fn(&StatusResponse) -> bool) -> StatusResponse {
    let began = Instant::now();
    loop {
        let status = client.status().await.expect("Status always answers");
        if holds(&status) {
            return status;
        }
        assert!(began.elapsed() < PATIENCE, "Status is never {what}: {} {}", status.healthz, status.key_id);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until this holds; what it says otherwise stands in the panic.
pub async fn eventually<F: Future<Output = Result<(), String>>>(what: &str, within: Duration, holds: impl Fn() -> F) {
    let began = Instant::now();
    while let Err(instead) = holds().await {
        assert!(began.elapsed() < within, "{what}: not within {within:?}: {instead}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What a process holds: anonymous memory in KiB, threads, and open descriptors (proc(5)). Only root may count the
/// descriptors of a process that cannot be dumped; to others they are none.
#[derive(Clone, Copy, Debug)]
pub struct Holds {
    pub kib: u64,
    pub threads: u64,
    pub descriptors: usize,
}

impl Holds {
    pub fn of(pid: u32) -> Self {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
            line.split_whitespace().next().and_then(|word| word.parse().ok()).expect("a number")
        };
        let open = std::fs::read_dir(format!("/proc/{pid}/fd"));
        assert!(open.is_ok() || !rustix::process::geteuid().is_root(), "descriptors cannot be counted");
        Self { kib: number("RssAnon:"), threads: number("Threads:"), descriptors: open.map_or(0, Iterator::count) }
    }
}
