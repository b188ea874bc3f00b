//! A real OpenBao: in memory for most tests, on raft with a static seal where it must survive a restart.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use bao_kms_provider::dev::certificate::{ClientAuthority, ClientIdentity};
use bao_kms_provider::dev::client::{Client, Endpoint};
use bao_kms_provider::dev::jwt::Signer;
use bao_kms_provider::dev::provision::{CertLogin, JwtLogin, Setup, provision};
use serde_json::{Value, json};

use super::pki::Authority;
use super::process::Process;
use super::wait::{LONG, until};
use super::{component, free_port};

/// A running server, or a stopped one between `stop` and `start`.
pub struct OpenBao {
    process: Option<Process>,
    folder: PathBuf,
    arguments: Vec<String>,
    pub url: String,
    /// The CA that signs the server's certificate.
    pub ca: PathBuf,
    pub root: String,
    /// What stands in it once it is provisioned.
    pub setup: Setup,
    issuer: Signer,
    nodes: ClientAuthority,
}

impl OpenBao {
    fn new(folder: PathBuf, arguments: Vec<String>, port: u16, ca: PathBuf) -> Self {
        let issuer = Signer::generate().expect("a key");
        let nodes = ClientAuthority::generate().expect("a root");
        let jwt = Some(JwtLogin::of(issuer.public_key_pem()));
        let cert = Some(CertLogin::of(&nodes.pem()));
        let setup = Setup { jwt, cert, ..Setup::default() };
        let url = format!("https://127.0.0.1:{port}");
        Self { process: None, folder, arguments, url, ca, root: String::new(), setup, issuer, nodes }
    }

    /// In memory, unsealed, with a CA of its own.
    pub async fn dev(folder: &Path) -> Self {
        let folder = made(folder.join("openbao"));
        let port = free_port();
        let arguments = [
            "server".to_owned(),
            "-dev".to_owned(),
            "-dev-tls".to_owned(),
            format!("-dev-tls-cert-dir={}", folder.display()),
            "-dev-root-token-id=root".to_owned(),
            "-dev-no-store-token".to_owned(),
            format!("-dev-listen-address=127.0.0.1:{port}"),
        ];
        let ca = folder.join("vault-ca.pem");
        let mut bao = Self::new(folder, arguments.into(), port, ca);
        bao.root = "root".to_owned();
        bao.start().await;
        bao
    }

    /// On disk, initialised; a restart unseals it.
    pub async fn durable(folder: &Path) -> Self {
        let mut bao = Self::member(made(folder.join("openbao")), "n1", &Authority::new(), None);
        bao.found().await;
        bao
    }

    /// Three on one raft; the first one holds what `provision` and `token` need.
    pub async fn cluster(folder: &Path) -> Vec<Self> {
        let authority = Authority::new();
        let mut first = Self::member(made(folder.join("n1")), "n1", &authority, None);
        first.found().await;
        let mut nodes = vec![first];
        for name in ["n2", "n3"] {
            let mut node = Self::member(made(folder.join(name)), name, &authority, Some(&nodes[0]));
            node.root = nodes[0].root.clone();
            node.start().await;
            nodes.push(node);
        }
        // A node that has just joined has no vote yet, and without votes there is no new leader.
        until("three votes", LONG, async || {
            let (_, body) = nodes[0].call("GET", "sys/storage/raft/configuration", Value::Null).await?;
            let servers = body["data"]["config"]["servers"].as_array().cloned().unwrap_or_default();
            let votes = servers.iter().filter(|server| server["voter"] == true).count();
            if votes == 3 { Ok(()) } else { Err(format!("{votes} votes: {body}")) }
        })
        .await;
        nodes
    }

