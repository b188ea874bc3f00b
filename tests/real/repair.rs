//! Rights that are taken away under load and come back: the right class, few logins, and every call works again within two
//! seconds of the repair.

use std::time::{Duration, Instant};

use bao_kms_provider::front::client::Client;
use serde_json::{Value, json};
use tonic::Code;

use crate::support::load::{Call, Load};
use crate::support::openbao::OpenBao;
use crate::support::provider::{Login, Provider, Setup, most_logins};
use crate::support::wait::SOON;

const CALLERS: usize = 16;
/// What an API server waits.
const PATIENCE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(20);
/// How long the trouble lasts.
const TROUBLE: Duration = Duration::from_secs(6);
/// For how long after the time of a repair no call may fail any more.
const QUIET: Duration = Duration::from_secs(1);

fn load(client: &Client) -> Load {
    let mut load = Load::default();
    load.add(client, CALLERS, PATIENCE, PAUSE);
    load
}

async fn revoke(bao: &OpenBao) {
    bao.write("sys/leases/revoke-prefix/auth/jwt", json!({})).await;
}

/// Trouble under load until `repair`: its class, its code, its logins, its end.
async fn passes(provider: &Provider, client: &Client, class: &str, before: f64, repair: impl AsyncFnOnce()) {
    let load = load(client);
    let began = Instant::now();
    assert_eq!(provider.status(class).await, "", "shown at once");
    tokio::time::sleep(TROUBLE).await;
    repair().await;
    let repaired = Instant::now();
    provider.recovers(repaired).await;
    let (logins, took) = (provider.logins().await - before, began.elapsed());
    let most = most_logins(took);
    assert!(logins <= most, "{class}: {logins} logins in {took:?}, not {most}");
    tokio::time::sleep((repaired + SOON + QUIET).saturating_duration_since(Instant::now())).await;
    let calls = load.end().await;
    let lost: Vec<&Call> = calls.iter().filter(|call| call.refusal.is_some()).collect();
    assert!(lost.len() > CALLERS, "{class}: the trouble was met");
    for call in &lost {
        let (code, message) = call.refusal.as_ref().expect("it failed");
        assert_eq!(*code, Code::PermissionDenied, "{message}");
        assert!(message.starts_with(class), "{message}");
        assert!(call.ended < repaired + SOON, "{class}: {message} {:?} after the repair", call.ended - repaired);
    }
    eprintln!("{class}: {} calls lost, {logins} logins in {took:.1?}, {most} allowed", lost.len());
    let later = provider.logins().await - before - logins;
    assert!(later <= 1.0, "{class}: {later} logins after it was well again");
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_taken_away_under_load_come_back_within_seconds_of_their_repair() {
    let folder = tempfile::tempdir().expect("a folder");
    let bao = OpenBao::dev(folder.path()).await;
    bao.provision().await;
    let provider = Setup::new(folder.path(), &bao, Login::Jwt).start();
    provider.status("ok").await;
    let client = provider.connect().await;

    // A token that is revoked: one login for all, and no call is lost.
    let revoked = load(&client);
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        revoke(&bao).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let calls = revoked.end().await;
    let lost: Vec<_> = calls.iter().filter(|call| call.refusal.is_some()).collect();
    assert!(lost.is_empty(), "{} of {} calls are lost: {:?}", lost.len(), calls.len(), lost[0]);
    let logins = provider.logins().await;
    assert!(logins <= 4.0, "{logins} logins for one token and three that were revoked");

    // A policy that is gone. With it back, a token that is revoked is as harmless as before.
    let nothing = json!({ "policy": "path \"none\" { capabilities = [\"read\"] }" });
    bao.write("sys/policies/acl/kms", nothing).await;
    passes(&provider, &client, "token_rejected", logins, async || {
        bao.write("sys/policies/acl/kms", json!({ "policy": bao.setup.policy_text() })).await;
        revoke(&bao).await;
    })
    .await;

    // A role that is deleted, and the token with it.
    let role = bao.read("auth/jwt/role/kms").await;
    let (status, body) = bao.call("DELETE", "auth/jwt/role/kms", Value::Null).await.expect("an answer");
    assert!(status < 300, "{body}");
    let before = provider.logins().await;
    revoke(&bao).await;
    passes(&provider, &client, "login_refused", before, async || drop(bao.write("auth/jwt/role/kms", role).await))
        .await;
}
