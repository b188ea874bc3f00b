//! Several nodes of one OpenBao under load: any of them may die or hang, and no call is lost for it.

use std::time::{Duration, Instant};

use bao_kms_provider::dev::server::{Fault, Server};
use tokio::task::JoinSet;

use super::load::Load;
use super::support::{Stage, status_until};

pub(super) async fn three(stage: &Stage) -> Vec<Server> {
    vec![stage.node(0).await, stage.node(0).await, stage.node(0).await]
}

/// What is on its way breaks off, then nobody listens any more; the port.
pub(super) async fn kill(node: Server) -> u16 {
    let port = node.port();
    node.faults().add("", Fault::Reset);
    tokio::time::sleep(Duration::from_millis(150)).await;
    node.shutdown().await;
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn any_of_three_nodes_may_die_and_no_call_is_lost() {
    let stage = Stage::set().await;
    let mut nodes = three(&stage).await;
    let urls: Vec<_> = nodes.iter().map(Server::url).collect();
    let _program = stage.serve(&stage.config_of(&urls, ""));
    let client = stage.client().await.with_timeout(Duration::from_secs(5));
    let first = status_until(&client, "ok", |status| status.healthz == "ok").await;
    let load = Load::start(&client, 16);
    for at in [0, 1, 2, 0] {
        let port = kill(nodes.remove(at)).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let before = load.done();
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(load.done() > before, "calls go on while node {at} is dead");
        nodes.insert(at, stage.node(port).await);
        assert_eq!(client.status().await.expect("Status").key_id, first.key_id);
    }
    // Fail-back: the first of the file is asked again once it answers.
    let began = Instant::now();
    let before = nodes[0].calls().of("transit/encrypt");
    while nodes[0].calls().of("transit/encrypt") < before + 20 {
        assert!(began.elapsed() < Duration::from_secs(10), "no fail-back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    load.end().await.assert_clean(500, "three nodes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_black_holed_node_costs_no_call() {
    let stage = Stage::set().await;
    let other = stage.node(0).await;
    let _program = stage.serve(&stage.config_of(&[stage.server.url(), other.url()], ""));
    let client = stage.client().await.with_timeout(Duration::from_secs(3));
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    let load = Load::start(&client, 16);
    stage.server.faults().add("", Fault::Hang);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(stage.metric("bao_kms_endpoint_open{pipeline=\"a\",endpoint=\"0\"}").await, 1);
    let before = load.done();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(load.done() > before + 50, "once the breaker is open nobody waits for the dead node");
    load.end().await.assert_clean(50, "a black hole");
}

/// As many as an API server asks for when it starts, each of them once: whatever met the dead node is answered by the other.
#[tokio::test(flavor = "multi_thread")]
async fn a_storm_that_meets_a_dead_node_is_answered_by_the_others() {
    const SEEDS: u32 = 1_000;
    let stage = Stage::set().await;
    let other = stage.node(0).await;
    let config = stage.config_of(&[stage.server.url(), other.url()], "").replace("level: trace", "level: info");
    let _program = stage.serve(&config);
    let client = stage.client().await.with_timeout(Duration::from_secs(3));
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    let mut seeds = Vec::new();
    for at in 0..SEEDS {
        let seed = at.to_be_bytes().repeat(8);
        seeds.push((client.encrypt(seed.clone(), "u").await.expect("Encrypt"), seed));
    }
    stage.server.faults().add("", Fault::Hang);
    let mut callers = JoinSet::new();
    for (sealed, seed) in seeds {
        let client = client.clone();
        callers.spawn(async move {
            let opened = client.decrypt(sealed.ciphertext.to_vec(), "u", &sealed.key_id, sealed.annotations).await;
            assert_eq!(opened.expect("the other node answers"), seed);
        });
    }
    callers.join_all().await;
    assert!(stage.server.calls().of("transit/decrypt") > 0, "the dead node was asked");
}

/// `sys/health` says that a node is well, and what is asked there fails all the same: its audit disk is full, or a proxy
/// before it wants something else.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_answers_probes_alone_is_kept_away_from_calls() {
    const LASTS: Duration = Duration::from_secs(11);
    /// Those on their way when the breaker opens, and one every five seconds.
    const MOST: u64 = 12;
    let stage = Stage::set().await;
    let other = stage.node(0).await;
    let _program = stage.serve(&stage.config_of(&[stage.server.url(), other.url()], ""));
    let client = stage.client().await.with_timeout(Duration::from_secs(3));
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    let calls = stage.server.calls();
    let asked = || calls.of("transit/encrypt") + calls.of("transit/decrypt");
    for fault in [
        Fault::Reply { status: 500, body: "{\"errors\":[\"internal error\"]}".into() },
        Fault::Reply { status: 403, body: "<html>blocked</html>".into() },
        Fault::Hang,
    ] {
        let what = format!("{fault:?}");
        let load = Load::start(&client, 4);
        stage.server.faults().add("transit/", fault);
        let before = asked();
        tokio::time::sleep(LASTS).await;
        let met = asked() - before;
        assert!(met <= MOST, "{met} calls met {what}");
        assert_eq!(client.status().await.expect("Status").healthz, "ok", "{what}");
        load.end().await.assert_clean(200, &what);
        stage.server.faults().clear();
        // Fail-back, with the next call that tries.
        let began = Instant::now();
        while asked() < before + met + 20 {
            assert!(began.elapsed() < LASTS * 2, "no fail-back after {what}");
            client.encrypt(vec![7; 32], "u").await.expect("Encrypt");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
