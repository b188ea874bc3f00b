//! Two API servers on one etcd, each with a host of ours whose clock is a minute off in its own direction, before three
//! OpenBao nodes: what one writes the other reads, whatever happens between, and no read fails at any moment.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;
use tokio::sync::Mutex;

use crate::support::apiserver::{ApiServer, PROVIDER};
use crate::support::etcd::Etcd;
use crate::support::openbao::{OpenBao, leader};
use crate::support::provider::{Login, Provider, Setup};
use crate::support::wait::{LONG, until};

mod watch;

use watch::{Seen, Watch};

/// How far the clock of each host is off, in seconds.
const OFF: [f64; 2] = [60.0, -60.0];
/// How long after a rotation its version is used.
const DELAY: Duration = Duration::from_secs(6);
/// Around the moment of a rotation's activation the two may announce different key_ids: OpenBao tells whole seconds.
const APART: Duration = Duration::from_secs(1);
/// A look at both is not one moment.
const LOOK: Duration = Duration::from_millis(200);

struct Node {
    folder: tempfile::TempDir,
    provider: Provider,
    server: ApiServer,
    encryption: PathBuf,
    /// Held while the API server restarts.
    turn: Arc<Mutex<()>>,
    /// Held while the program restarts.
    ours: Arc<Mutex<()>>,
    /// How far its clock is off, in seconds.
    off: f64,
}

impl Node {
    async fn start(nodes: &[OpenBao], etcd: &Etcd, seconds: f64) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut setup = Setup::new(folder.path(), &nodes[0], Login::Jwt);
        let urls: Vec<_> = nodes.iter().map(|node| node.url.clone()).collect();
        setup.pipeline()["backend"]["transit"]["endpoints"] = json!(urls);
        setup.pipeline()["health"]["tolerance"] = json!("3m");
        setup.pipeline()["rotation"] =
            json!({ "activationDelay": format!("{}s", DELAY.as_secs()), "metadataInterval": "1s" });
        let off = folder.path().join("clock");
        std::fs::write(&off, format!("{seconds:+}\n")).expect("a file");
        setup.clock = Some(off);
        let provider = setup.start();
        provider.status("ok").await;
        check_clock(&provider, seconds).await;
        let encryption = folder.path().join("encryption.json");
        write(&encryption, &provider.setup.socket, Phase::Read);
        let server = ApiServer::start(folder.path(), etcd, &encryption).await;
        Self { folder, provider, server, encryption, turn: Arc::default(), ours: Arc::default(), off: seconds }
    }

    fn seen(&self, name: &'static str) -> Seen {
        let (socket, reader) = (self.provider.setup.socket.clone(), self.server.reader());
        Seen { name, socket, reader, turn: self.turn.clone(), ours: self.ours.clone() }
    }

    async fn key_id(&self) -> String {
        self.provider.connect().await.status().await.expect("Status").key_id
    }
}

