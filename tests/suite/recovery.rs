//! What brings a node back, as docs/recovery.md tells it: a key that was restored from an older backup, a node that is
//! new, an identity that was lost, a minimum that was raised too early, a socket that is refused.

use std::time::{Duration, Instant};

use bao_kms_provider::dev::server::Fault;
use bao_kms_provider::front::client::{Client, EncryptResponse};
use serde_json::{Value, json};

use super::support::{PATIENCE, Stage, status_until};

const KEY: &str = "transit/keys/k8s-etcd";

async fn open(client: &Client, sealed: &EncryptResponse) -> Result<Vec<u8>, String> {
    let opened = client.decrypt(sealed.ciphertext.to_vec(), "u", &sealed.key_id, sealed.annotations.clone()).await;
    opened.map_err(|error| error.to_string())
}

/// Opens until the answer is as wanted.
async fn open_until(client: &Client, sealed: &EncryptResponse, wanted: impl Fn(&Result<Vec<u8>, String>) -> bool) {
    let began = Instant::now();
    loop {
        let answer = open(client, sealed).await;
        if wanted(&answer) {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{answer:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_accepts_a_key_that_was_rolled_back_and_what_it_lost_stays_closed() {
    let stage = Stage::set().await;
    let program = stage.serve(&stage.config(""));
    let client = stage.client().await;
    let first = status_until(&client, "ok", |status| status.healthz == "ok").await;
    let kept = client.encrypt(vec![1; 32], "u").await.expect("Encrypt");
    let bao = stage.bao();
    let old = bao.call("GET", KEY, &Value::Null).await.expect("asked").text;
    assert!(bao.call("POST", &format!("{KEY}/rotate"), &json!({})).await.expect("asked").is_ok());
    status_until(&client, "rotated", |status| status.key_id != first.key_id && status.healthz == "ok").await;
    let lost = client.encrypt(vec![2; 32], "u").await.expect("Encrypt");

    stage.server.faults().add(KEY, Fault::Reply { status: 200, body: old });
    status_until(&client, "key_rolled_back", |status| status.healthz == "key_rolled_back").await;
    assert_eq!(program.stop().0, Some(0));
    let _program = stage.serve(&stage.config(""));
    let client = stage.client().await;
    let status = status_until(&client, "ok", |status| status.healthz == "ok").await;
    assert_eq!(status.key_id, first.key_id, "what the backup held is all there is");
    let sealed = client.encrypt(vec![3; 32], "u").await.expect("writes go on");
    assert_eq!((&sealed.key_id, open(&client, &kept).await), (&first.key_id, Ok(vec![1; 32])));
    let refused = open(&client, &lost).await.expect_err("its version is gone");
    assert!(refused.contains("key_id_unknown"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_node_needs_the_file_and_a_credential_and_nothing_else() {
    let stage = Stage::set().await;
    let program = stage.serve(&stage.config(""));
    let client = stage.client().await;
    let before = status_until(&client, "ok", |status| status.healthz == "ok").await;
    let sealed = client.encrypt(vec![7; 32], "u").await.expect("Encrypt");
    assert_eq!(program.stop().0, Some(0));

    // Whatever the first one left on its node is not there.
    std::fs::remove_dir_all(stage.dir.path()).expect("removed");
    std::fs::create_dir(stage.dir.path()).expect("an empty folder");
    stage.write("ca.pem", &stage.server.ca_pem());
    stage.issue_jwt(3_600);
    let _program = stage.serve(&stage.config(""));
    let client = stage.client().await;
    let after = status_until(&client, "ok", |status| status.healthz == "ok").await;
    assert_eq!((after.key_id, open(&client, &sealed).await), (before.key_id, Ok(vec![7; 32])));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_identity_opens_nothing_and_the_lost_one_opens_everything_again() {
    let stage = Stage::set().await;
    let program = stage.serve(&stage.config(""));
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    let sealed = client.encrypt(vec![7; 32], "u").await.expect("Encrypt");
    assert_eq!(program.stop().0, Some(0));
    for value in ["providerName: p", "clusterId: c", "openbaoId: b", "transitMountId: m", "keyLineageId: l"] {
        let guessed = stage.config("").replace(value, &format!("{value}-guessed"));
        let program = stage.serve(&guessed);
        let client = stage.client().await;
        status_until(&client, "ok", |status| status.healthz == "ok").await;
        let refused = open(&client, &sealed).await.expect_err(value);
        assert!(refused.contains("key_id_unknown"), "{value}: {refused}");
        assert_eq!(program.stop().0, Some(0));
    }
    let _program = stage.serve(&stage.config(""));
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    assert_eq!(open(&client, &sealed).await, Ok(vec![7; 32]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_minimum_that_is_lowered_again_opens_what_it_had_closed() {
    let stage = Stage::set().await;
    let _program = stage.serve(&stage.config(""));
    let client = stage.client().await;
    let first = status_until(&client, "ok", |status| status.healthz == "ok").await;
    let sealed = client.encrypt(vec![7; 32], "u").await.expect("Encrypt");
    let bao = stage.bao();
    let minimum = |version: u32| {
        let (bao, body) = (&bao, json!({ "min_decryption_version": version }));
        async move { assert!(bao.call("POST", &format!("{KEY}/config"), &body).await.expect("asked").is_ok()) }
    };
    assert!(bao.call("POST", &format!("{KEY}/rotate"), &json!({})).await.expect("asked").is_ok());
    status_until(&client, "rotated", |status| status.key_id != first.key_id && status.healthz == "ok").await;
    minimum(2).await;
    open_until(&client, &sealed, |answer| {
        answer.as_ref().is_err_and(|error| error.contains("version_too_old") && error.contains("key version 1"))
    })
    .await;
    assert_eq!(client.status().await.expect("Status").healthz, "ok", "it concerns that object alone");
    minimum(1).await;
    open_until(&client, &sealed, |answer| *answer == Ok(vec![7; 32])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_is_refused_shows_in_its_metric_until_the_cause_is_gone() {
    let stage = Stage::set().await;
    let obstacle = stage.write("kms.sock", "not a socket");
    let program = stage.serve(&stage.config(""));
    program.logged("socket_refused").await;
    let shown = |value: u8| format!("bao_kms_socket_ready{{pipeline=\"a\"}} {value}\n");
    let metrics = stage.admin("/metrics").await.1;
    assert!(metrics.contains(&shown(0)), "{metrics}");
    let (code, report) = stage.admin("/readyz").await;
    assert!(code == 503 && report.contains("kms.sock"), "{report}");

    std::fs::remove_file(obstacle).expect("removed");
    status_until(&stage.client().await, "ok", |status| status.healthz == "ok").await;
    let metrics = stage.admin("/metrics").await.1;
    assert!(metrics.contains(&shown(1)), "{metrics}");
}