    /// A node on disk that is not started; `leader` is whom it joins.
    fn member(folder: PathBuf, name: &str, authority: &Authority, leader: Option<&Self>) -> Self {
        let (port, cluster) = (free_port(), free_port());
        let (cert, key) = authority.server(&folder);
        let ca = folder.join("ca.pem");
        std::fs::write(&ca, authority.pem()).expect("a file");
        std::fs::write(folder.join("unseal.key"), [7_u8; 32]).expect("a file");
        let dir = made(folder.join("raft"));
        let join = leader.map_or_else(String::new, |leader| {
            format!(
                "  retry_join {{\n    leader_api_addr = \"{}\"\n    leader_ca_cert_file = \"{}\"\n  }}\n",
                leader.url,
                leader.ca.display()
            )
        });
        let config = format!(
            "storage \"raft\" {{\n  path = \"{}\"\n  node_id = \"{name}\"\n  performance_multiplier = 1\n{join}}}\n\
             listener \"tcp\" {{\n  address = \"127.0.0.1:{port}\"\n  cluster_address = \"127.0.0.1:{cluster}\"\n  \
             tls_cert_file = \"{}\"\n  tls_key_file = \"{}\"\n}}\n\
             api_addr = \"https://127.0.0.1:{port}\"\ncluster_addr = \"https://127.0.0.1:{cluster}\"\n\
             audit \"file\" \"seen\" {{\n  options {{\n    file_path = \"stdout\"\n  }}\n}}\n\
             seal \"static\" {{\n  current_key_id = \"k1\"\n  current_key = \"file://{}\"\n}}\n",
            dir.display(),
            cert.display(),
            key.display(),
            folder.join("unseal.key").display(),
        );
        let file = folder.join("config.hcl");
        std::fs::write(&file, config).expect("a file");
        let arguments = vec!["server".to_owned(), format!("-config={}", file.display())];
        Self::new(folder, arguments, port, ca)
    }

    /// Starts and initialises it.
    async fn found(&mut self) {
        self.spawn();
        let init = json!({ "recovery_shares": 1, "recovery_threshold": 1 });
        self.root = until("OpenBao's initialisation", LONG, async || {
            let (status, body) = self.call("POST", "sys/init", init.clone()).await?;
            body["root_token"].as_str().map(str::to_owned).ok_or_else(|| format!("{status}: {body}"))
        })
        .await;
        self.ready().await;
        // One that stands by alone is about to lead, and until then it sets nothing up.
        leader(std::slice::from_ref(self)).await;
    }

    /// Kills it (SIGKILL); what is on disk stays.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// What `sys/health` answers: 200 for the leader, 429 for a standby, 0 for nobody.
    pub async fn health(&self) -> u16 {
        self.call("GET", "sys/health", Value::Null).await.map_or(0, |(status, _)| status)
    }

    /// When it was asked to seal or open something from then on, the last time first, as its audit log tells it.
    pub fn asked(&self, from: SystemTime) -> Vec<SystemTime> {
        let log = std::fs::read_to_string(self.folder.join("bao.log")).unwrap_or_default();
        let requests = log.lines().rev().filter(|line| line.contains("\"type\":\"request\""));
        let calls = requests.filter(|line| {
            ["encrypt", "decrypt"].iter().any(|call| line.contains(&format!("\"path\":\"{}/{call}/", self.setup.mount)))
        });
        let times = calls.filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let times = times.filter_map(|line| humantime::parse_rfc3339(line["time"].as_str()?).ok());
        times.take_while(|at| *at >= from).collect()
    }

    fn spawn(&mut self) {
        let mut command = Command::new(component("bao"));
        command.args(&self.arguments).env("HOME", &self.folder);
        self.process = Some(Process::start("bao", &self.folder, &mut command));
    }

    /// Starts it and waits until it serves.
    pub async fn start(&mut self) {
        self.spawn();
        self.ready().await;
    }

