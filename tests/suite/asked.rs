//! What OpenBao is asked, and how often: nothing beyond the policy, nothing for Status, little in a storm.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bao_kms_provider::dev::client::{Client as BaoClient, Endpoint};
use bao_kms_provider::dev::provision::{Setup, provision};
use bao_kms_provider::dev::server::{Fault, Options, Server};
use bao_kms_provider::key::{Identity, KeyId, Version, identity};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::support::{KEY, Stage, status_until, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_start_up_storm_asks_openbao_a_few_times() {
    let stage = Stage::set().await;
    let _program = stage.serve(&stage.config(""));
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    let mut seeds = Vec::new();
    for at in 0..20 {
        seeds.push(client.encrypt(vec![at; 32], "u").await.expect("Encrypt"));
    }
    stage.server.faults().add("transit/decrypt", Fault::Delay(Duration::from_millis(50)));
    let before = stage.server.calls().of("transit/decrypt");
    let callers: Vec<_> = (0..1_000)
        .map(|at| {
            let (client, seed) = (client.clone().with_timeout(Duration::from_secs(20)), seeds[at % 20].clone());
            tokio::spawn(
                async move { client.decrypt(seed.ciphertext.to_vec(), "u", &seed.key_id, seed.annotations).await },
            )
        })
        .collect();
    for (at, caller) in callers.into_iter().enumerate() {
        assert_eq!(caller.await.expect("task").expect("none is refused"), vec![(at % 20) as u8; 32]);
    }
    let asked = stage.server.calls().of("transit/decrypt") - before;
    assert!(asked <= 200, "{asked} Transit calls for 20 seeds");
}

/// The rules of the policy on the page that operators copy from.
fn policy_of_the_page() -> String {
    let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/install.md");
    let page = std::fs::read_to_string(page).expect("the page");
    let policy = page.split_once("<<'HCL'\n").and_then(|(_, rest)| rest.split_once("\nHCL\n")).expect("a policy");
    policy.0.to_owned()
}

#[test]
fn the_policy_of_the_page_grants_six_paths_and_never_create() {
    let page = policy_of_the_page();
    let quoted = |line: &str| line.split('"').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let rules: Vec<Vec<String>> = page.lines().filter(|line| !line.trim_start().starts_with('#')).map(quoted).collect();
    let expected = [
        ["transit/encrypt/k8s-workload-a-etcd", "update"],
        ["transit/decrypt/k8s-workload-a-etcd", "update"],
        ["transit/keys/k8s-workload-a-etcd", "read"],
        ["transit/config/keys", "read"],
        ["auth/token/renew-self", "update"],
        ["auth/token/revoke-self", "update"],
    ];
    assert_eq!(rules, expected);
}

/// Methods and paths that a server was asked, collected as they come.
#[derive(Clone, Default)]
struct Asked(Arc<Mutex<BTreeSet<(String, String)>>>);

impl Asked {
    fn of(server: &Server) -> Self {
        let (asked, mut events) = (Self::default(), server.calls().events());
        let kept = asked.clone();
        tokio::spawn(async move {
            // A reader that falls behind loses events, and ends: then the set stays too small and the test fails.
            while let Ok(event) = events.recv().await {
                assert_ne!(event.status, 403, "the policy of the page allows {} {}", event.method, event.path);
                kept.0.lock().expect("lock").insert((event.method, event.path));
            }
        });
        asked
    }

    fn all(&self) -> BTreeSet<(String, String)> {
        self.0.lock().expect("lock").clone()
    }
}

/// A whole life, under the policy of the page, with short tokens, a rotation, a raised minimum and a seal in it.
#[tokio::test(flavor = "multi_thread")]
async fn openbao_is_asked_only_for_what_the_policy_gives() {
    let stage = Stage::set().await;
    // What administrators do goes to another node, so that the first one hears the program alone.
    let options = Options { state: Some(stage.server.state().clone()), ..Options::default() };
    let desk = Server::start(options).await.expect("a second node");
    let endpoint = Endpoint { url: desk.url(), ca_pem: desk.ca_pem() };
    let setup = Setup { token_ttl: "4s".into(), ..stage.setup.clone() };
    provision(&endpoint, &desk.root_token(), &setup).await.expect("short tokens");
    let bao = BaoClient::new(&endpoint, &desk.root_token(), None).expect("a client");
    let post = async |path: &str, body: Value| {
        assert!(bao.call("POST", path, &body).await.expect("asked").is_ok(), "{path}");
    };
    let policy = policy_of_the_page().replace("k8s-workload-a-etcd", &stage.setup.key);
    post("sys/policies/acl/kms", json!({ "policy": policy })).await;

    let asked = Asked::of(&stage.server);
    let program = stage.serve(&stage.config(""));
    let client = stage.client().await.with_timeout(Duration::from_secs(10));
    let first = status_until(&client, "ok", |status| status.healthz == "ok").await;
    let old = client.encrypt(vec![7; 32], "u").await.expect("Encrypt");
    post(&format!("{KEY}/rotate"), json!({})).await;
    status_until(&client, "rotated", |status| status.key_id != first.key_id && status.healthz == "ok").await;
    let new = client.encrypt(vec![8; 32], "u").await.expect("Encrypt");
    for sealed in [&old, &new] {
        let opened = client.decrypt(sealed.ciphertext.to_vec(), "u", &sealed.key_id, sealed.annotations.clone()).await;
        opened.expect("Decrypt");
    }
    post(&format!("{KEY}/config"), json!({ "min_decryption_version": 2, "min_encryption_version": 2 })).await;
    // Neither a version that is too old nor a request that names another key makes another path.
    let refused = async |key_id: &str| {
        let opened = client.decrypt(old.ciphertext.to_vec(), "u", key_id, old.annotations.clone()).await;
        opened.expect_err("refused");
    };
    let reads = stage.server.calls().of("transit/keys");
    until("the next look at the key", || stage.server.calls().of("transit/keys") > reads + 1).await;
    refused(&old.key_id).await;
    refused(&format!("obk2.{}", "A".repeat(43))).await;
    refused("../../sys/seal").await;
    until("a renewal", || stage.server.calls().of("token/renew-self") > 0).await;
    desk.state().seal();
    until("a look at OpenBao's health", || stage.server.calls().of("sys/health") > 0).await;
    desk.state().unseal();
    client.encrypt(vec![9; 32], "u").await.expect("Encrypt after the seal");
    assert_eq!(program.stop().0, Some(0));

    let key = &stage.setup.key;
    let expected: BTreeSet<(String, String)> = [
        ("POST", "auth/jwt/login".to_owned()),
        ("POST", format!("transit/encrypt/{key}")),
        ("POST", format!("transit/decrypt/{key}")),
        ("GET", format!("transit/keys/{key}")),
        ("GET", "transit/config/keys".to_owned()),
        ("POST", "auth/token/renew-self".to_owned()),
        ("POST", "auth/token/revoke-self".to_owned()),
        ("GET", "sys/health".to_owned()),
    ]
    .map(|(method, path)| (method.to_owned(), path))
    .into();
    until("the token is given back", || asked.all().iter().any(|(_, path)| path.ends_with("revoke-self"))).await;
    assert_eq!(asked.all(), expected);
}

/// The stage's configuration with so long an interval that no routine look at the key falls into a test.
fn looks_seldom(stage: &Stage) -> String {
    let rotation = "rotation: { activationDelay: 1h, metadataInterval: 10m }";
    let config = stage.config("").replace("rotation: { activationDelay: 1s, metadataInterval: 500ms }", rotation);
    assert!(config.contains(rotation));
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn status_asks_openbao_nothing_and_waits_for_nothing_of_it() {
    let stage = Stage::set().await;
    let _program = stage.serve(&looks_seldom(&stage));
    let client = stage.client().await;
    let first = status_until(&client, "ok", |status| status.healthz == "ok").await;
    stage.server.faults().add("", Fault::Hang);
    let before = stage.server.calls().total();
    for _ in 0..1_000 {
        let status = client.status().await.expect("Status answers");
        assert_eq!((status.healthz.as_str(), &status.key_id), ("ok", &first.key_id));
    }
    assert_eq!(stage.server.calls().total(), before, "not one of them asked OpenBao");

    // Nor while calls fill every slot and the queue behind it.
    let mut callers = tokio::task::JoinSet::new();
    for at in 0..200 {
        let client = client.clone().with_timeout(Duration::from_secs(60));
        callers.spawn(async move { client.encrypt(vec![at; 32], "u").await.map(drop) });
    }
    until("the slots are full", || stage.server.calls().total() >= before + 32).await;
    for _ in 0..1_000 {
        assert_eq!(client.status().await.expect("Status answers").key_id, first.key_id);
    }
    assert!(callers.try_join_next().is_none(), "OpenBao hangs all the while");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_key_ids_share_one_look_at_the_key() {
    let stage = Stage::set().await;
    let _program = stage.serve(&looks_seldom(&stage));
    let client = stage.client().await.with_timeout(Duration::from_secs(20));
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    let before = stage.server.calls().of("transit/keys");

    // Another node has seen the rotation first and has sealed with the new version.
    let (bao, key) = (stage.bao(), &stage.setup.key);
    assert!(bao.call("POST", &format!("{KEY}/rotate"), &json!({})).await.expect("asked").is_ok());
    let metadata = bao.call("GET", KEY, &Value::Null).await.expect("asked").body;
    let words: identity::Config = serde_json::from_value(json!({
        "providerName": "p", "clusterId": "c", "openbaoId": "b", "transitMountId": "m", "keyLineageId": "l",
    }))
    .expect("an identity");
    let identity = Identity::of(&words, "");
    let version = Version::new(&identity, 2, metadata["data"]["keys"]["2"].as_u64().expect("a time"));
    let body = json!({
        "plaintext": STANDARD.encode([7; 32]), "associated_data": &*version.associated_data, "key_version": 2,
    });
    let sealed = bao.call("POST", &format!("transit/encrypt/{key}"), &body).await.expect("asked").body;
    let text = sealed["data"]["ciphertext"].as_str().expect("a ciphertext").to_owned();
    let own = stage.server.calls().of("transit/keys") - before;
    assert_eq!(own, 1, "this test's own look");
    let open = async |key_id: &str| client.decrypt(text.clone(), "u", key_id, (*version.annotations).clone()).await;
    assert_eq!(open(version.key_id.as_str()).await.expect("the rotation is found"), vec![7; 32]);

    let mut callers = tokio::task::JoinSet::new();
    for created in 0..100 {
        let (client, text) = (client.clone(), text.clone());
        let (id, annotations) = (KeyId::of(&identity, 3, created), (*version.annotations).clone());
        callers.spawn(async move { client.decrypt(text, "u", id.as_str(), annotations).await });
    }
    for answer in callers.join_all().await {
        let error = answer.expect_err("nobody knows it");
        assert!(error.to_string().contains("key_id_unknown"), "{error}");
    }
    let asked = stage.server.calls().of("transit/keys") - before - own;
    assert_eq!(asked, 1, "one look an interval, however many ask");
    open(version.key_id.as_str()).await.expect("what was found stays");
}
