//! OpenBao away under load, and back: callers wait inside their deadlines and go on one behind the other.

use std::time::{Duration, Instant};

use super::load::Load;
use super::support::{Stage, status_until};

#[tokio::test(flavor = "multi_thread")]
async fn an_openbao_that_comes_back_is_not_met_by_everybody_at_once() {
    let stage = Stage::set().await;
    let _program = stage.serve(&stage.config(""));
    let client = stage.client().await.with_timeout(Duration::from_secs(5));
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    let load = Load::start(&client, 16);
    let asked = || stage.server.calls().of("transit/encrypt") + stage.server.calls().of("transit/decrypt");
    stage.server.state().seal();
    let (before, began) = (asked(), Instant::now());
    tokio::time::sleep(Duration::from_millis(2_400)).await;
    let during = asked() - before;
    // The sixteen that were on their way, one trial each pause, and those that a healthy answer just before let in.
    assert!(during <= 60, "{during} calls met a sealed OpenBao in {:?}", began.elapsed());
    stage.server.state().unseal();
    let unsealed = Instant::now();
    let before = load.done();
    while load.done() < before + 16 {
        assert!(unsealed.elapsed() < Duration::from_secs(4), "calls do not go on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    load.end().await.assert_clean(16, "a deadline of 5 s spans an outage of 2.4 s");
}
