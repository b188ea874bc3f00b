//! What is wrong with the key or with the right to use it, told by a running program: what blocks Status and what is
//! only a finding.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bao_kms_provider::dev::client::Endpoint;
use bao_kms_provider::dev::provision::{Setup, provision};
use bao_kms_provider::dev::server::Fault;
use bao_kms_provider::front::client::StatusResponse;
use serde_json::{Value, json};

use super::support::{KEY, PATIENCE, Stage, code, status_until, until};

#[tokio::test(flavor = "multi_thread")]
async fn trouble_with_the_key_shows_at_once_and_heals() {
    let stage = Stage::set().await;
    let _program = stage.serve(&stage.config(""));
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    let bao = stage.bao();
    assert!(bao.call("DELETE", &format!("{KEY}/soft-delete"), &Value::Null).await.expect("asked").is_ok());
    status_until(&client, "key_soft_deleted", |status| {
        status.healthz == "key_soft_deleted" && status.key_id.is_empty()
    })
    .await;
    assert!(findings(&stage).await.1.contains("key_soft_deleted"));
    assert!(bao.call("POST", &format!("{KEY}/soft-delete-restore"), &json!({})).await.expect("asked").is_ok());
    status_until(&client, "ok", |status| status.healthz == "ok").await;

    let policy = stage.setup.policy_text();
    let put = |text: String| {
        let bao = stage.bao();
        async move { bao.call("POST", "sys/policies/acl/kms", &json!({ "policy": text })).await.expect("asked") }
    };
    assert!(put("path \"x\" { capabilities = [\"read\"] }".into()).await.is_ok());
    status_until(&client, "token_rejected", |status| status.healthz == "token_rejected").await;
    assert!(put(policy).await.is_ok());
    status_until(&client, "ok", |status| status.healthz == "ok").await;
}

/// A lagging standby's metadata is passed over for some seconds; a key that stays behind was restored from a snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_was_rolled_back_seals_nothing_and_opens_what_it_can() {
    let stage = Stage::set().await;
    let _program = stage.serve(&stage.config(""));
    let client = stage.client().await;
    let first = status_until(&client, "ok", |status| status.healthz == "ok").await;
    let bao = stage.bao();
    let old = bao.call("GET", KEY, &Value::Null).await.expect("asked").text;
    assert!(bao.call("POST", &format!("{KEY}/rotate"), &json!({})).await.expect("asked").is_ok());
    let second =
        status_until(&client, "rotated", |status| status.key_id != first.key_id && status.healthz == "ok").await;
    let sealed = client.encrypt(vec![7; 32], "u").await.expect("Encrypt");
    let reads = || stage.server.calls().of("transit/keys");

    // A few answers of a node that lags: nothing moves, least of all backwards.
    let (before, lagging) = (reads(), Fault::Reply { status: 200, body: old.clone() });
    stage.server.faults().add_times(KEY, lagging.clone(), 2);
    let began = Instant::now();
    while reads() < before + 4 {
        let status = client.status().await.expect("Status");
        assert_eq!((status.healthz.as_str(), &status.key_id), ("ok", &second.key_id));
        assert!(began.elapsed() < Duration::from_secs(20), "metadata is not read any more");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    stage.server.faults().add(KEY, lagging);
    status_until(&client, "key_rolled_back", |status| status.healthz == "key_rolled_back" && status.key_id.is_empty())
        .await;
    let refused = client.encrypt(vec![7; 32], "u").await.err().expect("nothing is sealed");
    assert!(refused.to_string().contains("key_rolled_back"), "{refused}");
    assert_eq!(code(&refused), tonic::Code::FailedPrecondition);
    let open = || client.decrypt(sealed.ciphertext.to_vec(), "u", &sealed.key_id, sealed.annotations.clone());
    assert_eq!(open().await.expect("what opens is still opened"), vec![7; 32]);
    stage.server.faults().clear();
    let healed = status_until(&client, "ok", |status| status.healthz == "ok").await;
    assert_eq!(healed.key_id, second.key_id);

    // A version under the same number that was made at another time is another key, at once.
    let mut other: Value =
        serde_json::from_str(&bao.call("GET", KEY, &Value::Null).await.expect("asked").text).expect("json");
    other["data"]["keys"]["2"] = json!(other["data"]["keys"]["2"].as_u64().expect("a time") + 60);
    stage.server.faults().add(KEY, Fault::Reply { status: 200, body: other.to_string() });
    let began = Instant::now();
    status_until(&client, "key_rolled_back", |status| status.healthz == "key_rolled_back").await;
    assert!(began.elapsed() < Duration::from_secs(8), "no lag explains it");
}

