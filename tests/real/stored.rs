//! A Secret goes through a real API server and our socket into a real etcd and back, over restarts of either side; a
//! rotation in Transit reaches the API server's next write.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use prost::Message;

use crate::support::apiserver::{ApiServer, PROVIDER, encryption};
use crate::support::etcd::Etcd;
use crate::support::openbao::OpenBao;
use crate::support::provider::{Login, Provider, Setup};
use crate::support::wait::{LONG, until};

/// What kube-apiserver writes behind its prefix.
#[derive(Clone, PartialEq, Message)]
struct Envelope {
    #[prost(bytes = "vec", tag = "1")]
    encrypted_data: Vec<u8>,
    #[prost(string, tag = "2")]
    key_id: String,
    #[prost(bytes = "vec", tag = "3")]
    encrypted_seed: Vec<u8>,
    #[prost(map = "string, bytes", tag = "4")]
    annotations: std::collections::HashMap<String, Vec<u8>>,
}

/// The three of them and our program between.
struct Cluster {
    folder: tempfile::TempDir,
    bao: OpenBao,
    etcd: Etcd,
    provider: Provider,
    server: ApiServer,
}

impl Cluster {
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let bao = OpenBao::dev(folder.path()).await;
        bao.provision().await;
        let etcd = Etcd::start(folder.path()).await;
        let provider = Setup::new(folder.path(), &bao, Login::Jwt).start();
        let file: PathBuf = folder.path().join("encryption.json");
        std::fs::write(&file, encryption(&provider.setup.socket)).expect("a file");
        // Started together with the program, as after a reboot: who is first does not matter.
        let server = ApiServer::start(folder.path(), &etcd, &file).await;
        Self { folder, bao, etcd, provider, server }
    }

    async fn envelope(&self, name: &str) -> Envelope {
        let raw = self.etcd.secret(name).await;
        let prefix = format!("k8s:enc:kms:v2:{PROVIDER}:");
        let body = raw.strip_prefix(prefix.as_bytes()).unwrap_or_else(|| panic!("{name} is not stored under {prefix}"));
        Envelope::decode(body).expect("an envelope")
    }
}

fn holds(raw: &[u8], text: &str) -> bool {
    raw.windows(text.len()).any(|window| window == text.as_bytes())
}

#[tokio::test]
async fn a_secret_is_stored_through_us_and_reads_back_over_restarts_of_either_side() {
    let mut cluster = Cluster::start().await;
    let (status, text) = cluster.server.get("/readyz/kms-providers").await.expect("an answer");
    assert_eq!(status, 200, "{text}");

    cluster.server.store("first", "only-etcd-must-not-see-this").await;
    assert!(!holds(&cluster.etcd.secret("first").await, "only-etcd-must-not-see-this"));
    let envelope = cluster.envelope("first").await;
    assert_eq!(envelope.key_id, cluster.provider.status("ok").await, "what Status announces is what is stored");
    assert!(envelope.encrypted_seed.starts_with(b"vault:v1:"), "Transit's own text, version 1");
    assert_eq!(envelope.annotations["provider.kms.openbao.org"], b"openbao-transit");
    assert!(!envelope.encrypted_data.is_empty());
    assert_eq!(cluster.server.value("first").await.as_deref(), Ok("only-etcd-must-not-see-this"));

    cluster.server.restart().await;
    assert_eq!(cluster.server.value("first").await.as_deref(), Ok("only-etcd-must-not-see-this"), "a cold API server");

    assert!(cluster.provider.stop().success(), "SIGTERM is a clean end");
    cluster.provider.start();
    cluster.provider.recovers(Instant::now()).await;
    assert_eq!(cluster.server.value("first").await.as_deref(), Ok("only-etcd-must-not-see-this"));
    cluster.server.store("second", "after-our-restart").await;
    assert_eq!(cluster.server.value("second").await.as_deref(), Ok("after-our-restart"));
    assert_eq!(cluster.envelope("second").await.key_id, envelope.key_id, "a restart changes no key_id");

    // Another process takes over while the API server is connected: it writes and reads on, and notices nothing.
    cluster.provider.hand_over().await;
    cluster.server.store("third", "after-our-hand-over").await;
    assert!(!holds(&cluster.etcd.secret("third").await, "after-our-hand-over"));
    assert_eq!(cluster.envelope("third").await.key_id, envelope.key_id, "nor does a hand-over");
    assert_eq!(cluster.server.value("third").await.as_deref(), Ok("after-our-hand-over"));
    let (status, text) = cluster.server.get("/readyz/kms-providers").await.expect("an answer");
    assert_eq!(status, 200, "{text}");

    // A cold API server has to unwrap every seed through the program that took over.
    cluster.server.restart().await;
    let stored =
        [("first", "only-etcd-must-not-see-this"), ("second", "after-our-restart"), ("third", "after-our-hand-over")];
    for (name, value) in stored {
        assert_eq!(cluster.server.value(name).await.as_deref(), Ok(value));
    }
    assert!(cluster.folder.path().exists());
}

#[tokio::test]
async fn a_rotation_reaches_the_next_write_and_old_secrets_stay_readable() {
    let mut cluster = Cluster::start().await;
    cluster.server.store("before", "written under version 1").await;
    let before = cluster.envelope("before").await;

    cluster.bao.write(&cluster.bao.key("/rotate"), serde_json::json!({})).await;
    let client = cluster.provider.connect().await;
    let after = until("Status to announce the new version", LONG, async || {
        let status = client.status().await.map_err(|error| format!("{error:?}"))?;
        if status.healthz == "ok" && status.key_id != before.key_id { Ok(status.key_id) } else { Err(status.healthz) }
    })
    .await;

    // A running API server asks once a minute, a fresh one at once; both take the new key_id for their next seed.
    let mut attempt = 0;
    until("the running API server to follow", LONG, async || {
        attempt += 1;
        let name = format!("running-{attempt}");
        cluster.server.store(&name, "written while it runs").await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let envelope = cluster.envelope(&name).await;
        if envelope.key_id == after { Ok(()) } else { Err(format!("still {}", envelope.key_id)) }
    })
    .await;
    cluster.server.restart().await;
    cluster.server.store("after", "written under version 2").await;
    let envelope = cluster.envelope("after").await;
    assert_eq!(envelope.key_id, after);
    assert!(envelope.encrypted_seed.starts_with(b"vault:v2:"));
    assert_eq!(cluster.server.value("before").await.as_deref(), Ok("written under version 1"));
    assert_eq!(cluster.server.value("after").await.as_deref(), Ok("written under version 2"));
}
