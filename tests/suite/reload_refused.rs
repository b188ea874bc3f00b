//! Reloads that cannot be: what runs goes on, and the operator learns what to do instead.

use bao_kms_provider::{config, host};
use rustix::process::Signal;

use super::load::round;
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

/// The pin is right, and the rest of the file is what is wrong: it is mended as the log says.
#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_whose_identity_was_mistyped_serves_once_it_is_what_is_pinned() {
    let stage = Stage::set().await;
    let file = stage.write("config.yaml", &stage.config(""));
    let fingerprint = host::fingerprint(&config::load(&[file]).expect("a configuration").config.pipelines[0]);
    let pinned = stage.config("").replace("identity: {", &format!("identity: {{ fingerprint: {fingerprint},"));
    for (path, from, to) in COVERED {
        let program = stage.serve(&pinned.replacen(from, to, 1));
        let client = stage.client().await;
        let refused = status_until(&client, "refused", |status| status.healthz == "fingerprint_mismatch").await;
        assert_eq!(refused.key_id, "", "{path}");
        stage.write("config.yaml", &pinned);
        program.signal(Signal::HUP);
        let healed = status_until(&client, "ok", |status| status.healthz == "ok").await;
        let sealed = client.encrypt(vec![7; 32], "u").await.expect("Encrypt");
        assert_eq!(sealed.key_id, healed.key_id, "{path}");
        assert!(stage.admin("/readyz").await.1.contains(&fingerprint), "{path}");
    }
}

/// What a fingerprint covers: a value of the running file, and another one that would be good at a start.
const COVERED: [(&str, &str, &str); 9] = [
    ("identity.providerName", "providerName: p,", "providerName: other,"),
    ("identity.clusterId", "clusterId: c,", "clusterId: other,"),
    ("identity.openbaoId", "openbaoId: b,", "openbaoId: other,"),
    ("backend.transit.namespace", "mount: transit,", "mount: transit, namespace: other,"),
    ("identity.transitMountId", "transitMountId: m,", "transitMountId: other,"),
    ("identity.keyLineageId", "keyLineageId: l }", "keyLineageId: other }"),
    ("backend.transit.mount", "mount: transit,", "mount: other,"),
    ("backend.transit.key", "key: k8s-etcd,", "key: other,"),
    ("rotation.activationDelay", "activationDelay: 1s", "activationDelay: 2s"),
];

#[tokio::test(flavor = "multi_thread")]
async fn each_value_that_a_fingerprint_covers_is_refused_by_its_path_and_what_ran_goes_on() {
    let stage = Stage::set().await;
    let program = stage.serve(&stage.config(""));
    let client = stage.client().await;
    let before = status_until(&client, "ok", |status| status.healthz == "ok").await;
    let sealed = client.encrypt(vec![7; 32], "u").await.expect("Encrypt");
    // With each comes a change that a reload may make: the file is refused as a whole.
    let quieter = |config: String| config.replace("level: trace", "level: error");
    for (path, from, to) in COVERED {
        let changed = stage.config("").replacen(from, to, 1);
        assert_ne!(changed, stage.config(""), "{path}");
        stage.write("config.yaml", &quieter(changed));
        program.signal(Signal::HUP);
        let refused = format!("pipeline a: {path} cannot change while it runs: ");
        program.logged(&refused).await;
        let (code, report) = stage.admin("/readyz").await;
        assert!(code == 200 && report.contains(&refused), "{path}: {report}");
        assert_eq!(stage.metric("bao_kms_config_refused").await, 1, "{path}");

        let status = client.status().await.expect("Status");
        assert_eq!((status.healthz.as_str(), &status.key_id), ("ok", &before.key_id), "{path}");
        let fresh = client.encrypt(vec![8; 32], "u").await.expect(path);
        assert_eq!(fresh.key_id, before.key_id, "{path}");
        let opened = client.decrypt(sealed.ciphertext.to_vec(), "u", &sealed.key_id, sealed.annotations.clone()).await;
        assert_eq!(opened.expect(path), vec![7; 32]);
    }
    assert!(!program.output().contains("\"event\":\"reloaded\""), "{}", program.output());
    let told = program.output().matches("\"event\":\"reload_refused\"").count();
    assert_eq!(told, COVERED.len(), "one word for each");

    stage.write("config.yaml", &stage.config(""));
    program.signal(Signal::HUP);
    program.logged("\"event\":\"reloaded\"").await;
    assert_eq!(stage.metric("bao_kms_config_refused").await, 0);
    round(&client, &[9; 32]).await.expect("the first file serves as before");
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