    /// Stops it; what is on disk stays.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.stop();
        }
    }

    async fn ready(&mut self) {
        let mut process = self.process.take();
        until("OpenBao", LONG, async || {
            process.as_mut().ok_or("not started")?.check()?;
            match self.call("GET", "sys/health", Value::Null).await? {
                (200 | 429, _) => Ok(()),
                (status, body) => Err(format!("{status}: {body}")),
            }
        })
        .await;
        self.process = process;
    }

    /// One call with the root token: status and body, `null` when there is none.
    pub async fn call(&self, method: &str, path: &str, body: Value) -> Result<(u16, Value), String> {
        let client = Client::new(&self.endpoint()?, &self.root, None).map_err(|error| format!("{error:?}"))?;
        let answer = client.call(method, path, &body).await.map_err(|error| format!("{error:?}"))?;
        Ok((answer.status, answer.body))
    }

    /// The one unseal key of a server in memory, which it prints shortly after it is ready.
    pub async fn unseal_key(&self) -> String {
        until("the unseal key", LONG, async || {
            let log = self.process.as_ref().ok_or("not started")?.log();
            let key = log.lines().find_map(|line| line.strip_prefix("Unseal Key: ").map(|key| key.trim().to_owned()));
            key.ok_or_else(|| "not printed yet".to_owned())
        })
        .await
    }

    /// Its address and its CA.
    pub fn endpoint(&self) -> Result<Endpoint, String> {
        let ca_pem = std::fs::read_to_string(&self.ca).map_err(|error| format!("no CA yet: {error}"))?;
        Ok(Endpoint { url: self.url.clone(), ca_pem })
    }

    /// A write that has to succeed; gives the reply's `data`.
    pub async fn write(&self, path: &str, body: Value) -> Value {
        let (status, mut reply) = self.call("POST", path, body).await.expect("OpenBao answers");
        assert!((200..300).contains(&status), "{path}: {status}: {reply}");
        reply["data"].take()
    }

    /// A read that has to succeed; gives the reply's `data`.
    pub async fn read(&self, path: &str) -> Value {
        let (status, mut reply) = self.call("GET", path, Value::Null).await.expect("OpenBao answers");
        assert_eq!(status, 200, "{path}: {reply}");
        reply["data"].take()
    }

    /// The key's path with something behind it, such as `/rotate`.
    pub fn key(&self, rest: &str) -> String {
        format!("{}/keys/{}{rest}", self.setup.mount, self.setup.key)
    }

    /// Deletes the key for good.
    pub async fn delete_key(&self) {
        self.write(&self.key("/config"), json!({ "deletion_allowed": true })).await;
        let (status, body) = self.call("DELETE", &self.key(""), Value::Null).await.expect("OpenBao answers");
        assert_eq!(status, 204, "{body}");
    }

    /// Transit with one key, the least policy, and both login methods.
    pub async fn provision(&self) {
        let endpoint = self.endpoint().expect("a CA");
        provision(&endpoint, &self.root, &self.setup).await.expect("provisioned");
        self.write("transit/config/keys", json!({ "disable_upsert": true })).await;
    }

    /// A JWT that the provisioned role takes, for so many seconds; a negative number makes one that has expired.
    pub fn token(&self, seconds: i64) -> String {
        let jwt = self.setup.jwt.as_ref().expect("a JWT login");
        self.issuer.token(&jwt.issuer, &jwt.audience, &jwt.subject, seconds).expect("a JWT")
    }

    /// A client certificate that the provisioned role takes.
    pub fn certificate(&self) -> ClientIdentity {
        let cert = self.setup.cert.as_ref().expect("a certificate login");
        self.nodes.issue(&cert.common_name).expect("a certificate")
    }
}

fn made(folder: PathBuf) -> PathBuf {
    std::fs::create_dir_all(&folder).expect("a folder");
    folder
}

/// Waits until one of the nodes says that it leads; its place among them.
pub async fn leader(nodes: &[OpenBao]) -> usize {
    until("a leader", LONG, async || {
        for (at, node) in nodes.iter().enumerate() {
            if node.health().await == 200 {
                return Ok(at);
            }
        }
        Err("no node says that it leads".to_owned())
    })
    .await
}
