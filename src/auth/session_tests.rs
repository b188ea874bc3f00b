//! The life of a token in paused time, against a puppet of OpenBao.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use secrecy::ExposeSecret;

use super::*;
use crate::auth::Attempt;
use crate::request::BaoReply;

/// Answers login, renewal and revocation, counts them, and does what the test sets.
struct Puppet {
    logins: AtomicUsize,
    renewals: AtomicUsize,
    revocations: AtomicUsize,
    /// `None`: as it should be.
    login_fails: Mutex<Option<Result<u16, Class>>>,
    renew_fails: Mutex<Option<Result<u16, Class>>>,
    lease: AtomicU64,
    renewed_lease: AtomicU64,
    renewable: AtomicBool,
    reload_fails: AtomicBool,
    latency_ms: AtomicU64,
    /// `Retry-After` of what fails, in seconds; 0: none.
    retry_after: AtomicU64,
}

struct Login;

impl Method for Login {
    fn login(&self) -> Result<Attempt, Error> {
        let call = BaoCall::own(Purpose::Login, HttpMethod::Post, "auth/jwt/login", Duration::from_secs(5))
            .with_credential(Credential::Anonymous);
        Ok(Attempt { call, expires_unix: None, changes_unix: None, findings: Vec::new() })
    }
}

impl Puppet {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            logins: AtomicUsize::new(0),
            renewals: AtomicUsize::new(0),
            revocations: AtomicUsize::new(0),
            login_fails: Mutex::new(None),
            renew_fails: Mutex::new(None),
            lease: AtomicU64::new(3_600),
            renewed_lease: AtomicU64::new(3_600),
            renewable: AtomicBool::new(true),
            reload_fails: AtomicBool::new(false),
            latency_ms: AtomicU64::new(5),
            retry_after: AtomicU64::new(0),
        })
    }

    fn start(self: &Arc<Self>) -> Arc<Session> {
        let puppet = self.clone();
        let bao = BaoService::new(tower::service_fn(move |call: BaoCall| {
            let puppet = puppet.clone();
            async move {
                tokio::time::sleep(Duration::from_millis(puppet.latency_ms.load(Ordering::SeqCst))).await;
                puppet.answer(&call)
            }
        }));
        let puppet = self.clone();
        let reload: Reload = Arc::new(move || match puppet.reload_fails.load(Ordering::SeqCst) {
            true => Err(Class::TrustUnavailable.into()),
            false => Ok(()),
        });
        Session::start(Arc::new(Login), bao, reload, PipelineMetrics::new(), "p".into())
    }

    fn answer(&self, call: &BaoCall) -> Result<BaoReply, Error> {
        let (fails, lease, token) = match call.purpose {
            Purpose::Login => {
                let number = self.logins.fetch_add(1, Ordering::SeqCst) + 1;
                (&self.login_fails, &self.lease, format!("t{number}"))
            }
            Purpose::Renew => {
                self.renewals.fetch_add(1, Ordering::SeqCst);
                (&self.renew_fails, &self.renewed_lease, "something else".to_owned())
            }
            Purpose::Revoke => {
                self.revocations.fetch_add(1, Ordering::SeqCst);
                return Ok(reply(204, String::new()));
            }
            other => panic!("a session does not ask for {other:?}"),
        };
        if let Some(fault) = *fails.lock().expect("lock") {
            let after = Some(self.retry_after.load(Ordering::SeqCst)).filter(|seconds| *seconds > 0);
            let refusal = |status| BaoReply {
                retry_after: after.map(Duration::from_secs),
                ..reply(status, r#"{"errors":["no"]}"#.to_owned())
            };
            return fault.map(refusal).map_err(Error::from);
        }
        let (lease, renewable) = (lease.load(Ordering::SeqCst), self.renewable.load(Ordering::SeqCst));
        let auth = serde_json::json!({"client_token": token, "lease_duration": lease, "renewable": renewable});
        Ok(reply(200, serde_json::json!({ "auth": auth }).to_string()))
    }

    fn fail_logins(&self, fault: Option<Result<u16, Class>>) {
        *self.login_fails.lock().expect("lock") = fault;
    }

    fn fail_renewals(&self, fault: Option<Result<u16, Class>>) {
        *self.renew_fails.lock().expect("lock") = fault;
    }

    fn counts(&self) -> (usize, usize) {
        (self.logins.load(Ordering::SeqCst), self.renewals.load(Ordering::SeqCst))
    }
}

