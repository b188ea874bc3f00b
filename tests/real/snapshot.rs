//! An OpenBao that goes back to an older snapshot of its raft, while we run and while nobody does. The Transit key lacks the
//! version that was last written with, and so do all tokens of ours that are younger: neither may be taken for a standby that
//! lags for ever.

use std::time::{Duration, Instant};

use bao_kms_provider::front::client::{Client, ClientError, Code, EncryptResponse};
use serde_json::{Value, json};

use crate::support::client;
use crate::support::openbao::OpenBao;
use crate::support::provider::{Login, Setup};
use crate::support::wait::{LONG, until};

/// A standby may lag for ten seconds; within these nothing may be said of the key.
const LAGS: Duration = Duration::from_secs(8);
/// The ten seconds, the keeper's pauses around them, a login, and a busy machine.
const TOLD: Duration = Duration::from_secs(20);
/// One login for each of the three states of OpenBao, and as many for what a restore breaks off.
const LOGINS: f64 = 6.0;

/// All of OpenBao as it is now.
async fn save(bao: &OpenBao) -> Vec<u8> {
    let request = client().get(format!("{}/v1/sys/storage/raft/snapshot", bao.url)).header("X-Vault-Token", &bao.root);
    let reply = request.send().await.expect("OpenBao answers");
    assert_eq!(reply.status().as_u16(), 200);
    let snapshot = reply.bytes().await.expect("a snapshot").to_vec();
    assert!(!snapshot.is_empty(), "a snapshot with something in it");
    snapshot
}

/// Puts a snapshot in place, in which this is the newest version of the key. The root token is as old as OpenBao and stays,
/// and so does what unseals it.
async fn restore(bao: &OpenBao, snapshot: &[u8], latest: u64) {
    let url = format!("{}/v1/sys/storage/raft/snapshot-force", bao.url);
    let request = client().post(url).header("X-Vault-Token", &bao.root).body(snapshot.to_vec());
    let reply = request.send().await.expect("OpenBao answers");
    let status = reply.status().as_u16();
    let text = reply.text().await.expect("a body");
    assert!((200..300).contains(&status), "{status}: {text}");
    // It is put in place after the answer.
    until("the key of the snapshot", LONG, async || {
        let (status, body) = bao.call("GET", &bao.key(""), Value::Null).await?;
        let is = body["data"]["latest_version"].as_u64();
        if is == Some(latest) { Ok(()) } else { Err(format!("{status}: {body}")) }
    })
    .await;
}

async fn open(client: &Client, sealed: &EncryptResponse) -> Result<Vec<u8>, ClientError> {
    client.decrypt(sealed.ciphertext.to_vec(), "open", &sealed.key_id, sealed.annotations.clone()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_restored_from_an_older_snapshot_is_key_rolled_back_until_a_newer_one_is_restored() {
    let folder = tempfile::tempdir().expect("a folder");
    let bao = OpenBao::durable(folder.path()).await;
    bao.provision().await;
    // From before our first login: no token of ours is in it.
    let older = save(&bao).await;
    let mut setup = Setup::new(folder.path(), &bao, Login::Jwt);
    // While a snapshot is put in place OpenBao is away for a moment, which is not what this is about.
    setup.pipeline()["health"]["tolerance"] = json!("3m");
    let mut provider = setup.start();
    let id = provider.id();
    let first = provider.status("ok").await;
    let client = provider.connect().await;
    let old = client.encrypt(vec![1; 32], "old").await.expect("Encrypt");
    assert!(old.ciphertext.starts_with(b"vault:v1:"));
    bao.write(&bao.key("/rotate"), json!({})).await;
    let second = until("the rotation", LONG, async || match provider.status("ok").await {
        key_id if key_id != first => Ok(key_id),
        key_id => Err(key_id),
    })
    .await;
    let new = client.encrypt(vec![2; 32], "new").await.expect("Encrypt");
    assert_eq!(new.key_id, second);
    assert!(new.ciphertext.starts_with(b"vault:v2:"));
    let newer = save(&bao).await;

    let began = Instant::now();
    restore(&bao, &older, 1).await;
    let restored = Instant::now();
    while began.elapsed() < LAGS {
        let status = client.status().await.expect("Status");
        assert_eq!((status.healthz.as_str(), &status.key_id), ("ok", &second), "a standby may lag for so long");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(provider.status("key_rolled_back").await, "", "nothing to write with");
    let told = restored.elapsed();
    assert!(told < TOLD, "Status spoke of it after {told:?}");
    provider.readyz(503, "key_rolled_back").await;
    let refused = client.encrypt(vec![3; 32], "no").await.err().expect("nothing is sealed");
    let ClientError::Call(status) = &refused else { panic!("no answer: {refused}") };
    assert_eq!(status.code(), Code::FailedPrecondition, "{refused}");
    assert!(status.message().contains("key_rolled_back"), "{refused}");
    assert_eq!(open(&client, &old).await.expect("what opens is still opened"), vec![1; 32]);
    open(&client, &new).await.expect_err("its version is gone");
    assert_eq!(provider.status("key_rolled_back").await, "", "what opens proves nothing");

    restore(&bao, &newer, 2).await;
    assert_eq!(provider.recovers(Instant::now()).await, second);
    provider.readyz(200, "ok").await;
    let after = client.encrypt(vec![4; 32], "after").await.expect("Encrypt works again");
    assert_eq!(after.key_id, second);
    assert!(after.ciphertext.starts_with(b"vault:v2:"));
    for (sealed, seed) in [(&old, 1_u8), (&new, 2), (&after, 4)] {
        assert_eq!(open(&client, sealed).await.expect("Decrypt"), vec![seed; 32]);
    }
    assert_eq!(provider.id(), id, "nobody restarted it");
    let logins = provider.logins().await;
    assert!((2.0..=LOGINS).contains(&logins), "{logins} logins");

    // The same while nobody runs: the next process knows of it by the witness.
    assert!(provider.stop().success());
    restore(&bao, &older, 1).await;
    provider.start();
    assert_eq!(provider.status("key_rolled_back").await, "", "noticed before anything is sealed");
    let client = provider.connect().await;
    assert_eq!(open(&client, &old).await.expect("what opens is opened"), vec![1; 32]);
    let refused = client.encrypt(vec![5; 32], "no").await.err().expect("nothing is sealed");
    assert!(refused.to_string().contains("key_rolled_back"), "{refused}");
    restore(&bao, &newer, 2).await;
    assert_eq!(provider.recovers(Instant::now()).await, second);
    assert_eq!(open(&client, &after).await.expect("Decrypt"), vec![4; 32]);
}
