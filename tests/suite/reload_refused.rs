//! Reloads that cannot be: what runs goes on, and the operator learns what to do instead.

use rustix::process::Signal;

use super::support::{Stage, status_until};

const WRONG: &str = "obf1.AAAAAAAAAAAAAAAAAAAAAAAA.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_pin_in_a_reload_leaves_a_healthy_pipeline_alone() {
    let stage = Stage::set().await;
    let program = stage.serve(&stage.config(""));
    let client = stage.client().await;
    let before = status_until(&client, "ok", |status| status.healthz == "ok").await;
    let pinned =
        |pin: &str| stage.config("").replace("keyLineageId: l", &format!("keyLineageId: l, fingerprint: {pin}"));

    stage.write("config.yaml", &pinned(WRONG));
    program.signal(Signal::HUP);
    program.logged("identity.fingerprint is not the fingerprint of this configuration").await;
    let status = client.status().await.expect("Status");
    assert_eq!((status.healthz.as_str(), &status.key_id), ("ok", &before.key_id));
    client.encrypt(vec![7; 32], "u").await.expect("what ran goes on");
    let (code, report) = stage.admin("/readyz").await;
    assert!(code == 200 && report.contains("config show"), "{report}");

    let right = bao_kms_provider::config::load(&[stage.write("right.yaml", &stage.config(""))]).expect("it loads");
    stage.write("config.yaml", &pinned(&bao_kms_provider::host::fingerprint(&right.config.pipelines[0])));
    program.signal(Signal::HUP);
    program.logged("\"event\":\"reloaded\"").await;
    client.encrypt(vec![7; 32], "u").await.expect("the right pin serves");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_that_was_refused_for_its_pin_serves_once_it_is_right() {
    let stage = Stage::set().await;
    let pinned = stage.config("").replace("keyLineageId: l", &format!("keyLineageId: l, fingerprint: {WRONG}"));
    let program = stage.serve(&pinned);
    let client = stage.client().await;
    status_until(&client, "refused", |status| status.healthz == "fingerprint_mismatch").await;

    // Another change with the pin as it is: nothing serves that it could close.
    stage.write("config.yaml", &pinned.replace("level: trace", "level: debug"));
    program.signal(Signal::HUP);
    program.logged("\"event\":\"reloaded\"").await;
    stage.write("config.yaml", &stage.config(""));
    program.signal(Signal::HUP);
    status_until(&client, "ok", |status| status.healthz == "ok").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_activation_delay_is_refused_for_what_it_would_do() {
    let stage = Stage::set().await;
    let program = stage.serve(&stage.config(""));
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    stage.write("config.yaml", &stage.config("").replace("activationDelay: 1s", "activationDelay: 2s"));
    program.signal(Signal::HUP);
    program.logged("rotation.activationDelay cannot change while it runs: other nodes").await;
    assert!(!program.output().contains("no longer open"), "{}", program.output());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_in_the_place_of_the_file_holds_no_reload_up() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let stage = Stage::set().await;
    let program = stage.serve(&stage.config(""));
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    std::fs::remove_file(stage.path("config.yaml")).expect("removed");
    mknodat(CWD, stage.path("config.yaml"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a pipe");
    program.signal(Signal::HUP);
    program.logged("is not a regular file").await;
    client.encrypt(vec![7; 32], "u").await.expect("what ran goes on");
    let (exit, log) = program.stop();
    assert_eq!(exit, Some(0), "{log}");
}
