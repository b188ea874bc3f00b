//! 403: one shared login, one repeat, and a pause when fresh tokens meet it too.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use secrecy::ExposeSecret;

use super::*;
use crate::auth::{Attempt, Method};
use crate::request::Method as HttpMethod;
use crate::telemetry::metrics::PipelineMetrics;

struct Login;

impl Method for Login {
    fn login(&self) -> Result<Attempt, Error> {
        let call = BaoCall::own(Purpose::Login, HttpMethod::Post, "auth/jwt/login", Duration::from_secs(5))
            .with_credential(Credential::Anonymous);
        Ok(Attempt { call, expires_unix: None, findings: Vec::new() })
    }
}

/// An OpenBao that hands out tokens `t1`, `t2`, ... and takes the newest one, as long as the policy allows.
#[derive(Default)]
struct Puppet {
    logins: AtomicUsize,
    revoked: AtomicUsize,
    denies: AtomicBool,
}

fn reply(status: u16, body: serde_json::Value) -> BaoReply {
    BaoReply { status, body: body.to_string().into(), date: None, retry_after: None, location: None, endpoint: Some(0) }
}

fn service(puppet: &Arc<Puppet>) -> BaoService {
    let puppet = puppet.clone();
    BaoService::new(tower::service_fn(move |call: BaoCall| {
        let puppet = puppet.clone();
        async move {
            tokio::time::sleep(Duration::from_millis(5)).await;
            Ok(match &call.credential {
                Credential::Anonymous => {
                    let token = format!("t{}", puppet.logins.fetch_add(1, Ordering::SeqCst) + 1);
                    let auth = serde_json::json!({"client_token": token, "lease_duration": 3600, "renewable": true});
                    reply(200, serde_json::json!({ "auth": auth }))
                }
                Credential::Token(token) => {
                    let number: usize = token.expose_secret()[1..].parse().expect("a token of ours");
                    let good = number > puppet.revoked.load(Ordering::SeqCst) && !puppet.denies.load(Ordering::SeqCst);
                    reply(if good { 200 } else { 403 }, serde_json::json!({}))
                }
                Credential::Session => panic!("the layer attaches a token"),
            })
        }
    }))
}

fn layer(puppet: &Arc<Puppet>) -> AttachToken {
    let bao = service(puppet);
    let session =
        Session::start(Arc::new(Login), bao.clone(), Arc::new(|| Ok(())), PipelineMetrics::new(), "test".into());
    AttachToken::new(bao, session)
}

fn decrypt() -> BaoCall {
    BaoCall::own(Purpose::Decrypt, HttpMethod::Post, "transit/decrypt/k", Duration::from_secs(5))
}

#[tokio::test(start_paused = true)]
async fn a_revoked_token_costs_one_login_however_many_call() {
    let puppet = Arc::new(Puppet::default());
    let mut layer = layer(&puppet);
    assert_eq!(layer.call(decrypt()).await.expect("reply").status, 200);
    tokio::time::sleep(Duration::from_secs(10)).await;
    puppet.revoked.store(1, Ordering::SeqCst);
    let calls: Vec<_> = (0..100).map(|_| tokio::spawn(layer.call(decrypt()))).collect();
    for call in calls {
        assert_eq!(call.await.expect("task").expect("reply").status, 200);
    }
    assert_eq!(puppet.logins.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_says_no_leads_to_few_logins() {
    let puppet = Arc::new(Puppet::default());
    let mut layer = layer(&puppet);
    assert_eq!(layer.call(decrypt()).await.expect("reply").status, 200);
    puppet.denies.store(true, Ordering::SeqCst);
    for _ in 0..600 {
        assert_eq!(layer.call(decrypt()).await.expect("reply").status, 403);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let logins = puppet.logins.load(Ordering::SeqCst);
    assert!((2..=7).contains(&logins), "{logins} logins in a minute");
    puppet.denies.store(false, Ordering::SeqCst);
    assert_eq!(layer.call(decrypt()).await.expect("reply").status, 200, "a restored policy needs no login");
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_hides_the_mounts_settings_costs_no_login() {
    let puppet = Arc::new(Puppet::default());
    let mut layer = layer(&puppet);
    assert_eq!(layer.call(decrypt()).await.expect("reply").status, 200);
    puppet.denies.store(true, Ordering::SeqCst);
    let call = BaoCall::own(Purpose::KeysConfig, HttpMethod::Get, "transit/config/keys", Duration::from_secs(5));
    assert_eq!(layer.call(call).await.expect("reply").status, 403);
    assert_eq!(puppet.logins.load(Ordering::SeqCst), 1);
}
