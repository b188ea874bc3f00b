//! What looks alive and is not, or not as fast as it was: connections that die without a word while new ones work, as behind
//! a load balancer that fails over; nodes that are all slow; a standby that stays behind.

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

/// Slower than half of what a caller waits, which is what a call gives an address when it has another one to go to.
#[tokio::test(flavor = "multi_thread")]
async fn an_openbao_that_is_slow_at_every_address_is_waited_for() {
    let stage = Stage::set().await;
    let nodes = three(&stage).await;
    let urls: Vec<_> = nodes.iter().map(Server::url).collect();
    let _program = stage.serve(&stage.config_of(&urls, ""));
    let client = stage.client().await.with_timeout(Duration::from_secs(3));
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    stage.server.faults().add("transit", Fault::Delay(Duration::from_millis(1_600)));
    let began = std::time::Instant::now();
    let load = Load::start(&client, 4);
    tokio::time::sleep(Duration::from_secs(20)).await;
    let account = load.end().await;
    // The first calls find out that it is no better elsewhere, and breakers open on the way.
    let noticed = began + Duration::from_secs(8);
    let late: Vec<_> = account.failures.iter().filter(|failure| failure.from > noticed).collect();
    assert!(late.is_empty(), "{late:?}");
    assert!(account.done >= 4, "{account:?}");
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
