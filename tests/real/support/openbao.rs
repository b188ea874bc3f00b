//! A real OpenBao: in memory for most tests, on raft with a static seal where it must survive a restart.

use std::path::{Path, PathBuf};
use std::process::Command;

use reqwest::Method;
use serde_json::{Value, json};

use super::issuer::{AUDIENCE, ISSUER, Issuer, SUBJECT};
use super::pki::Authority;
use super::process::Process;
use super::wait::{LONG, until};
use super::{client, component, free_port};

pub const KEY: &str = "k8s-workload-a-etcd";
pub const ROLE: &str = "kms-workload-a";

/// A running server, or a stopped one between `stop` and `start`.
pub struct OpenBao {
    process: Option<Process>,
    folder: PathBuf,
    arguments: Vec<String>,
    client: reqwest::Client,
    pub url: String,
    /// The CA that signs the server's certificate.
    pub ca: PathBuf,
    pub root: String,
}

impl OpenBao {
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
        let mut bao = Self {
            process: None,
            folder,
            arguments: arguments.into(),
            client: client(None),
            url: format!("https://127.0.0.1:{port}"),
            ca,
            root: "root".to_owned(),
        };
        bao.start().await;
        bao
    }

    /// On disk, initialised; a restart unseals it.
    pub async fn durable(folder: &Path) -> Self {
        let folder = made(folder.join("openbao"));
        let (port, cluster) = (free_port(), free_port());
        let authority = Authority::new("OpenBao test CA");
        let server = authority.server(&folder);
        let ca = folder.join("ca.pem");
        std::fs::write(&ca, authority.pem()).expect("a file");
        std::fs::write(folder.join("unseal.key"), [7_u8; 32]).expect("a file");
        let dir = made(folder.join("raft"));
        let config = format!(
            "storage \"raft\" {{\n  path = \"{}\"\n  node_id = \"n1\"\n  performance_multiplier = 1\n}}\n\
             listener \"tcp\" {{\n  address = \"127.0.0.1:{port}\"\n  cluster_address = \"127.0.0.1:{cluster}\"\n  \
             tls_cert_file = \"{}\"\n  tls_key_file = \"{}\"\n}}\n\
             api_addr = \"https://127.0.0.1:{port}\"\ncluster_addr = \"https://127.0.0.1:{cluster}\"\ndisable_mlock = true\n\
             seal \"static\" {{\n  current_key_id = \"k1\"\n  current_key = \"file://{}\"\n}}\n",
            dir.display(),
            server.cert.display(),
            server.key.display(),
            folder.join("unseal.key").display(),
        );
        let file = folder.join("config.hcl");
        std::fs::write(&file, config).expect("a file");
        let mut bao = Self {
            process: None,
            arguments: vec!["server".to_owned(), format!("-config={}", file.display())],
            folder,
            client: client(None),
            url: format!("https://127.0.0.1:{port}"),
            ca,
            root: String::new(),
        };
        bao.spawn();
        let init = json!({ "recovery_shares": 1, "recovery_threshold": 1 });
        bao.root = until("OpenBao's initialisation", LONG, async || {
            let (status, body) = bao.call(Method::POST, "sys/init", Some(init.clone())).await?;
            body["root_token"].as_str().map(str::to_owned).ok_or_else(|| format!("{status}: {body}"))
        })
        .await;
        bao.ready().await;
        bao
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
            match self.call(Method::GET, "sys/health", None).await? {
                (200, _) if self.ca.exists() => Ok(()),
                (status, body) => Err(format!("{status}: {body}")),
            }
        })
        .await;
        self.process = process;
    }

    /// One call with the root token: status and body, `null` when there is none.
    pub async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Result<(u16, Value), String> {
        let mut request = self.client.request(method, format!("{}/v1/{path}", self.url));
        if !self.root.is_empty() {
            request = request.header("X-Vault-Token", &self.root);
        }
        if let Some(body) = body {
            request = request.body(body.to_string());
        }
        let reply = request.send().await.map_err(|error| format!("{error:?}"))?;
        let status = reply.status().as_u16();
        let text = reply.text().await.map_err(|error| format!("{error:?}"))?;
        Ok((status, serde_json::from_str(&text).unwrap_or(Value::Null)))
    }

    /// A write that has to succeed; gives the reply's `data`.
    pub async fn write(&self, path: &str, body: Value) -> Value {
        let (status, mut reply) = self.call(Method::POST, path, Some(body)).await.expect("OpenBao answers");
        assert!((200..300).contains(&status), "{path}: {status}: {reply}");
        reply["data"].take()
    }

    /// A read that has to succeed; gives the reply's `data`.
    pub async fn read(&self, path: &str) -> Value {
        let (status, mut reply) = self.call(Method::GET, path, None).await.expect("OpenBao answers");
        assert_eq!(status, 200, "{path}: {reply}");
        reply["data"].take()
    }

    /// Deletes a Transit key for good.
    pub async fn delete_key(&self, name: &str) {
        self.write(&format!("transit/keys/{name}/config"), json!({ "deletion_allowed": true })).await;
        let (status, body) =
            self.call(Method::DELETE, &format!("transit/keys/{name}"), None).await.expect("OpenBao answers");
        assert_eq!(status, 204, "{body}");
    }

    /// Transit with one key, the least policy, and a JWT role that this issuer's tokens meet.
    pub async fn provision(&self, issuer: &Issuer) {
        self.write("sys/mounts/transit", json!({ "type": "transit" })).await;
        self.write("transit/config/keys", json!({ "disable_upsert": true })).await;
        self.write(&format!("transit/keys/{KEY}"), json!({ "type": "aes256-gcm96" })).await;
        self.write(&format!("sys/policies/acl/{ROLE}"), json!({ "policy": policy(KEY) })).await;
        self.write("sys/auth/jwt", json!({ "type": "jwt" })).await;
        let config = json!({ "jwt_validation_pubkeys": [issuer.public_pem()], "bound_issuer": ISSUER });
        self.write("auth/jwt/config", config).await;
        let role = json!({
            "role_type": "jwt", "user_claim": "sub", "bound_audiences": [AUDIENCE], "bound_subject": SUBJECT,
            "token_policies": [ROLE], "token_no_default_policy": true, "token_ttl": "1h",
        });
        self.write(&format!("auth/jwt/role/{ROLE}"), role).await;
    }

    /// A certificate role for clients of this authority.
    pub async fn provision_cert(&self, authority: &Authority) {
        self.write("sys/auth/cert", json!({ "type": "cert" })).await;
        let role = json!({ "certificate": authority.pem(), "token_policies": [ROLE], "token_no_default_policy": true });
        self.write(&format!("auth/cert/certs/{ROLE}"), role).await;
    }
}

/// What the program needs and nothing else.
pub fn policy(key: &str) -> String {
    format!(
        "path \"transit/encrypt/{key}\" {{ capabilities = [\"update\"] }}\n\
         path \"transit/decrypt/{key}\" {{ capabilities = [\"update\"] }}\n\
         path \"transit/keys/{key}\" {{ capabilities = [\"read\"] }}\n\
         path \"transit/config/keys\" {{ capabilities = [\"read\"] }}\n\
         path \"auth/token/renew-self\" {{ capabilities = [\"update\"] }}\n\
         path \"auth/token/revoke-self\" {{ capabilities = [\"update\"] }}\n"
    )
}

fn made(folder: PathBuf) -> PathBuf {
    std::fs::create_dir_all(&folder).expect("a folder");
    folder
}
