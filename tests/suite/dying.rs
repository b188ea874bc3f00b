//! What looks alive and is not, or not as fast as it was: connections that die without a word while new ones work, as behind
//! a load balancer that fails over; nodes that are all slow; a standby that stays behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bao_kms_provider::dev::client::{Client as BaoClient, Endpoint};
use bao_kms_provider::dev::server::{Fault, Server};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::load::{Load, round};
use super::nodes::three;
use super::support::{PATIENCE, Stage, eventually, status_until};

/// How long each answer takes where OpenBao is slow.
const SLOW: Duration = Duration::from_millis(1_600);

/// Carries bytes to OpenBao, until connections are frozen: those that there are stay open and carry nothing more.
struct Forwarder {
    port: u16,
    epoch: watch::Sender<u32>,
}

// === impl Forwarder ===

impl Forwarder {
    async fn before(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (epoch, now) = watch::channel(0);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut epoch = now.clone();
                tokio::spawn(async move {
                    let mine = *epoch.borrow();
                    let Ok(mut far) = TcpStream::connect(("127.0.0.1", target)).await else { return };
                    let frozen = async { epoch.wait_for(|epoch| *epoch != mine).await.is_ok() };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = frozen => std::future::pending().await,
                    }
                });
            }
        });
        Self { port, epoch }
    }

    fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    fn freeze(&self) {
        self.epoch.send_modify(|epoch| *epoch += 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_died_without_a_word_cost_what_was_on_them_and_nothing_after() {
    let stage = Stage::set().await;
    let forwarder = Forwarder::before(stage.server.port()).await;
    let _program = stage.serve(&stage.config_of(&[forwarder.url()], ""));
    let client = stage.client().await.with_timeout(Duration::from_secs(3));
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    for _ in 0..2 {
        // Many at once, so that many connections are kept.
        stage.server.faults().add("transit/encrypt", Fault::Delay(Duration::from_millis(200)));
        let mut callers = JoinSet::new();
        for at in 0..32 {
            let client = client.clone();
            callers.spawn(async move { client.encrypt(vec![at; 32], "u").await.expect("Encrypt") });
        }
        callers.join_all().await;
        stage.server.faults().clear();

        forwarder.freeze();
        let mut lost = Vec::new();
        for at in 0..8 {
            lost.extend(round(&client, &[at; 32]).await.err());
        }
        assert!(lost.len() <= 1, "{lost:?}");
        assert_eq!(client.status().await.expect("Status").healthz, "ok");
        eventually("no trouble is left", PATIENCE, || async {
            let metrics = stage.admin("/metrics").await.1;
            let trouble = metrics.lines().find(|line| line.starts_with("bao_kms_trouble{")).map(str::to_owned);
            trouble.map_or(Ok(()), Err)
        })
        .await;
        // A frozen pool is forgotten no more often than once a second.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// How often OpenBao was asked to seal, at whatever node.
fn seals(stage: &Stage) -> u64 {
    stage.server.state().calls().of("transit/encrypt")
}

/// Slower than half of what a caller waits, which is what a call gives an address when it has another one to go to.
#[tokio::test(flavor = "multi_thread")]
async fn an_openbao_that_is_slow_at_every_address_is_waited_for() {
    let stage = Stage::set().await;
    let nodes = three(&stage).await;
    let urls: Vec<_> = nodes.iter().map(Server::url).collect();
    let _program = stage.serve(&stage.config_of(&urls, ""));
    let client = stage.client().await.with_timeout(Duration::from_secs(3));
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    stage.server.state().faults().add("transit", Fault::Delay(SLOW));
    let began = std::time::Instant::now();
    let begun = Arc::new(AtomicU64::new(0));
    let load = Load::of(8, Duration::from_millis(5), |at| {
        let (client, begun) = (client.clone(), begun.clone());
        move || {
            begun.fetch_add(1, Ordering::Relaxed);
            let client = client.clone();
            async move { round(&client, &[at as u8; 32]).await }
        }
    });
    // The first calls find out that it is no better elsewhere, and breakers open on the way.
    let noticed = began + Duration::from_secs(8);
    tokio::time::sleep(Duration::from_secs(8)).await;
    let before = (seals(&stage), begun.load(Ordering::Relaxed));
    tokio::time::sleep(Duration::from_secs(16)).await;
    let (asked, calls) = (seals(&stage) - before.0, begun.load(Ordering::Relaxed) - before.1);
    let account = load.end().await;
    let late: Vec<_> = account.failures.iter().filter(|failure| failure.from > noticed).collect();
    assert!(late.is_empty(), "{late:?}");
    assert!(account.slowest >= SLOW, "nothing was slow: {account:?}");
    assert!(account.done >= 4, "{account:?}");
    // One of the keeper's probes may be among them.
    assert!(asked <= calls + calls / 10 + 1, "OpenBao was asked {asked} times for {calls} calls");
}

/// An answer that takes its time is waited for: a call is one request, and nobody asks another node meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_takes_its_time_is_not_asked_for_at_another_node() {
    const CALLERS: u8 = 8;
    const ROUNDS: u8 = 4;
    let stage = Stage::set().await;
    let nodes = [stage.node(0).await, stage.node(0).await];
    let urls: Vec<_> = nodes.iter().map(Server::url).collect();
    let _program = stage.serve(&stage.config_of(&urls, "    health: { deepProbeInterval: 1h }"));
    let client = stage.client().await.with_timeout(Duration::from_secs(5));
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    let state = stage.server.state();
    for call in ["transit/encrypt", "transit/decrypt"] {
        state.faults().add(call, Fault::Delay(Duration::from_millis(400)));
    }
    // Decrypts share requests, so that it is what requests bring that counts.
    let asked = || (seals(&stage), state.calls().items("transit/encrypt"), state.calls().items("transit/decrypt"));
    let before = asked();
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let client = client.clone();
        callers.spawn(async move {
            for at in 0..ROUNDS {
                round(&client, &[caller * ROUNDS + at; 32]).await.expect("slow, and no more than that");
            }
        });
    }
    callers.join_all().await;
    let (after, calls) = (asked(), u64::from(CALLERS * ROUNDS));
    let more = (after.0 - before.0, after.1 - before.1, after.2 - before.2);
    assert_eq!(more, (calls, calls, calls), "requests to seal, seeds to seal and seeds to open, for as many calls");
    assert_eq!(nodes[1].calls().of("transit/encrypt") + nodes[1].calls().of("transit/decrypt"), 0, "the first serves");
}

/// Longer than metadata may be behind before it counts as a key that was rolled back.
const LONG: Duration = Duration::from_secs(14);

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_stays_behind_is_not_taken_for_a_key_that_was_rolled_back() {
    let stage = Stage::set().await;
    let nodes = three(&stage).await;
    let urls: Vec<_> = nodes.iter().map(Server::url).collect();
    let _program = stage.serve(&stage.config_of(&urls, ""));
    let client = stage.client().await;
    let first = status_until(&client, "ok", |status| status.healthz == "ok").await;
    // Until the key is older than what the standby will see.
    tokio::time::sleep(LONG + Duration::from_secs(4)).await;
    let rotate = format!("{}/keys/{}/rotate", stage.setup.mount, stage.setup.key);
    assert!(stage.bao().call("POST", &rotate, &json!({})).await.expect("asked").is_ok());
    status_until(&client, "rotated", |status| status.key_id != first.key_id).await;
    // It is asked first, and knows nothing of the version in use for as long as this takes.
    nodes[0].set_standby(Some(LONG + Duration::from_secs(4)));
    let began = Instant::now();
    while began.elapsed() < LONG {
        let status = client.status().await.expect("Status");
        assert_eq!(status.healthz, "ok", "after {:?}", began.elapsed());
        assert_ne!(status.key_id, first.key_id);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    round(&client, &[7; 32]).await.expect("the others know it");
    let behind = Endpoint { url: nodes[0].url(), ca_pem: stage.server.ca_pem() };
    let behind = BaoClient::new(&behind, &stage.server.root_token(), None).expect("a client");
    let path = format!("{}/keys/{}", stage.setup.mount, stage.setup.key);
    let told = behind.call("GET", &path, &json!(null)).await.expect("asked").body;
    assert_eq!(told["data"]["latest_version"], 1, "it was behind to the end");
}
