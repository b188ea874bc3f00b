//! What a restart remembers of the key: one that was rolled back or made anew while nobody ran is noticed before anything
//! is sealed, whatever becomes of the file.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bao_kms_provider::dev::server::Fault;
use bao_kms_provider::front::client::{Client, EncryptResponse};
use serde_json::{Value, json};
use tonic::Code;

use super::load::round;
use super::support::{KEY, PATIENCE, Program, Stage, code, eventually, status_until, until};

const TROUBLE: &str = "bao_kms_witness_trouble{pipeline=\"a\"}";

fn file(stage: &Stage) -> PathBuf {
    stage.path("a.witness.json")
}

fn config(stage: &Stage) -> String {
    stage.config(&format!("    witness: {{ file: {} }}", file(stage).display()))
}

/// A key with two versions, what its metadata said when it had one, and a seed sealed under each.
struct Scene {
    stage: Stage,
    older: String,
    sealed: [EncryptResponse; 2],
}

async fn sealed(client: &Client, seed: u8) -> EncryptResponse {
    client.encrypt(vec![seed; 32], "u").await.expect("Encrypt")
}

async fn open(client: &Client, sealed: &EncryptResponse) -> Result<Vec<u8>, Code> {
    let opened = client.decrypt(sealed.ciphertext.to_vec(), "u", &sealed.key_id, sealed.annotations.clone()).await;
    opened.map_err(|error| code(&error))
}

// === impl Scene ===

impl Scene {
    /// Sets it up with a first process, which is killed at the end: nothing is written in parting.
    async fn set() -> Self {
        let stage = Stage::set().await;
        let bao = stage.bao();
        let program = stage.serve(&config(&stage));
        let client = stage.client().await;
        let first = status_until(&client, "ok", |status| status.healthz == "ok").await;
        let old = sealed(&client, 1).await;
        let older = bao.call("GET", KEY, &Value::Null).await.expect("asked").text;
        assert!(bao.call("POST", &format!("{KEY}/rotate"), &json!({})).await.expect("asked").is_ok());
        status_until(&client, "rotated", |status| status.healthz == "ok" && status.key_id != first.key_id).await;
        let new = sealed(&client, 2).await;
        until("the second version is kept", || {
            std::fs::read_to_string(file(&stage)).is_ok_and(|text| text.contains("\"active\":{\"version\":2,"))
        })
        .await;
        drop(program);
        Self { stage, older, sealed: [old, new] }
    }

    /// From now on OpenBao's key is what it was before the rotation.
    fn roll_back(&self) {
        self.stage.server.faults().add(KEY, Fault::Reply { status: 200, body: self.older.clone() });
    }

