//! 403: one shared login, one repeat, bounded logins while fresh tokens meet it too, and none of them in a repair's way.

use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use secrecy::ExposeSecret;
use tokio::time::Instant;

use super::*;
use crate::auth::{Attempt, Method};
use crate::request::Method as HttpMethod;
use crate::telemetry::metrics::PipelineMetrics;

struct Login;

impl Method for Login {
    fn login(&self) -> Result<Attempt, Error> {
        let call = BaoCall::own(Purpose::Login, HttpMethod::Post, "auth/jwt/login", Duration::from_secs(5))
            .with_credential(Credential::Anonymous);
        Ok(Attempt { call, expires_unix: None, changes_unix: None, findings: Vec::new() })
    }
}

/// An OpenBao that hands out tokens `t1`, `t2`, ... and takes those that are not revoked, as long as policies allow.
#[derive(Default)]
struct Puppet {
    logins: AtomicUsize,
    revoked: AtomicUsize,
    /// The policy that every token has does not allow Decrypt.
    denies: AtomicBool,
    /// Tokens up to this one have no policies at all: their role had none.
    poor: AtomicUsize,
    /// Every denial reads as that of an unknown token.
    plain: AtomicBool,
    /// The status of a denial; 0: 403.
    status: AtomicU16,
    login_ms: AtomicU64,
}

fn reply(status: u16, body: serde_json::Value) -> BaoReply {
    BaoReply { status, body: body.to_string().into(), date: None, retry_after: None, location: None, endpoint: Some(0) }
}

impl Puppet {
    fn answer(&self, number: usize, purpose: Purpose) -> BaoReply {
        let unknown = number <= self.revoked.load(Ordering::SeqCst);
        let denied = self.denies.load(Ordering::SeqCst) && purpose != Purpose::Metadata;
        if !unknown && !denied && number > self.poor.load(Ordering::SeqCst) {
            return reply(200, serde_json::json!({}));
        }
        let plain = unknown || self.plain.load(Ordering::SeqCst);
        let text = if plain { "permission denied" } else { "1 error occurred:\n\t* permission denied\n\n" };
        let status = self.status.load(Ordering::SeqCst);
        reply(if status == 0 { 403 } else { status }, serde_json::json!({ "errors": [text] }))
    }

    fn logins(&self) -> usize {
        self.logins.load(Ordering::SeqCst)
    }
}

