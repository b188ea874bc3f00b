//! What an operator can get wrong, and what OpenBao can do: each has its class in Status and at `/readyz`, and each heals
//! within seconds and without a restart of the program once its cause is gone.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::openbao::{OpenBao, leader};
use crate::support::pki::{Authority, private};
use crate::support::provider::{Login, Provider, Setup, most_logins};
use crate::support::wait::{LONG, until};

/// Without OpenBao the pauses between logins grow from a quarter of a second: so many more than one every 1.8 s at first.
const ABSENT: f64 = 2.0;

/// A provisioned OpenBao with a program that meets it.
struct Scene {
    _folder: tempfile::TempDir,
    bao: OpenBao,
    setup: Setup,
}

impl Scene {
    async fn new() -> Self {
        Self::of(Login::Jwt).await
    }

    async fn of(login: Login) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let bao = OpenBao::dev(folder.path()).await;
        bao.provision().await;
        let setup = Setup::new(folder.path(), &bao, login);
        Self { _folder: folder, bao, setup }
    }
}

/// Status and `/readyz` say the class; Status has no key_id beside it, so that nothing is written.
async fn shows(provider: &Provider, class: &str) {
    assert_eq!(provider.status(class).await, "");
    provider.readyz(503, class).await;
    let (status, text) = provider.admin("/livez").await.expect("an answer");
    assert_eq!(status, 200, "alive whatever OpenBao does: {text}");
}

/// Status is healthy again soon after the repair, whoever looks, and nobody was flooded with logins meanwhile.
async fn heals(provider: &Provider, id: u32, repaired: Instant) {
    heals_after_absence(provider, id, repaired, 0.0).await;
}

/// The same when so many more logins met nobody at all.
async fn heals_after_absence(provider: &Provider, id: u32, repaired: Instant, absent: f64) {
    assert!(provider.recovers(repaired).await.starts_with("obk2."));
    provider.readyz(200, "ok").await;
    let (logins, lived) = (provider.logins().await, provider.age());
    let most = most_logins(lived) + absent;
    assert!(logins <= most, "{logins} logins in {lived:?}, not {most}");
    assert_eq!(provider.id(), id, "nobody restarted it");
    let client = provider.connect().await;
    client.encrypt(vec![7; 32], "after").await.expect("Encrypt works again");
}

#[tokio::test]
async fn a_wrong_ca_is_tls_until_the_file_is_right() {
    let scene = Scene::new().await;
    std::fs::write(&scene.setup.ca, Authority::new().pem()).expect("a file");
    let provider = scene.setup.start();
    let id = provider.id();
    shows(&provider, "tls").await;
    std::fs::copy(&scene.bao.ca, &provider.setup.ca).expect("the right CA");
    heals(&provider, id, Instant::now()).await;
}

#[tokio::test]
async fn a_wrong_role_is_login_refused_until_it_is_there() {
    let mut scene = Scene::new().await;
    scene.setup.pipeline()["auth"]["jwt"]["role"] = json!("another");
    let provider = scene.setup.start();
    let id = provider.id();
    shows(&provider, "login_refused").await;
    let role = scene.bao.read("auth/jwt/role/kms").await;
    scene.bao.write("auth/jwt/role/another", role).await;
    heals(&provider, id, Instant::now()).await;
}

#[tokio::test]
async fn an_expired_jwt_is_login_refused_until_the_file_is_renewed() {
    let scene = Scene::new().await;
    private(&scene.setup.jwt, &scene.bao.token(-600));
    let provider = scene.setup.start();
    let id = provider.id();
    shows(&provider, "login_refused").await;
    private(&provider.setup.jwt, &scene.bao.token(3600));
    heals(&provider, id, Instant::now()).await;
}

#[tokio::test]
async fn a_missing_jwt_is_credential_unavailable_until_it_is_there() {
    let scene = Scene::new().await;
    std::fs::remove_file(&scene.setup.jwt).expect("it was there");
    let provider = scene.setup.start();
    let id = provider.id();
    shows(&provider, "credential_unavailable").await;
    private(&provider.setup.jwt, &scene.bao.token(3600));
    heals(&provider, id, Instant::now()).await;
}

#[tokio::test]
async fn a_missing_key_is_key_missing_at_once_and_until_it_is_there() {
    let scene = Scene::new().await;
    let backup = backup(&scene.bao).await;
    let provider = scene.setup.start();
    let id = provider.id();
    provider.status("ok").await;
    scene.bao.delete_key().await;
    shows(&provider, "key_missing").await;
    scene.bao.write(&restore_path(&scene.bao), json!({ "backup": backup })).await;
    heals(&provider, id, Instant::now()).await;

    // Another key under the same name opens nothing that was written before, and must not be taken for the first.
    scene.bao.delete_key().await;
    shows(&provider, "key_missing").await;
    scene.bao.write(&scene.bao.key(""), json!({ "type": "aes256-gcm96" })).await;
    shows(&provider, "key_rolled_back").await;
}

