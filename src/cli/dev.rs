//! `dev`: the whole path as a story, with an embedded OpenBao-compatible server, a real socket and real TLS. It is no
//! place for keys, and says so.

use std::error::Error;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};

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
/// How often the calls are looked at that were answered meanwhile.
const LOOK: Duration = Duration::from_millis(50);
/// How long tasks that still run at the end may take.
const END_WITHIN: Duration = Duration::from_secs(2);

pub(super) fn run(args: &Args) -> Exit {
    let Ok(runtime) = runtime() else {
        complain("the runtime cannot start");
        return Exit::Unexpected;
    };
    let outcome = runtime.block_on(async {
        // Listened for before there is a folder with a credential in it that somebody would have to remove.
        let mut stop = Stop::listen()?;
        let folder = Folder::make()?;
        let ended = story(args, &folder, &mut stop).await;
        Outcome::Ok((folder, ended))
    });
    // Whatever still runs could write into the folder: it ends first.
    runtime.shutdown_timeout(END_WITHIN);
    match outcome.and_then(|(folder, ended)| folder.remove().and(ended)) {
        Ok(()) => {
            tell("Done: everything that this story made is gone.");
            Exit::Ok
        }
        Err(error) => {
            complain(format_args!("the story ended early: {error}"));
            Exit::Unexpected
        }
    }
}

/// The signals that end the story: Ctrl-C, a service manager's SIGTERM, a terminal that was closed.
struct Stop([Signal; 3]);

// === impl Stop ===

impl Stop {
    fn listen() -> std::io::Result<Self> {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let [interrupt, terminate, hangup] = kinds.map(signal);
        Ok(Self([interrupt?, terminate?, hangup?]))
    }

    async fn asked(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
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

    /// Removes it, and says when something of it stays.
    fn remove(self) -> Outcome<()> {
        match std::fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(format!("{} holds a credential and cannot be removed: {error}", self.0.display()).into())
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // The way out of a panic; `remove` is the ordinary one and says what it could not do.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Tells the story until its end or until somebody asks for one, whichever comes first.
async fn story(args: &Args, folder: &Folder, stop: &mut Stop) -> Outcome<()> {
    let telemetry = telemetry::init(&quiet())?;
    let told = tokio::select! {
        told = chapters(folder) => Some(told),
        () = stop.asked() => None,
    };
    let ended = match told {
        None => Ok(()),
        Some(Err(error)) => Err(error),
        Some(Ok((host, server, socket))) => {
            if !args.once {
                stay(&host, &socket, stop).await;
            }
            host.stop().await;
            server.shutdown().await;
            Ok(())
        }
    };
    telemetry.shutdown().await;
    ended
}

/// Sets everything up, shows it work and leaves it running.
async fn chapters(folder: &Folder) -> Outcome<(PluginHost, Server, PathBuf)> {
    tell("bao-kms-provider dev: the whole path on this machine.");
    tell("THIS IS NO PLACE FOR KEYS: the server below keeps them in memory and forgets them when it ends.\n");

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
    let file = write_config(folder, &server, &setup, &jwt, &socket)?;
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
    Ok((host, server, socket))
}

/// Shows each KMS call that was answered, as the program itself counts them, until a signal ends it.
async fn stay(host: &PluginHost, socket: &Path, stop: &mut Stop) {
    let answers = || host.outlook().pipelines.load().iter().flat_map(|one| one.metrics.answers()).collect::<Vec<_>>();
    let mut before = answers();
    tell(&format!(
        "It stays up: try `bao-kms-provider probe --socket {}`. KMS calls and how they ended, until Ctrl-C:",
        socket.display()
    ));
    let mut look = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            () = stop.asked() => return,
            _ = look.tick() => {}
        }
        let now = answers();
        for (call, class, count) in &now {
            let known = before.iter().find(|(one, other, _)| (one, other) == (call, class)).map_or(0, |row| row.2);
            match count.saturating_sub(known) {
                0 => {}
                1 => tell(&format!("  {call:<8} {class}")),
                many => tell(&format!("  {call:<8} {class} ({many} calls)")),
            }
        }
        before = now;
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
