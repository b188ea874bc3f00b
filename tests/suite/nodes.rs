//! Several nodes of one OpenBao under load: any of them may die or hang, and no call is lost for it.

use std::time::{Duration, Instant};

use bao_kms_provider::dev::server::{Fault, Server};

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