/// Its own clock tells when its token ends.
async fn check_clock(provider: &Provider, seconds: f64) {
    let ends = provider.sum("bao_kms_token_expiry_timestamp_seconds", &[]).await;
    let really = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970") + Duration::from_secs(3_600);
    let off = ends - really.as_secs_f64();
    assert!((off - seconds).abs() < 10.0, "its clock is {off} s off, not {seconds}");
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

/// Restarts an API server, which then knows no seed any more.
async fn restart(node: &mut Node) {
    let _turn = node.turn.lock().await;
    node.server.restart().await;
}

/// Ends a program of ours and starts it again, as a service manager does; its clock is off as before.
async fn restart_ours(node: &mut Node) {
    let _turn = node.ours.lock().await;
    assert!(node.provider.stop().success());
    node.provider.start();
    node.provider.recovers(Instant::now()).await;
    check_clock(&node.provider, node.off).await;
}

/// What is sealed at one socket opens at the other one, and both seal under this key_id.
async fn open_each_other(a: &Node, b: &Node, key_id: &str) {
    for (writer, reader) in [(a, b), (b, a)] {
        let (writer, reader) = (writer.provider.connect().await, reader.provider.connect().await);
        let sealed = writer.encrypt(vec![9; 32], "u").await.expect("sealed");
        assert_eq!(sealed.key_id, key_id);
        let opened = reader.decrypt(sealed.ciphertext, "u", &sealed.key_id, sealed.annotations).await;
        assert_eq!(opened.expect("the other one opens it"), vec![9; 32]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_node_writes_the_other_reads_through_phases_rotation_restarts_and_failover() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut bao = OpenBao::cluster(folder.path()).await;
    bao[0].provision().await;
    let etcd = Etcd::start(folder.path()).await;
    let mut a = Node::start(&bao, &etcd, OFF[0]).await;
    let mut b = Node::start(&bao, &etcd, OFF[1]).await;
    let mut names = Vec::new();

    // Phase one: both can read what the provider wrote, nobody writes it.
    exchange(&a, &b, &mut names, "clear").await;
    assert!(!etcd.secret("clear-a").await.starts_with(b"k8s:enc:"));
    let first = a.key_id().await;
    assert_eq!(first, b.key_id().await, "compared before anybody writes");
    let watch = Watch::start([a.seen("a"), b.seen("b")], "clear-a").await;

    // Phase two, one after the other: in between one writes what the other one reads already.
    for turn in 0..2 {
        let node = if turn == 0 { &mut a } else { &mut b };
        write(&node.encryption, &node.provider.setup.socket, Phase::Write);
        restart(node).await;
        exchange(&a, &b, &mut names, &format!("phase-two-{turn}")).await;
    }
    assert!(etcd.secret("phase-two-1-b").await.starts_with(b"k8s:enc:kms:v2:"));
    watch.turn_to("phase-two-1-b");

    // A rotation: the two move at the same moment of OpenBao's clock, whatever their own say.
    let at = leader(&bao).await;
    bao[at].write(&bao[at].key("/rotate"), json!({})).await;
    let made = bao[at].read(&bao[at].key("")).await["keys"]["2"].as_u64().expect("a second version");
    let active = UNIX_EPOCH + Duration::from_secs(made) + DELAY;
    // Whose clock is ahead would be the first to move if a new process went by it.
    restart_ours(&mut a).await;
    assert_eq!(a.key_id().await, first, "not before the activation");
    assert!(SystemTime::now() + APART < active, "too late to show anything");
    let second = until("both to announce the new version", LONG, async || {
        let (a, b) = (a.key_id().await, b.key_id().await);
        if a == b && a != first { Ok(a) } else { Err("not yet".to_owned()) }
    })
    .await;
    exchange(&a, &b, &mut names, "rotated").await;

    // Whose clock is behind would go back; its API server and the other one have to ask for everything then.
    restart_ours(&mut b).await;
    assert!(SystemTime::now() < active + Duration::from_secs_f64(-OFF[1]), "its clock is past the activation as well");
    assert_eq!((a.key_id().await, b.key_id().await), (second.clone(), second.clone()), "a restart moves nothing");
    open_each_other(&a, &b, &second).await;
    for node in [&mut a, &mut b] {
        restart(node).await;
    }
    exchange(&a, &b, &mut names, "rotated-and-restarted").await;

    // Another process of ours on each host, and API servers that have to ask it; then a new leader.
    a.provider.hand_over().await;
    restart(&mut a).await;
    b.provider.hand_over().await;
    exchange(&a, &b, &mut names, "restarted").await;
    let at = leader(&bao).await;
    bao[at].kill();
    restart(&mut b).await;
    exchange(&a, &b, &mut names, "failed-over").await;
    assert_eq!(a.key_id().await, b.key_id().await);

    for moment in watch.end().await {
        let off = moment.duration_since(active).unwrap_or_else(|before| before.duration());
        assert!(off < APART + LOOK, "they announced different key_ids {off:?} from the activation");
    }
    assert!(a.folder.path().exists() && b.folder.path().exists());
}