    async fn start(&self) -> (Program, Client) {
        let program = self.stage.serve(&config(&self.stage));
        (program, self.stage.client().await)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_notices_a_key_that_was_rolled_back_until_it_is_back_or_the_witness_is_removed() {
    let scene = Scene::set().await;
    scene.roll_back();
    for _ in 0..2 {
        // However often it is restarted.
        let (_program, client) = scene.start().await;
        let status = status_until(&client, "key_rolled_back", |status| status.healthz == "key_rolled_back").await;
        assert_eq!(status.key_id, "");
        assert_eq!(open(&client, &scene.sealed[0]).await, Ok(vec![1; 32]), "what is left is opened");
        let refused = client.encrypt(vec![3; 32], "u").await.err().expect("nothing is sealed");
        assert_eq!(code(&refused), Code::FailedPrecondition, "{refused}");
    }

    let (program, client) = scene.start().await;
    status_until(&client, "key_rolled_back", |status| status.healthz == "key_rolled_back").await;
    scene.stage.server.faults().clear();
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    for (sealed, seed) in scene.sealed.iter().zip(1..) {
        assert_eq!(open(&client, sealed).await, Ok(vec![seed; 32]));
    }
    drop(program);

    scene.roll_back();
    std::fs::remove_file(file(&scene.stage)).expect("it was there");
    let (program, client) = scene.start().await;
    let accepted = status_until(&client, "ok", |status| status.healthz == "ok").await;
    assert_eq!(accepted.key_id, scene.sealed[0].key_id, "the highest version that is left");
    program.logged("\"witness_missing\"").await;
    assert!(open(&client, &scene.sealed[1]).await.is_err(), "what is lost stays closed");
}

/// Another key under the same name, as after a deletion by mistake.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_notices_a_key_that_was_made_anew_until_the_old_one_is_back() {
    let scene = Scene::set().await;
    let mut other: Value = serde_json::from_str(&scene.older).expect("JSON");
    other["data"]["keys"]["1"] = json!(other["data"]["keys"]["1"].as_u64().expect("a time") + 60);
    other["data"]["keys"]["2"] = json!(other["data"]["keys"]["1"].as_u64().expect("a time") + 60);
    other["data"]["latest_version"] = json!(2);
    scene.stage.server.faults().add(KEY, Fault::Reply { status: 200, body: other.to_string() });
    let (_program, client) = scene.start().await;
    let began = Instant::now();
    status_until(&client, "key_rolled_back", |status| status.healthz == "key_rolled_back").await;
    assert!(began.elapsed() < Duration::from_secs(8), "no lag explains it");
    scene.stage.server.faults().clear();
    let healed = status_until(&client, "ok", |status| status.healthz == "ok").await;
    assert_eq!(healed.key_id, scene.sealed[1].key_id);
    for (sealed, seed) in scene.sealed.iter().zip(1..) {
        assert_eq!(open(&client, sealed).await, Ok(vec![seed; 32]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_witness_that_is_lost_damaged_or_of_another_key_stops_nothing() {
    let scene = Scene::set().await;
    let kept = std::fs::read(file(&scene.stage)).expect("a witness");
    let other = String::from_utf8(kept.clone()).expect("text").replace("obf1.", "obf1.AAAA");
    for content in [None, Some(kept[..20].to_vec()), Some(other.into())] {
        match content {
            Some(content) => std::fs::write(file(&scene.stage), content).expect("written"),
            None => std::fs::remove_file(file(&scene.stage)).expect("removed"),
        }
        let (program, client) = scene.start().await;
        status_until(&client, "ok", |status| status.healthz == "ok").await;
        round(&client, &[7; 32]).await.expect("served");
        program.logged("\"witness_missing\"").await;
        until("the witness is whole again", || std::fs::read(file(&scene.stage)).is_ok_and(|now| now == kept)).await;
        assert_eq!(scene.stage.metric(TROUBLE).await, 0);
    }
}

/// A key file under a name that was copied: whatever it is, it is somebody's.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_no_witness_is_told_and_left_as_it_is() {
    let stage = Stage::set().await;
    let precious = stage.write("a.witness.json", "-----BEGIN PRIVATE KEY-----");
    let program = stage.serve(&config(&stage));
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    program.logged("is no witness and is left as it is").await;
    round(&client, &[7; 32]).await.expect("served");
    assert_eq!(stage.metric(TROUBLE).await, 1);
    assert_eq!(std::fs::read_to_string(precious).expect("there"), "-----BEGIN PRIVATE KEY-----");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_witness_that_cannot_be_written_is_told_and_stops_nothing() {
    let stage = Stage::set().await;
    let place = stage.path("state");
    let config = config(&stage).replace("a.witness.json", "state/a.witness.json");
    let program = stage.serve(&config);
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    program.logged("\"witness_trouble\"").await;
    assert_eq!(stage.metric(TROUBLE).await, 1);
    round(&client, &[7; 32]).await.expect("served");
    std::fs::create_dir(&place).expect("a directory");
    until("it is kept without a restart", || place.join("a.witness.json").exists()).await;
    eventually("no trouble", PATIENCE, || async {
        match stage.metric(TROUBLE).await {
            0 => Ok(()),
            trouble => Err(trouble.to_string()),
        }
    })
    .await;
    assert!(program.output().contains("the witness is kept again"));
}
