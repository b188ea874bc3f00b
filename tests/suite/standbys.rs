//! Nodes as OpenBao has them since 2.5: standbys answer encrypt and decrypt themselves, from keys as they were a while ago.
//! No call is lost for it, and no key_id comes back.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bao_kms_provider::dev::server::Server;
use bao_kms_provider::front::client::Client;
use serde_json::json;
use tokio::task::JoinHandle;

use super::load::Load;
use super::nodes::{kill, three};
use super::support::{Stage, status_until};

/// How far standbys are behind: longer than the activation delay of [`Stage::config`], so that a version is in use before
/// they know it.
const BEHIND: Duration = Duration::from_secs(3);

type Seen = Arc<Mutex<Vec<String>>>;

fn note(seen: &Seen, key_id: String) {
    let mut seen = seen.lock().expect("lock");
    if seen.last() != Some(&key_id) {
        seen.push(key_id);
    }
}

/// Polls Status until it is aborted or finds it not `ok`; every key_id that it saw, in order, one for each change.
struct Watcher {
    seen: Seen,
    task: JoinHandle<()>,
}

// === impl Watcher ===

impl Watcher {
    fn start(client: &Client) -> Self {
        let (seen, client) = (Seen::default(), client.clone());
        let sink = seen.clone();
        let task = tokio::spawn(async move {
            loop {
                let status = client.status().await.expect("Status always answers");
                assert_eq!(status.healthz, "ok");
                note(&sink, status.key_id);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        Self { seen, task }
    }

    /// No key_id came back after another one; how many there were.
    async fn forward_only(self) -> usize {
        assert!(!self.task.is_finished(), "{:?}", self.task.await);
        self.task.abort();
        let seen = self.seen.lock().expect("lock");
        let different: BTreeSet<_> = seen.iter().collect();
        assert_eq!(different.len(), seen.len(), "a key_id came back: {seen:?}");
        seen.len()
    }
}

/// Each node dies in turn just after a rotation and comes back, to its place in the file, not knowing the version in use.
#[tokio::test(flavor = "multi_thread")]
async fn standbys_that_lag_lose_no_call_and_no_key_id_comes_back_whichever_node_dies() {
    let stage = Stage::set().await;
    let mut nodes = three(&stage).await;
    // Until the key is older than what standbys see.
    tokio::time::sleep(BEHIND).await;
    for standby in &nodes[1..] {
        standby.set_standby(Some(BEHIND));
    }
    let urls: Vec<_> = nodes.iter().map(Server::url).collect();
    let _program = stage.serve(&stage.config_of(&urls, ""));
    let client = stage.client().await.with_timeout(Duration::from_secs(5));
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    let (load, watcher) = (Load::start(&client, 16), Watcher::start(&client));
    let rotate = format!("{}/keys/{}/rotate", stage.setup.mount, stage.setup.key);
    for at in 0..3 {
        let before = client.status().await.expect("Status").key_id;
        assert!(stage.bao().call("POST", &rotate, &json!({})).await.expect("asked").is_ok());
        let dead = nodes.remove(at);
        // Somebody is the leader whoever dies, and only the leader is up to date.
        nodes[0].set_standby(None);
        nodes[1].set_standby(Some(BEHIND));
        let port = kill(dead).await;
        status_until(&client, "of the next version", |status| status.key_id != before).await;
        let back = stage.node(port).await;
        back.set_standby(Some(BEHIND));
        nodes.insert(at, back);
        tokio::time::sleep(BEHIND).await;
    }
    assert_eq!(watcher.forward_only().await, 4);
    let stale = stage.server.state().calls().answered(400);
    assert!(stale > 0, "no standby was ever behind: nothing was shown");
    load.end().await.assert_clean(500, &format!("{stale} stale answers"));
}
