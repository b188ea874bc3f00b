//! `dev`: the whole path as a story, with an embedded OpenBao-compatible server, a real socket and real TLS. It is no
//! place for keys, and says so.

use std::error::Error;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;

use super::{Exit, complain, runtime, say};
use crate::dev::client::{Client as BaoClient, Endpoint};
use crate::dev::jwt::Signer;
use crate::dev::provision::{JwtLogin, Setup, provision};
use crate::dev::server::{Options, Server};
use crate::front::Inherited;
use crate::front::client::{Client, StatusResponse};
use crate::host::PluginHost;
use crate::{config, telemetry};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// End after the story instead of staying up.
    #[arg(long)]
    once: bool,
}

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// How long after a rotation the story's pipeline takes the new version into use.
const ACTIVATION: &str = "2s";
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn run(args: &Args) -> Exit {
    let Ok(runtime) = runtime() else {
        complain("the runtime cannot start");
        return Exit::Unexpected;
    };
    match runtime.block_on(story(args)) {
        Ok(()) => Exit::Ok,
        Err(error) => {
            complain(format_args!("the story ended early: {error}"));
            Exit::Unexpected
        }
    }
}

/// A folder of its own, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn make() -> Outcome<Self> {
        let name = format!("bao-kms-dev-{}-{:08x}", std::process::id(), fastrand::u32(..));
        let path = std::env::temp_dir().join(name);
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    fn write(&self, name: &str, content: &str) -> Outcome<PathBuf> {
        let path = self.0.join(name);
        std::fs::write(&path, content)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What stays is a folder in the temporary directory with nothing that opens anything.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

async fn story(args: &Args) -> Outcome<()> {
    let telemetry = telemetry::init(&quiet())?;
    tell("bao-kms-provider dev: the whole path on this machine.");
    tell("THIS IS NO PLACE FOR KEYS: the server below keeps them in memory and forgets them when it ends.\n");

    let folder = Folder::make()?;
    let server = Server::start(Options::default()).await?;
    step(1, &format!("An OpenBao-compatible server listens at {} with TLS and a CA of its own.", server.url()));

    let signer = Signer::generate()?;
    let login = JwtLogin::of(signer.public_key_pem());
    let jwt = signer.token(&login.issuer, &login.audience, &login.subject, 3_600)?;
    let setup = Setup { jwt: Some(login), ..Setup::default() };
    let endpoint = Endpoint { url: server.url(), ca_pem: server.ca_pem() };
    provision(&endpoint, &server.root_token(), &setup).await?;
    step(
        2,
        &format!(
            "It has a Transit key `{}`, a least-privilege policy and a JWT login role. The program never makes a key itself.",
            setup.key
        ),
    );

    let socket = folder.0.join("kms.sock");
    let file = write_config(&folder, &server, &setup, &jwt, &socket)?;
    let loaded = config::load(std::slice::from_ref(&file))?;
    let host = PluginHost::start(loaded.config, Inherited::none());
    step(3, &format!("A pipeline serves {} from this configuration:\n", socket.display()));
    tell(&indent(&std::fs::read_to_string(&file)?));

    let client = connect(&socket).await?;
    let status = healthy(&client, None).await?;
    step(
        4,
        &format!(
            "Status   -> version {}, healthz {}, key_id {} (answered from memory)",
            status.version, status.healthz, status.key_id
        ),
    );

    let seed: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(32).collect();
    let began = Instant::now();
    let sealed = client.encrypt(seed.clone(), "dev-encrypt").await?;
    step(
        5,
        &format!(
            "Encrypt  -> a seed of 32 bytes became {} bytes under key version 1 in {}",
            sealed.ciphertext.len(),
            took(began)
        ),
    );

    let began = Instant::now();
    let opened =
        client.decrypt(sealed.ciphertext.to_vec(), "dev-decrypt", &sealed.key_id, sealed.annotations.clone()).await?;
    ensure(opened == seed, "what came back is not what was sent")?;
    step(6, &format!("Decrypt  -> the same 32 bytes came back in {}", took(began)));

    let bao = BaoClient::new(&endpoint, &server.root_token(), None)?;
    let rotated = bao.call("POST", &format!("{}/keys/{}/rotate", setup.mount, setup.key), &json!({})).await?;
    ensure(rotated.is_ok(), "the rotation was refused")?;
    step(
        7,
        &format!(
            "Somebody rotates the key in OpenBao. After activationDelay ({ACTIVATION}) every node announces the new version at the same moment ..."
        ),
    );
    let rotated = healthy(&client, Some(&status.key_id)).await?;
    step(
        8,
        &format!(
            "Status   -> key_id {}: kube-apiserver now makes a new seed and rewrites nothing by itself",
            rotated.key_id
        ),
    );

    let again =
        client.decrypt(sealed.ciphertext.to_vec(), "dev-old", &sealed.key_id, sealed.annotations.clone()).await?;
    ensure(again == seed, "the old object does not open")?;
    let fresh = client.encrypt(seed, "dev-new").await?;
    ensure(fresh.key_id == rotated.key_id, "the new object carries another key_id than Status")?;
    step(9, "What version 1 wrapped still opens, and new seeds are wrapped under version 2.\n");

    tell("The EncryptionConfiguration for kube-apiserver:\n");
    tell(&indent(&encryption_configuration(&socket)));
    if !args.once {
        stay(&server, &socket).await;
    }
    host.stop().await;
    server.shutdown().await;
    telemetry.shutdown().await;
    tell("Done: everything that this story made is gone.");
    Ok(())
}

/// Shows each request that reaches OpenBao until Ctrl-C.
async fn stay(server: &Server, socket: &Path) {
    tell(&format!(
        "It stays up: try `bao-kms-provider probe --socket {}`. Requests that reach OpenBao, until Ctrl-C:",
        socket.display()
    ));
    let mut events = server.state().calls().events();
    loop {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => return,
            event = events.recv() => match event {
                Ok(event) => tell(&format!("  {} {:<4} /v1/{} {:.1} ms", event.status, event.method, event.path, event.elapsed.as_secs_f64() * 1e3)),
                Err(tokio::sync::broadcast::error::RecvError::Lagged(missed)) => tell(&format!("  ({missed} more)")),
                Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
            },
        }
    }
}

