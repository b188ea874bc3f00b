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
use bao_kms_provider::front::client::{Client, StatusResponse};

/// How long anything may take before a test gives up; generous, because machines are slow.
pub const PATIENCE: Duration = Duration::from_secs(30);

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

    /// Starts the program with this configuration.
    pub fn serve(&self, config: &str) -> Program {
        self.serve_with(config, |_| {})
    }

    /// The same, with something else about the command.
    pub fn serve_with(&self, config: &str, adjust: impl FnOnce(&mut Command)) -> Program {
        let file = self.write("config.yaml", config);
        Program::start(&file, adjust)
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
        let began = Instant::now();
        loop {
            match Client::connect(self.socket()).await {
                Ok(client) => return client,
                Err(error) => assert!(began.elapsed() < PATIENCE, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// The program; killed when dropped.
pub struct Program {
    pub child: Child,
    output: Arc<Mutex<String>>,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl Program {
    fn start(file: &Path, adjust: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bao-kms-provider"));
        command.args(["serve", "--config"]).arg(file).stderr(Stdio::piped());
        adjust(&mut command);
        let mut child = command.spawn().expect("the program starts");
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
