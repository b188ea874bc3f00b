//! What a real API server makes of `health.outage` while OpenBao is sealed: writes that stop after its grace, or go on.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::apiserver::{ApiServer, encryption};
use crate::support::etcd::Etcd;
use crate::support::openbao::OpenBao;
use crate::support::provider::{Login, Provider, Setup};
use crate::support::wait::{LONG, until};

/// More than the three minutes for which an API server goes on with a seed, and its ten seconds between two looks.
const GRACE: Duration = Duration::from_secs(300);
/// An API server that is well looks once a minute, so that one minute of its three may be over when OpenBao goes. Writes that
/// stop sooner than this have not stopped for the end of the grace.
const LEAST: Duration = Duration::from_secs(100);
/// Those three minutes, and more than the ten seconds between two looks: who still writes so long after the last healthy
/// Status that anybody can have seen does not live on the ordinary grace.
const OUT_OF_GRACE: Duration = Duration::from_secs(200);
/// For how long one side writes on after the other has stopped. Healthy API servers look once a minute, each in its own: the
/// last good look of the one that coasts may be so much younger.
const LONGER: Duration = Duration::from_secs(70);
/// Between two Secrets.
const APART: Duration = Duration::from_secs(2);
/// How soon Status is healthy again.
const BACK: Duration = Duration::from_secs(2);

struct Side {
    _folder: tempfile::TempDir,
    _etcd: Etcd,
    provider: Provider,
    server: ApiServer,
    stored: u32,
}

impl Side {
    async fn start(bao: &OpenBao, outage: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let etcd = Etcd::start(folder.path()).await;
        let mut setup = Setup::new(folder.path(), bao, Login::Jwt);
        let pipeline = setup.pipeline().as_object_mut().expect("an object");
        // Metadata is read as seldom as by default, and nothing here waits for a rotation.
        pipeline.remove("rotation");
        pipeline.insert("health".to_owned(), json!({ "tolerance": "3s", "outage": outage }));
        let provider = setup.start();
        provider.status("ok").await;
        let file = folder.path().join("encryption.json");
        std::fs::write(&file, encryption(&provider.setup.socket)).expect("a file");
        let server = ApiServer::start(folder.path(), &etcd, &file).await;
        let mut side = Self { _folder: folder, _etcd: etcd, provider, server, stored: 0 };
        side.store().await.expect("stored");
        side
    }

    /// Stores another Secret.
    async fn store(&mut self) -> Result<(), String> {
        self.stored += 1;
        self.server.try_store(&format!("secret-{}", self.stored), "value").await
    }

    async fn check_reads(&self) {
        assert_eq!(self.server.value("secret-1").await.as_deref(), Ok("value"), "its seed was opened before");
    }

    /// Reads the Secret that was stored last.
    async fn check_last(&self) {
        let name = format!("secret-{}", self.stored);
        assert_eq!(self.server.value(&name).await.as_deref(), Ok("value"), "{name}");
    }

    /// Whether the API server's own readiness says that the provider is well.
    async fn ready(&self) -> Result<(), String> {
        let (status, text) = self.server.get("/readyz/kms-providers").await?;
        if status == 200 { Ok(()) } else { Err(format!("{status}: {text}")) }
    }

    /// What docs/failure.md says of `/readyz` for either choice: it fails, for the sake of the provider alone.
    async fn check_unready(&self) {
        let (status, text) = self.server.get("/readyz").await.expect("an answer");
        assert!(status != 200 && text.contains("[-]kms-providers"), "{status}: {text}");
        let (status, text) = self.server.get("/readyz?exclude=kms-providers").await.expect("an answer");
        assert_eq!(status, 200, "who excludes the provider keeps the API server: {text}");
        // Our own one tells the reason.
        self.provider.readyz(503, "sealed").await;
    }

    /// Waits until all of `/readyz` is well again, theirs and ours.
    async fn check_ready(&self) {
        until("an API server that is ready", LONG, async || match self.server.get("/readyz").await? {
            (200, _) => self.ready().await,
            (status, text) => Err(format!("{status}: {text}")),
        })
        .await;
        self.provider.readyz(200, "ok").await;
    }
}

/// The write was refused because the API server may use its seed no longer, and for nothing else.
fn check_expired(error: &str) {
    let wanted = error.starts_with("500: ") && error.contains("encryptedDEKSource with keyID hash");
    assert!(wanted && error.contains(" expired at "), "another reason: {error}");
}

#[tokio::test]
async fn writes_stop_after_the_api_servers_grace_or_go_on_as_configured() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut bao = OpenBao::dev(folder.path()).await;
    // Gone long before OpenBao is back, when logins wait in their longest back-off.
    bao.setup.token_ttl = "20s".into();
    bao.provision().await;
    let (mut stops, mut coasts) = (Side::start(&bao, "stop-writes").await, Side::start(&bao, "coast").await);
    let key_id = coasts.provider.status("ok").await;
    let unseal = json!({ "key": bao.unseal_key().await });
    bao.write("sys/seal", json!({})).await;
    let gone = Instant::now();
    assert_eq!(stops.provider.status("sealed").await, "", "nothing to write with");
    assert_eq!(coasts.provider.status("sealed").await, key_id, "the last key_id stays");
    // No look at Status from here on is a good one, whoever looks.
    let sealed = Instant::now();

    stops.store().await.expect("the grace has only begun");
    for side in [&stops, &coasts] {
        until("an API server that says it is not ready", LONG, async || match side.ready().await {
            Ok(()) => Err("ready".to_owned()),
            Err(_) => Ok(()),
        })
        .await;
        side.check_unready().await;
    }
    // One side waits for its grace to end while the other one writes, through its own grace and beyond.
    let mut stopped: Option<Instant> = None;
    while stopped.is_none_or(|at| at.elapsed() < LONGER) || sealed.elapsed() < OUT_OF_GRACE {
        tokio::time::sleep(APART).await;
        coasts.store().await.unwrap_or_else(|error| panic!("no coasting after {:?}: {error}", sealed.elapsed()));
        if stopped.is_none() {
            match stops.store().await {
                Ok(()) => assert!(sealed.elapsed() < GRACE, "it still writes"),
                Err(error) => {
                    eprintln!("writes stopped after {:?}", gone.elapsed());
                    assert!(gone.elapsed() >= LEAST, "writes stopped after {:?}: {error}", gone.elapsed());
                    check_expired(&error);
                    stopped = Some(Instant::now());
                    coasts.check_unready().await;
                }
            }
        }
    }
    check_expired(&stops.store().await.expect_err("it has stopped for good"));
    for side in [&stops, &coasts] {
        side.check_unready().await;
        side.check_reads().await;
    }
    coasts.check_last().await;
    assert_eq!(coasts.provider.status("sealed").await, key_id, "the last key_id is still there");

    bao.write("sys/unseal", unseal).await;
    let unsealed = Instant::now();
    for side in [&stops, &coasts] {
        assert_eq!(side.provider.status("ok").await, key_id);
    }
    let back = unsealed.elapsed();
    assert!(back < BACK, "Status was healthy after {back:?}");
    coasts.store().await.expect("stored");
    until("writes to go on", LONG, async || stops.store().await).await;
    for side in [&stops, &coasts] {
        side.check_ready().await;
        side.check_last().await;
    }
}