/// Waits for a healthy Status with another key_id than the one known.
async fn healthy(client: &Client, known: Option<&str>) -> Outcome<StatusResponse> {
    let began = Instant::now();
    loop {
        let status = client.status().await?;
        if status.healthz == "ok" && known != Some(status.key_id.as_str()) {
            return Ok(status);
        }
        ensure(began.elapsed() < PATIENCE, &format!("Status stays {:?}", status.healthz))?;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn connect(socket: &Path) -> Outcome<Client> {
    let began = Instant::now();
    loop {
        match Client::connect(socket).await {
            Ok(client) => return Ok(client),
            Err(error) if began.elapsed() > PATIENCE => return Err(error.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

fn write_config(folder: &Folder, server: &Server, setup: &Setup, jwt: &str, socket: &Path) -> Outcome<PathBuf> {
    let ca = folder.write("ca.pem", &server.ca_pem())?;
    let jwt = folder.write("identity.jwt", jwt)?;
    let text = format!(
        "configVersion: v1
pipelines:
  - name: dev
    socket: {{ path: {socket}, mode: \"0600\" }}
    identity:
      providerName: openbao-kms-dev
      clusterId: dev
      openbaoId: embedded
      transitMountId: transit-dev
      keyLineageId: dev-1
    auth: {{ jwt: {{ mount: jwt, role: kms, file: {jwt} }} }}
    backend:
      transit:
        endpoints: [ {url} ]
        mount: {mount}
        key: {key}
        tls: {{ caFile: {ca} }}
    rotation: {{ activationDelay: {ACTIVATION}, metadataInterval: 1s }}
",
        socket = socket.display(),
        jwt = jwt.display(),
        url = server.url(),
        mount = setup.mount,
        key = setup.key,
        ca = ca.display(),
    );
    folder.write("config.yaml", &text)
}

fn encryption_configuration(socket: &Path) -> String {
    format!(
        "apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
  - resources: [ secrets ]
    providers:
      - kms:
          apiVersion: v2
          name: openbao-kms-dev
          endpoint: unix://{}
          timeout: 3s
      - identity: {{}}
",
        socket.display()
    )
}

/// Warnings as text: the story itself is told on standard output.
fn quiet() -> telemetry::Config {
    let logs =
        telemetry::config::Logs { format: telemetry::config::Format::Text, level: telemetry::config::Level::Warn };
    telemetry::Config { logs, ..telemetry::Config::default() }
}

fn ensure(holds: bool, otherwise: &str) -> Outcome<()> {
    if holds { Ok(()) } else { Err(otherwise.into()) }
}

fn step(number: u32, text: &str) {
    tell(&format!("{number:>2}  {text}"));
}

fn tell(text: &str) {
    say(&format!("{text}\n"));
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("      {line}\n")).collect()
}

fn took(began: Instant) -> String {
    format!("{:.1} ms", began.elapsed().as_secs_f64() * 1e3)
}