fn service(puppet: &Arc<Puppet>) -> BaoService {
    let puppet = puppet.clone();
    BaoService::new(tower::service_fn(move |call: BaoCall| {
        let puppet = puppet.clone();
        async move {
            let anonymous = matches!(call.credential, Credential::Anonymous);
            let latency = if anonymous { puppet.login_ms.load(Ordering::SeqCst) } else { 0 };
            tokio::time::sleep(Duration::from_millis(5 + latency)).await;
            Ok(match &call.credential {
                Credential::Anonymous => {
                    let token = format!("t{}", puppet.logins.fetch_add(1, Ordering::SeqCst) + 1);
                    let auth = serde_json::json!({"client_token": token, "lease_duration": 3600, "renewable": true});
                    reply(200, serde_json::json!({ "auth": auth }))
                }
                Credential::Token(token) => {
                    let number: usize = token.expose_secret()[1..].parse().expect("a token of ours");
                    puppet.answer(number, call.purpose)
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

async fn status(layer: &mut AttachToken, call: BaoCall) -> u16 {
    layer.call(call).await.expect("reply").status
}

/// Asks all the time until the answer is 200; how long that took.
async fn until_good(layer: &mut AttachToken) -> Duration {
    let began = Instant::now();
    while status(layer, decrypt()).await != 200 {
        assert!(began.elapsed() < Duration::from_secs(60), "never");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    began.elapsed()
}

/// Asks ten times a second for this long, and is denied each time.
async fn denied_for(layer: &mut AttachToken, span: Duration) {
    let began = Instant::now();
    while began.elapsed() < span {
        assert_ne!(status(layer, decrypt()).await, 200);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_says_no_leads_to_bounded_logins_whatever_the_text() {
    for (plain, code) in [(false, 403), (true, 403), (true, 401)] {
        let puppet = Arc::new(Puppet::default());
        let mut layer = layer(&puppet);
        assert_eq!(status(&mut layer, decrypt()).await, 200);
        puppet.plain.store(plain, Ordering::SeqCst);
        puppet.status.store(code, Ordering::SeqCst);
        puppet.denies.store(true, Ordering::SeqCst);
        for _ in 0..600 {
            assert_eq!(status(&mut layer, decrypt()).await, code);
            // What another policy allows goes on, and says nothing of what this one denies.
            let metadata = BaoCall { purpose: Purpose::Metadata, ..decrypt() };
            assert_eq!(status(&mut layer, metadata).await, 200);
            tokio::time::sleep(Duration::from_millis(90)).await;
        }
        let logins = puppet.logins();
        assert!((25..=35).contains(&logins), "{logins} logins in a minute ({plain})");
        puppet.denies.store(false, Ordering::SeqCst);
        assert_eq!(status(&mut layer, decrypt()).await, 200, "a restored policy needs no login");
        assert_eq!(puppet.logins(), logins);
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_revoked_right_after_a_denial_is_replaced_at_once() {
    let puppet = Arc::new(Puppet::default());
    let mut layer = layer(&puppet);
    assert_eq!(status(&mut layer, decrypt()).await, 200);
    puppet.denies.store(true, Ordering::SeqCst);
    denied_for(&mut layer, Duration::from_secs(180)).await;
    puppet.denies.store(false, Ordering::SeqCst);
    assert_eq!(status(&mut layer, decrypt()).await, 200);
    puppet.revoked.store(puppet.logins(), Ordering::SeqCst);
    let took = until_good(&mut layer).await;
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_role_that_is_given_its_policies_back_is_noticed_within_two_seconds() {
    let puppet = Arc::new(Puppet::default());
    let mut layer = layer(&puppet);
    puppet.poor.store(usize::MAX, Ordering::SeqCst);
    denied_for(&mut layer, Duration::from_secs(180)).await;
    // Right after a login, which is the worst moment.
    let before = puppet.logins();
    while puppet.logins() == before {
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_ne!(status(&mut layer, decrypt()).await, 200);
    }
    puppet.poor.store(puppet.logins(), Ordering::SeqCst);
    let took = until_good(&mut layer).await;
    assert!(took > Duration::from_secs(1) && took <= Duration::from_secs(2), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_fresh_token_that_a_policy_denies_is_not_replaced_at_once() {
    let puppet = Arc::new(Puppet::default());
    puppet.denies.store(true, Ordering::SeqCst);
    let mut layer = layer(&puppet);
    assert_eq!(status(&mut layer, decrypt()).await, 403);
    assert_eq!(puppet.logins(), 1, "it has whatever its role grants");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_meets_403_takes_the_newer_token_that_is_there_without_a_login() {
    let puppet = Arc::new(Puppet::default());
    let mut layer = layer(&puppet);
    assert_eq!(status(&mut layer, decrypt()).await, 200);
    tokio::time::sleep(Duration::from_secs(10)).await;
    puppet.poor.store(1, Ordering::SeqCst);
    // On its way with the first token while somebody else's login gives the second one.
    let late = tokio::spawn(layer.call(decrypt()));
    tokio::time::sleep(Duration::from_millis(1)).await;
    let second = layer.session.renew_after_rejection(1).await.expect("a token");
    assert_eq!(second.generation, 2);
    assert_eq!(late.await.expect("task").expect("reply").status, 200);
    assert_eq!(puppet.logins(), 2);
}

#[tokio::test(start_paused = true)]
async fn no_call_waits_for_a_token_beyond_its_deadline() {
    let puppet = Arc::new(Puppet::default());
    puppet.login_ms.store(3_600_000, Ordering::SeqCst);
    let mut layer = layer(&puppet);
    let began = Instant::now();
    let error = layer.call(decrypt()).await.err().expect("there is no token");
    assert_eq!((error.class(), error.stage()), (Class::DeadlineExceeded, Some(Stage::Token)));
    assert_eq!(began.elapsed().as_secs(), 5);

    puppet.login_ms.store(0, Ordering::SeqCst);
    let mut layer = self::layer(&puppet);
    assert_eq!(status(&mut layer, decrypt()).await, 200);
    puppet.revoked.store(usize::MAX, Ordering::SeqCst);
    puppet.login_ms.store(3_600_000, Ordering::SeqCst);
    let began = Instant::now();
    let error = layer.call(decrypt()).await.err().expect("there is no other token");
    assert_eq!((error.class(), error.stage()), (Class::DeadlineExceeded, Some(Stage::Token)));
    assert_eq!(began.elapsed().as_secs(), 5);
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
