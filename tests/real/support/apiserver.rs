//! A real kube-apiserver that encrypts Secrets through a KMS socket, and the few calls that tests make of it.

use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use serde_json::{Value, json};

use super::etcd::Etcd;
use super::process::Process;
use super::wait::{LONG, until};
use super::{client, component, free_port};

/// The name of the `kms:` entry, which is also `identity.providerName`.
pub const PROVIDER: &str = "openbao-kms-workload-a";
pub const TOKEN: &str = "test-token";

/// A running API server.
pub struct ApiServer {
    process: Option<Process>,
    program: PathBuf,
    folder: PathBuf,
    arguments: Vec<String>,
    reader: Reader,
    pub url: String,
}

/// Reads from an API server, whether it runs or not.
#[derive(Clone)]
pub struct Reader {
    client: reqwest::Client,
    url: String,
}

/// The EncryptionConfiguration with our socket first and `identity` behind it.
pub fn encryption(socket: &Path) -> String {
    let kms = json!({ "kms": {
        "apiVersion": "v2", "name": PROVIDER, "endpoint": format!("unix://{}", socket.display()), "timeout": "3s",
    }});
    json!({
        "apiVersion": "apiserver.config.k8s.io/v1", "kind": "EncryptionConfiguration",
        "resources": [{ "resources": ["secrets"], "providers": [kms, { "identity": {} }] }],
    })
    .to_string()
}

impl ApiServer {
    /// Starts one on `etcd` with an EncryptionConfiguration and waits until it is ready.
    pub async fn start(folder: &Path, etcd: &Etcd, encryption: &Path) -> Self {
        Self::start_one("kube-apiserver", folder, etcd, encryption).await
    }

    /// The same of another release; `program` is its name among the components.
    pub async fn start_one(program: &str, folder: &Path, etcd: &Etcd, encryption: &Path) -> Self {
        let port = free_port();
        let folder = folder.join(format!("apiserver-{port}"));
        std::fs::create_dir_all(&folder).expect("a folder");
        let (public, private) = (folder.join("sa.pub"), folder.join("sa.key"));
        service_account_key(&public, &private);
        let tokens = folder.join("tokens.csv");
        std::fs::write(&tokens, format!("{TOKEN},admin,admin,\"system:masters\"\n")).expect("a file");
        let url = format!("https://127.0.0.1:{port}");
        let arguments = vec![
            format!("--etcd-servers={}", etcd.url),
            "--bind-address=127.0.0.1".to_owned(),
            "--advertise-address=127.0.0.1".to_owned(),
            format!("--secure-port={port}"),
            format!("--cert-dir={}", folder.join("certs").display()),
            "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
            "--endpoint-reconciler-type=none".to_owned(),
            format!("--service-account-issuer={url}"),
            format!("--service-account-key-file={}", public.display()),
            format!("--service-account-signing-key-file={}", private.display()),
            "--authorization-mode=RBAC".to_owned(),
            format!("--token-auth-file={}", tokens.display()),
            "--disable-admission-plugins=ServiceAccount".to_owned(),
            // Every read is decrypted from etcd.
            "--watch-cache=false".to_owned(),
            format!("--encryption-provider-config={}", encryption.display()),
            "--encryption-provider-config-automatic-reload=true".to_owned(),
        ];
        let program = component(program);
        let reader = Reader { client: client(), url: url.clone() };
        let mut server = Self { process: None, program, folder, arguments, reader, url };
        server.spawn();
        server.ready().await;
        server
    }

    fn spawn(&mut self) {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments);
        self.process = Some(Process::start("kube-apiserver", &self.folder, &mut command));
    }

    /// Ends it at once and starts it again on the same data.
    pub async fn restart(&mut self) {
        self.process = None;
        self.spawn();
        self.ready().await;
    }

    async fn ready(&mut self) {
        let mut process = self.process.take();
        until("kube-apiserver's readiness", LONG, async || {
            process.as_mut().ok_or("not started")?.check()?;
            match self.get("/readyz").await? {
                (200, _) => Ok(()),
                (status, body) => Err(format!("{status}: {body}")),
            }
        })
        .await;
        self.process = process;
        // The namespace is made by a controller that starts after readiness.
        until("the namespace", LONG, async || match self.get("/api/v1/namespaces/default").await? {
            (200, _) => Ok(()),
            (status, body) => Err(format!("{status}: {body}")),
        })
        .await;
    }

    /// A read: status and text.
    pub async fn get(&self, path: &str) -> Result<(u16, String), String> {
        self.reader.get(path).await
    }

    /// What reads from it, for a task of its own.
    pub fn reader(&self) -> Reader {
        self.reader.clone()
    }

    /// Stores a Secret with one value.
    pub async fn store(&self, name: &str, value: &str) {
        self.try_store(name, value).await.expect("stored");
    }

    /// Stores a Secret with one value, or says why it cannot be stored.
    pub async fn try_store(&self, name: &str, value: &str) -> Result<(), String> {
        let body = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name }, "data": { "value": STANDARD.encode(value) },
        });
        let path = "/api/v1/namespaces/default/secrets";
        match self.reader.call(Method::POST, path, Some(body)).await? {
            (201, _) => Ok(()),
            (status, text) => Err(format!("{status}: {text}")),
        }
    }

    /// Reads a Secret's value, or why it cannot be read.
    pub async fn value(&self, name: &str) -> Result<String, String> {
        self.reader.value(name).await
    }
}

// === impl Reader ===

impl Reader {
    async fn get(&self, path: &str) -> Result<(u16, String), String> {
        self.call(Method::GET, path, None).await
    }

    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Result<(u16, String), String> {
        let mut request = self.client.request(method, format!("{}{path}", self.url)).bearer_auth(TOKEN);
        if let Some(body) = body {
            request = request.header("Content-Type", "application/json").body(body.to_string());
        }
        let reply = request.send().await.map_err(|error| format!("{error:?}"))?;
        let status = reply.status().as_u16();
        Ok((status, reply.text().await.map_err(|error| format!("{error:?}"))?))
    }

    /// A Secret's value, or why it cannot be read.
    pub async fn value(&self, name: &str) -> Result<String, String> {
        let (status, text) = self.get(&format!("/api/v1/namespaces/default/secrets/{name}")).await?;
        if status != 200 {
            return Err(format!("{status}: {text}"));
        }
        let secret: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        let value = secret["data"]["value"].as_str().ok_or("no value")?;
        String::from_utf8(STANDARD.decode(value).map_err(|error| error.to_string())?).map_err(|error| error.to_string())
    }
}

fn service_account_key(public: &Path, private: &Path) {
    use rcgen::PublicKeyData;
    let pair = rcgen::KeyPair::generate().expect("a key");
    let body = STANDARD.encode(pair.subject_public_key_info());
    std::fs::write(public, format!("-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n")).expect("a file");
    super::pki::private(private, &pair.serialize_pem());
}