fn reply(status: u16, body: String) -> BaoReply {
    BaoReply { status, body: body.into(), date: None, retry_after: None, location: None, endpoint: Some(0) }
}

fn text(token: &Token) -> &str {
    token.secret.expose_secret()
}

async fn pass(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn the_first_call_waits_for_the_first_login() {
    let puppet = Puppet::new();
    let session = puppet.start();
    assert!(session.token().is_none());
    assert_eq!(text(&session.wait().await.expect("a token")), "t1");
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_renewed_ahead_of_its_end_and_the_token_stays() {
    let puppet = Puppet::new();
    let session = puppet.start();
    session.wait().await.expect("a token");
    pass(2_100).await;
    assert_eq!(puppet.counts(), (1, 0), "too early");
    pass(400).await;
    assert_eq!(puppet.counts(), (1, 1), "after two thirds");
    for _ in 0..48 {
        pass(1_800).await;
        let token = session.token().expect("never without a token");
        assert_eq!((text(&token), token.generation), ("t1", 1));
    }
    assert_eq!(puppet.counts().0, 1);
}

#[tokio::test(start_paused = true)]
async fn a_shrinking_lease_leads_to_a_login() {
    let puppet = Puppet::new();
    let session = puppet.start();
    session.wait().await.expect("a token");
    puppet.renewed_lease.store(1_000, Ordering::SeqCst);
    pass(2_500).await;
    assert_eq!(puppet.counts(), (2, 1));
    assert_eq!(text(&session.token().expect("a token")), "t2");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_renewed_is_replaced_while_it_is_valid() {
    let puppet = Puppet::new();
    puppet.renewable.store(false, Ordering::SeqCst);
    let session = puppet.start();
    session.wait().await.expect("a token");
    pass(2_500).await;
    assert_eq!(puppet.counts(), (2, 0), "no renewal was tried");
    assert_eq!(text(&session.token().expect("a token")), "t2");
}

#[tokio::test(start_paused = true)]
async fn a_refused_renewal_leads_to_a_login() {
    for status in [400, 403] {
        let puppet = Puppet::new();
        puppet.fail_renewals(Some(Ok(status)));
        let session = puppet.start();
        session.wait().await.expect("a token");
        pass(2_500).await;
        assert_eq!(puppet.counts(), (2, 1), "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn while_openbao_is_away_a_valid_token_stays_and_an_expired_one_does_not() {
    let puppet = Puppet::new();
    let session = puppet.start();
    session.wait().await.expect("a token");
    puppet.fail_renewals(Some(Err(Class::Unreachable)));
    puppet.fail_logins(Some(Err(Class::Unreachable)));
    pass(2_500).await;
    assert!(session.token().is_some(), "valid for another 1,100 s");
    assert_eq!(session.last_error().expect("told").class(), Class::Unreachable);
    pass(1_200).await;
    assert!(session.token().is_none(), "the lease has ended");
    assert_eq!(session.wait().await.expect_err("none").class(), Class::Unreachable);
    puppet.fail_logins(None);
    session.wake();
    pass(1).await;
    assert_eq!(session.token().expect("back").generation, 2);
    assert!(session.last_error().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_hundred_rejected_calls_share_one_login() {
    let puppet = Puppet::new();
    let session = puppet.start();
    let first = session.wait().await.expect("a token");
    let calls: Vec<_> = (0..100)
        .map(|_| {
            let session = session.clone();
            tokio::spawn(async move { session.renew_after_rejection(first.generation).await })
        })
        .collect();
    for call in calls {
        assert_eq!(text(&call.await.expect("joined").expect("a token")), "t2");
    }
    assert_eq!(puppet.counts().0, 2);
    let late = session.renew_after_rejection(first.generation).await.expect("a newer one is there");
    assert_eq!((text(&late), puppet.counts().0), ("t2", 2));
}

#[tokio::test(start_paused = true)]
async fn a_rejected_token_stays_until_there_is_a_newer_one_and_late_callers_do_not_wait() {
    let puppet = Puppet::new();
    let session = puppet.start();
    let first = session.wait().await.expect("a token");
    puppet.fail_logins(Some(Ok(400)));
    let error = session.renew_after_rejection(first.generation).await.expect_err("refused");
    assert_eq!(error.class(), Class::LoginRefused);
    assert_eq!(session.token().expect("still there").generation, 1);
    let asked = Instant::now();
    let error = session.renew_after_rejection(first.generation).await.expect_err("known");
    assert_eq!((error.class(), asked.elapsed()), (Class::LoginRefused, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn files_that_went_bad_do_not_stop_a_login_that_the_old_client_can_make() {
    let puppet = Puppet::new();
    puppet.reload_fails.store(true, Ordering::SeqCst);
    let session = puppet.start();
    assert_eq!(text(&session.wait().await.expect("a token")), "t1");
}

#[tokio::test(start_paused = true)]
async fn closing_gives_the_token_back_and_lets_go_whoever_waits() {
    let puppet = Puppet::new();
    let session = puppet.start();
    let token = session.wait().await.expect("a token");
    puppet.latency_ms.store(300, Ordering::SeqCst);
    let waiter = {
        let session = session.clone();
        tokio::spawn(async move { session.renew_after_rejection(token.generation).await })
    };
    tokio::time::sleep(Duration::from_millis(10)).await;
    session.close().await;
    assert_eq!(puppet.revocations.load(Ordering::SeqCst), 1);
    assert_eq!(waiter.await.expect("joined").expect_err("closed").class(), Class::Cancelled);
    assert!(session.token().is_none());
    assert_eq!(session.wait().await.expect_err("closed").class(), Class::Cancelled);
    session.wake();
    assert_eq!(session.renew_after_rejection(9).await.expect_err("closed").class(), Class::Cancelled);
    session.close().await;
    assert_eq!(puppet.revocations.load(Ordering::SeqCst), 1, "closing twice is closing once");
}

#[tokio::test(start_paused = true)]
async fn closing_takes_a_second_at_most() {
    let puppet = Puppet::new();
    let session = puppet.start();
    session.wait().await.expect("a token");
    puppet.latency_ms.store(60_000, Ordering::SeqCst);
    let asked = Instant::now();
    session.close().await;
    assert!(asked.elapsed() <= Duration::from_millis(1_010), "{:?}", asked.elapsed());
}

#[path = "waking_tests.rs"]
mod waking;

/// On threads of their own and at shifting moments, because what is looked for lies between two instructions: a token that
/// comes between a waiter's look for one and its look at the round. Whoever missed it waited for the next change, which may
/// be an hour away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_comes_while_a_call_looks_for_one_is_found() {
    for shift in 0..30_000 {
        let shared = Arc::new(Shared {
            token: ArcSwapOption::empty(),
            round: watch::Sender::new(Round { busy: true, ..Round::default() }),
            rejected: watch::Sender::new(0),
        });
        let never = tower::service_fn(|_: BaoCall| std::future::pending::<Result<BaoReply, Error>>());
        let session = Session {
            shared: shared.clone(),
            bao: BaoService::new(never),
            pipeline: "p".into(),
            look: Arc::default(),
            task: Mutex::new(None),
        };
        let (ready, go) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (told, waits) = (ready.clone(), go.clone());
        let login = tokio::task::spawn_blocking(move || {
            told.store(true, Ordering::SeqCst);
            while !waits.load(Ordering::SeqCst) {
                std::hint::spin_loop();
            }
            (0..shift % 100).for_each(|_| std::hint::spin_loop());
            shared.hold(Token { secret: "t".into(), generation: 1, since: Instant::now() }, None);
        });
        while !ready.load(Ordering::SeqCst) {
            std::hint::spin_loop();
        }
        go.store(true, Ordering::SeqCst);
        let token = tokio::time::timeout(Duration::from_secs(5), session.wait()).await;
        assert_eq!(token.expect("it is there").expect("a token").generation, 1);
        login.await.expect("no panic");
    }
}