/// The key as it is now, in clear, as only a test may have it.
async fn backup(bao: &OpenBao) -> serde_json::Value {
    bao.write(&bao.key("/config"), json!({ "exportable": true, "allow_plaintext_backup": true })).await;
    bao.read(&format!("{}/backup/{}", bao.setup.mount, bao.setup.key)).await["backup"].clone()
}

fn restore_path(bao: &OpenBao) -> String {
    format!("{}/restore/{}", bao.setup.mount, bao.setup.key)
}

#[tokio::test]
async fn a_key_restored_from_an_older_backup_is_key_rolled_back() {
    rolls_back(Scene::new().await).await;
}

/// A certificate's configuration names no file for a witness: what one process saw itself is enough for it.
#[tokio::test]
async fn a_key_restored_from_an_older_backup_is_key_rolled_back_without_a_witness() {
    let mut scene = Scene::of(Login::Cert).await;
    assert!(scene.setup.pipeline().get("witness").is_none());
    rolls_back(scene).await;
}

/// The key as it was before a rotation comes back from a backup.
async fn rolls_back(mut scene: Scene) {
    let backup = backup(&scene.bao).await;
    scene.setup.pipeline()["health"]["tolerance"] = json!("3m");
    let provider = scene.setup.start();
    let first = provider.status("ok").await;
    let client = provider.connect().await;
    let old = client.encrypt(vec![1; 32], "old").await.expect("Encrypt");
    scene.bao.write(&scene.bao.key("/rotate"), json!({})).await;
    until("the rotation", LONG, async || match provider.status("ok").await {
        key_id if key_id != first => Ok(()),
        key_id => Err(key_id),
    })
    .await;

    scene.bao.write(&restore_path(&scene.bao), json!({ "backup": backup, "force": true })).await;
    shows(&provider, "key_rolled_back").await;
    let refused = client.encrypt(vec![2; 32], "new").await.err().expect("nothing is sealed");
    assert!(refused.to_string().contains("key_rolled_back"), "{refused}");
    let opened = client.decrypt(old.ciphertext.to_vec(), "old", &old.key_id, old.annotations.clone()).await;
    assert_eq!(opened.expect("what opens is still opened"), vec![1; 32]);

    // A rotation of the restored key makes another second version, which must not pass for the first.
    scene.bao.write(&scene.bao.key("/rotate"), json!({})).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    shows(&provider, "key_rolled_back").await;
}

#[tokio::test]
async fn a_policy_that_is_taken_away_is_token_rejected_until_it_is_back() {
    let scene = Scene::new().await;
    let provider = scene.setup.start();
    let id = provider.id();
    provider.status("ok").await;
    let nothing = json!({ "policy": "path \"none\" { capabilities = [\"read\"] }" });
    scene.bao.write("sys/policies/acl/kms", nothing).await;
    shows(&provider, "token_rejected").await;
    let policy = scene.bao.setup.policy_text();
    scene.bao.write("sys/policies/acl/kms", json!({ "policy": policy })).await;
    heals(&provider, id, Instant::now()).await;
}

#[tokio::test]
async fn a_sealed_server_is_sealed_and_a_stopped_one_unreachable_until_it_serves() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut bao = OpenBao::durable(folder.path()).await;
    bao.provision().await;
    let provider = Setup::new(folder.path(), &bao, Login::Jwt).start();
    let id = provider.id();
    let key_id = provider.status("ok").await;
    bao.write("sys/seal", json!({})).await;
    shows(&provider, "sealed").await;
    bao.stop();
    shows(&provider, "unreachable").await;
    // The static seal opens it by itself.
    bao.start().await;
    leader(std::slice::from_ref(&bao)).await;
    heals(&provider, id, Instant::now()).await;
    assert_eq!(provider.status("ok").await, key_id, "the same key has the same key_id");
}

/// The token ends during an outage, and so does the JWT that would bring another one.
#[tokio::test]
async fn a_jwt_that_expires_during_an_outage_is_login_refused_until_the_file_is_renewed() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut bao = OpenBao::durable(folder.path()).await;
    bao.setup.token_ttl = "5s".into();
    bao.provision().await;
    let provider = Setup::new(folder.path(), &bao, Login::Jwt).start();
    let id = provider.id();
    provider.status("ok").await;
    bao.stop();
    private(&provider.setup.jwt, &bao.token(-600));
    shows(&provider, "unreachable").await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    bao.start().await;
    shows(&provider, "login_refused").await;
    private(&provider.setup.jwt, &bao.token(3600));
    heals_after_absence(&provider, id, Instant::now(), ABSENT).await;
}
