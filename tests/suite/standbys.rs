//! Nodes as OpenBao has them since 2.5: standbys answer encrypt and decrypt themselves, from keys as they were a while ago.
//! No call is lost for it, and no key_id comes back, neither in Status nor in what is sealed.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bao_kms_provider::dev::server::Server;
use bao_kms_provider::front::client::Client;
use serde_json::json;
use tokio::task::JoinHandle;

use super::load::{Load, sealed_under};
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

    /// No key_id came back after another one; all of them, in order.
    async fn forward_only(self) -> Vec<String> {
        assert!(!self.task.is_finished(), "{:?}", self.task.await);
        self.task.abort();
        let seen = self.seen.lock().expect("lock");
        let different: BTreeSet<_> = seen.iter().collect();
        assert_eq!(different.len(), seen.len(), "a key_id came back: {seen:?}");
        seen.clone()
    }
}

/// A seed that was sealed, and opened again.
struct Sealed {
    began: Instant,
    ended: Instant,
    key_id: String,
}

type Account = Arc<Mutex<Vec<Sealed>>>;

/// Callers as [`Load::start`] has them, which keep account of what they sealed under.
fn sealing(client: &Client, account: &Account) -> Load {
    Load::of(16, Duration::from_millis(5), |at| {
        let (client, seed, account) = (client.clone(), vec![at as u8; 32], account.clone());
        move || {
            let (client, seed, account) = (client.clone(), seed.clone(), account.clone());
            async move {
                let began = Instant::now();
                let key_id = sealed_under(&client, &seed).await?;
                let sealed = Sealed { began, ended: Instant::now(), key_id };
                account.lock().expect("lock").push(sealed);
                Ok(())
            }
        }
    })
}

/// Nothing was sealed under an older key_id than what had been answered when it began; `order` is that of Status. Calls
/// that overlap may be answered in any order.
fn assert_forward(account: &[Sealed], order: &[String]) {
    let place = |sealed: &Sealed| {
        let known = order.iter().position(|key_id| *key_id == sealed.key_id);
        known.unwrap_or_else(|| panic!("sealed under {}, which Status never said: {order:?}", sealed.key_id))
    };
    let mut answered: Vec<Option<Instant>> = vec![None; order.len()];
    for sealed in account {
        let first = &mut answered[place(sealed)];
        *first = Some(first.map_or(sealed.ended, |earlier| earlier.min(sealed.ended)));
    }
    for (key_id, first) in order.iter().zip(&answered) {
        assert!(first.is_some(), "nothing was sealed under {key_id}: nothing was shown of it");
    }
    for sealed in account {
        let at = place(sealed);
        let before = answered[at + 1..].iter().flatten().any(|first| *first < sealed.began);
        assert!(!before, "sealed under {} after a newer one had been answered: {order:?}", sealed.key_id);
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
    let account = Account::default();
    let (load, watcher) = (sealing(&client, &account), Watcher::start(&client));
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
    let order = watcher.forward_only().await;
    assert_eq!(order.len(), 4, "{order:?}");
    let stale = stage.server.state().calls().answered(400);
    assert!(stale > 0, "no standby was ever behind: nothing was shown");
    load.end().await.assert_clean(500, &format!("{stale} stale answers"));
    assert_forward(&account.lock().expect("lock"), &order);
}