/// Status, and the findings of the only pipeline, as `/readyz` shows them.
async fn findings(stage: &Stage) -> (u16, BTreeSet<String>) {
    let (code, text) = stage.admin("/readyz").await;
    let report: Value = serde_json::from_str(&text).expect("JSON");
    let names = report["pipelines"][0]["findings"].as_array().expect("a list").iter();
    (code, names.map(|name| name.as_str().expect("a name").to_owned()).collect())
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn properties_that_only_weaken_the_key_show_in_readyz_and_leave_status_alone() {
    let stage = Stage::set().await;
    let bao = stage.bao();
    let weak = json!({ "deletion_allowed": true, "exportable": true, "allow_plaintext_backup": true });
    assert!(bao.call("POST", &format!("{KEY}/config"), &weak).await.expect("asked").is_ok());
    let program = stage.serve(&stage.config(""));
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok" && !status.key_id.is_empty()).await;
    let all = ["key_exportable", "key_plaintext_backup", "key_deletion_allowed", "upsert_enabled"];
    assert_eq!(findings(&stage).await, (200, set(&all)));
    client.encrypt(vec![7; 32], "u").await.expect("Encrypt");
    for name in all {
        program.logged(&format!("\"finding\":\"{name}\"")).await;
    }

    // What is mended is no finding any more.
    let (mended, off) = (json!({ "deletion_allowed": false }), json!({ "disable_upsert": true }));
    assert!(bao.call("POST", &format!("{KEY}/config"), &mended).await.expect("asked").is_ok());
    assert!(bao.call("POST", "transit/config/keys", &off).await.expect("asked").is_ok());
    let began = Instant::now();
    while findings(&stage).await != (200, set(&["key_exportable", "key_plaintext_backup"])) {
        assert!(began.elapsed() < PATIENCE, "{:?}", findings(&stage).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_wants_a_context_blocks_status_and_is_named() {
    let stage = Stage::set().await;
    let made = stage.bao().call("POST", "transit/keys/derived", &json!({ "derived": true })).await;
    assert!(made.expect("asked").is_ok());
    let endpoint = Endpoint { url: stage.server.url(), ca_pem: stage.server.ca_pem() };
    let setup = Setup { key: "derived".into(), ..stage.setup.clone() };
    provision(&endpoint, &stage.server.root_token(), &setup).await.expect("set up");
    let config = stage.config("").replace("key: k8s-etcd", "key: derived");
    assert_ne!(config, stage.config(""));
    let program = stage.serve(&config);
    let client = stage.client().await;
    let blocked = |healthz: &str| healthz == "key_unusable";
    status_until(&client, "blocked", |status| blocked(&status.healthz) && status.key_id.is_empty()).await;
    assert_eq!(findings(&stage).await, (503, set(&["key_derived", "upsert_enabled"])));
    program.logged("\"finding\":\"key_derived\"").await;
    let asked = stage.server.calls().of("transit/encrypt");
    assert_eq!(asked, 0, "a key that is known to be unfit is not tried");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_hides_the_mounts_config_is_one_finding_and_nothing_more() {
    let stage = Stage::set().await;
    let whole = stage.setup.policy_text();
    let hidden: String =
        whole.lines().filter(|line| !line.contains("config/keys")).map(|line| format!("{line}\n")).collect();
    assert_ne!(hidden, whole);
    let put = stage.bao().call("POST", "sys/policies/acl/kms", &json!({ "policy": hidden })).await;
    assert!(put.expect("asked").is_ok());
    let program = stage.serve(&stage.config(""));
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    // Several more looks, each of which meets the 403.
    let asked = stage.server.calls().of("transit/config/keys");
    until("more looks", || stage.server.calls().of("transit/config/keys") >= asked + 3).await;
    assert_eq!(findings(&stage).await, (200, set(&["upsert_unknown"])));
    assert_eq!(client.status().await.expect("Status").healthz, "ok");
    client.encrypt(vec![7; 32], "u").await.expect("Encrypt");
    assert_eq!(stage.server.calls().of("auth/login"), 1, "this 403 says nothing of the token");
    let (_, log) = program.stop();
    assert!(!log.contains("token_rejected"), "{log}");
}

/// With the intervals that a file without `rotation` and `health` has, the next look by itself is half a minute away and the
/// next proof of the right to seal five minutes: the first call that is refused closes Status.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_call_that_is_refused_closes_status_whatever_the_intervals() {
    let stage = Stage::set().await;
    let own = "    rotation: { activationDelay: 1s, metadataInterval: 500ms }\n";
    let config = stage.config("").replace(own, "");
    assert_ne!(config, stage.config(""));
    let _program = stage.serve(&config);
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    let denied = "{\"errors\":[\"1 error occurred:\\n\\t* permission denied\\n\\n\"]}";
    for _ in 0..3 {
        // The right to seal alone: what the keeper reads it still reads.
        stage.server.faults().add("transit/encrypt", Fault::Reply { status: 403, body: denied.into() });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(client.status().await.expect("Status").healthz, "ok", "nobody has asked yet");
        let refused = client.encrypt(vec![7; 32], "u").await.err().expect("refused");
        assert!(refused.to_string().contains("token_rejected"), "{refused}");
        let began = Instant::now();
        let closed = |status: &StatusResponse| status.healthz == "token_rejected" && status.key_id.is_empty();
        status_until(&client, "token_rejected", closed).await;
        // A look a second, and what a busy machine needs for it.
        assert!(began.elapsed() < Duration::from_secs(3), "closed after {:?}", began.elapsed());
        stage.server.faults().clear();
        status_until(&client, "ok", |status| status.healthz == "ok").await;
    }
}
