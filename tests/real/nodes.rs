//! Two API servers on one etcd, each with a host of ours whose clock is a minute off in its own direction, before three
//! OpenBao nodes: what one writes the other reads, whatever happens between.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::apiserver::{ApiServer, PROVIDER};
use crate::support::etcd::Etcd;
use crate::support::openbao::{OpenBao, leader};
use crate::support::provider::{Login, Provider, Setup};
use crate::support::wait::{LONG, until};

/// For how long the two may announce different key_ids: a look at the key and the second of its activation.
const APART: Duration = Duration::from_secs(2);

struct Node {
    folder: tempfile::TempDir,
    provider: Provider,
    server: ApiServer,
    encryption: PathBuf,
}

impl Node {
    async fn start(nodes: &[OpenBao], etcd: &Etcd, clock: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut setup = Setup::new(folder.path(), &nodes[0], Login::Jwt);
        let urls: Vec<_> = nodes.iter().map(|node| node.url.clone()).collect();
        setup.pipeline()["backend"]["transit"]["endpoints"] = json!(urls);
        setup.pipeline()["health"]["tolerance"] = json!("3m");
        setup.pipeline()["rotation"] = json!({ "activationDelay": "6s", "metadataInterval": "1s" });
        let off = folder.path().join("clock");
        std::fs::write(&off, clock).expect("a file");
        setup.clock = Some(off);
        let provider = setup.start();
        provider.status("ok").await;
        let encryption = folder.path().join("encryption.json");
        write(&encryption, &provider.setup.socket, Phase::Read);
        let server = ApiServer::start(folder.path(), etcd, &encryption).await;
        Self { folder, provider, server, encryption }
    }

    async fn key_id(&self) -> String {
        self.provider.connect().await.status().await.expect("Status").key_id
    }
}

/// The two phases of docs/install.md.
#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Read,
    Write,
}

fn write(file: &Path, socket: &Path, phase: Phase) {
    let kms = json!({ "kms": {
        "apiVersion": "v2", "name": PROVIDER, "endpoint": format!("unix://{}", socket.display()), "timeout": "3s",
    }});
    let identity = json!({ "identity": {} });
    let providers = if phase == Phase::Read { [identity, kms] } else { [kms, identity] };
    let text = json!({
        "apiVersion": "apiserver.config.k8s.io/v1", "kind": "EncryptionConfiguration",
        "resources": [{ "resources": ["secrets"], "providers": providers }],
    });
    std::fs::write(file, text.to_string()).expect("a file");
}

/// Each stores a Secret that the other one reads, and everything stored before is read by both.
async fn exchange(a: &Node, b: &Node, names: &mut Vec<String>, stage: &str) {
    for (writer, reader, from) in [(a, b, "a"), (b, a, "b")] {
        let name = format!("{stage}-{from}");
        until(&format!("{name} to be stored"), LONG, async || writer.server.try_store(&name, &name).await).await;
        assert_eq!(reader.server.value(&name).await, Ok(name.clone()), "the other one reads it");
        names.push(name);
    }
    for name in &*names {
        for node in [a, b] {
            assert_eq!(node.server.value(name).await, Ok(name.clone()), "{stage}");
        }
    }
}

/// Restarts an API server while the other one goes on reading.
async fn restart(node: &mut Node, other: &Node, name: &str) {
    let restarting = node.server.restart();
    tokio::pin!(restarting);
    loop {
        tokio::select! {
            () = &mut restarting => return,
            value = other.server.value(name) => assert_eq!(value.as_deref(), Ok(name)),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_node_writes_the_other_reads_through_phases_rotation_restarts_and_failover() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut bao = OpenBao::cluster(folder.path()).await;
    bao[0].provision().await;
    let etcd = Etcd::start(folder.path()).await;
    let mut a = Node::start(&bao, &etcd, "+60").await;
    let mut b = Node::start(&bao, &etcd, "-60").await;
    let mut names = Vec::new();

    // Phase one: both can read what the provider wrote, nobody writes it.
    exchange(&a, &b, &mut names, "clear").await;
    assert!(!etcd.secret("clear-a").await.starts_with(b"k8s:enc:"));
    let first = a.key_id().await;
    assert_eq!(first, b.key_id().await, "compared before anybody writes");

    // Phase two, one after the other: in between one writes what the other one reads already.
    for turn in 0..2 {
        let (node, other) = if turn == 0 { (&mut a, &b) } else { (&mut b, &a) };
        write(&node.encryption, &node.provider.setup.socket, Phase::Write);
        restart(node, other, "clear-a").await;
        exchange(&a, &b, &mut names, &format!("phase-two-{turn}")).await;
    }
    assert!(etcd.secret("phase-two-1-b").await.starts_with(b"k8s:enc:kms:v2:"));

    // A rotation: the two move at the same moment of OpenBao's clock, whatever their own say.
    let at = leader(&bao).await;
    bao[at].write(&bao[at].key("/rotate"), json!({})).await;
    let (of_a, of_b) = (a.provider.connect().await, b.provider.connect().await);
    let (mut parted, mut apart) = (None, Duration::ZERO);
    until("both to announce the new version", LONG, async || {
        let (a, b) = tokio::join!(of_a.status(), of_b.status());
        let (a, b) = (a.expect("Status").key_id, b.expect("Status").key_id);
        match (a == b, parted) {
            (false, None) => parted = Some(Instant::now()),
            (true, Some(since)) => apart = Instant::now() - since,
            _ => {}
        }
        if a == b && a != first { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    assert!(apart < APART, "they were apart for {apart:?}");
    exchange(&a, &b, &mut names, "rotated").await;

    // A cold API server and a cold host of ours, then a new leader.
    assert!(a.provider.stop().success());
    a.provider.start();
    a.provider.status("ok").await;
    restart(&mut a, &b, "clear-a").await;
    exchange(&a, &b, &mut names, "restarted").await;
    let at = leader(&bao).await;
    bao[at].kill();
    restart(&mut b, &a, "clear-a").await;
    exchange(&a, &b, &mut names, "failed-over").await;
    assert_eq!(a.key_id().await, b.key_id().await);
    assert!(a.folder.path().exists() && b.folder.path().exists());
}
