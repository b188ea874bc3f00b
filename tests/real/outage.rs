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
        setup.pipeline()["health"] = json!({ "tolerance": "3s", "outage": outage });
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

    /// Whether the API server's own readiness says that the provider is well.
    async fn ready(&self) -> Result<(), String> {
        let (status, text) = self.server.get("/readyz/kms-providers").await?;
        if status == 200 { Ok(()) } else { Err(format!("{status}: {text}")) }
    }
}

#[tokio::test]
async fn writes_stop_after_the_api_servers_grace_or_go_on_as_configured() {
    let folder = tempfile::tempdir().expect("a folder");
    let bao = OpenBao::dev(folder.path()).await;
    bao.provision().await;
    let (mut stops, mut coasts) = (Side::start(&bao, "stop-writes").await, Side::start(&bao, "coast").await);
    let key_id = coasts.provider.status("ok").await;
    let unseal = json!({ "key": bao.unseal_key().await });
    bao.write("sys/seal", json!({})).await;
    assert_eq!(stops.provider.status("sealed").await, "", "nothing to write with");
    assert_eq!(coasts.provider.status("sealed").await, key_id, "the last key_id stays");

    stops.store().await.expect("the grace has only begun");
    for side in [&stops, &coasts] {
        until("an API server that says it is not ready", LONG, async || match side.ready().await {
            Ok(()) => Err("ready".to_owned()),
            Err(_) => Ok(()),
        })
        .await;
    }
    until("writes to stop", GRACE, async || {
        tokio::time::sleep(Duration::from_secs(2)).await;
        match stops.store().await {
            Ok(()) => Err("it still writes".to_owned()),
            Err(_) => Ok(()),
        }
    })
    .await;
    coasts.store().await.expect("it coasts");
    stops.check_reads().await;
    coasts.check_reads().await;

    bao.write("sys/unseal", unseal).await;
    let unsealed = Instant::now();
    for side in [&stops, &coasts] {
        assert_eq!(side.provider.status("ok").await, key_id);
    }
    let back = unsealed.elapsed();
    assert!(back < BACK, "Status was healthy after {back:?}");
    until("writes to go on", LONG, async || stops.store().await).await;
    coasts.store().await.expect("stored");
}
