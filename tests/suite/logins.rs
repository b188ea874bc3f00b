//! What touches the right to ask, under load: each fault has its class, costs few logins however many ask, and is over
//! within moments of its repair. Through the session and the layers below Transit, against the embedded server.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bao_kms_provider::backend::transit::Transit;
use bao_kms_provider::error::Class;
use bao_kms_provider::request::Progress;
use serde_json::{Value, json};

use super::bao::Bao;

const CALLERS: usize = 16;
/// The promise is two seconds; a machine with other things to do may take as long again.
const REPAIRED_WITHIN: Duration = Duration::from_secs(4);

/// When each answer came, and the class of what failed.
type Answers = Arc<Mutex<Vec<(Instant, Option<Class>)>>>;

/// Callers that ask all the time, without a keeper that would wake anything.
struct Load {
    stop: Arc<AtomicBool>,
    answers: Answers,
    callers: tokio::task::JoinSet<()>,
}

// === impl Load ===

impl Load {
    async fn start(transit: Transit) -> Self {
        transit.metadata(Progress::default()).await.unwrap();
        let (stop, answers) = (Arc::new(AtomicBool::new(false)), Answers::default());
        let mut callers = tokio::task::JoinSet::new();
        for _ in 0..CALLERS {
            let (transit, stop, answers) = (transit.clone(), stop.clone(), answers.clone());
            callers.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let class = transit.metadata(Progress::default()).await.err().map(|error| error.class());
                    answers.lock().unwrap().push((Instant::now(), class));
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            });
        }
        Self { stop, answers, callers }
    }

    /// The classes that were met from then on, and how many answers there were.
    fn since(&self, then: Instant) -> (Vec<Option<Class>>, usize) {
        let answers = self.answers.lock().unwrap();
        let late: Vec<_> = answers.iter().filter(|(at, _)| *at >= then).map(|(_, class)| *class).collect();
        let count = late.len();
        let mut classes = late;
        classes.sort_unstable();
        classes.dedup();
        (classes, count)
    }

    /// Waits until nothing fails any more, and says that this came soon enough after the repair.
    async fn works_again(&self, repaired: Instant) {
        loop {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let answers = self.answers.lock().unwrap();
            let last_failure = answers.iter().rev().find(|(_, class)| class.is_some()).map(|(at, _)| *at);
            let quiet = last_failure.is_none_or(|at| at.elapsed() > Duration::from_millis(250));
            let met = answers.last().map(|(_, class)| *class);
            drop(answers);
            if quiet && met == Some(None) {
                let took = last_failure.map_or(Duration::ZERO, |at| at.saturating_duration_since(repaired));
                assert!(took < REPAIRED_WITHIN, "{took:?}");
                return;
            }
            assert!(repaired.elapsed() < REPAIRED_WITHIN * 2, "not yet: {met:?}");
        }
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.callers.join_all().await;
    }
}

/// How many logins this long may see at most while they do not help: one every 1.8 s, and those at its ends.
fn bound(span: Duration) -> u64 {
    u64::try_from(span.as_millis() / 1_800).unwrap() + 2
}

fn logins(bao: &Bao) -> u64 {
    bao.server.calls().of("auth/login")
}

async fn post(bao: &Bao, path: &str, body: Value) {
    assert!(bao.root().call("POST", path, &body).await.unwrap().is_ok(), "{path}");
}

async fn put_policy(bao: &Bao, text: &str) {
    post(bao, "sys/policies/acl/kms", json!({ "policy": text })).await;
}

/// The role as the set-up makes it, with these policies.
async fn put_role(bao: &Bao, policy: &str) {
    let login = bao.setup.jwt.as_ref().unwrap();
    let role = json!({
        "role_type": "jwt", "user_claim": "sub", "bound_audiences": [login.audience], "bound_subject": login.subject,
        "token_policies": [policy], "token_no_default_policy": true, "token_ttl": "1h", "token_max_ttl": "24h",
    });
    post(bao, &format!("auth/{}/role/{}", login.mount, login.role), role).await;
}

/// What lasts this long: from a moment on, when whatever was on its way is over, one class alone is met, at few logins.
async fn fails_for(bao: &Bao, load: &Load, span: Duration, class: Class) {
    tokio::time::sleep(Duration::from_millis(800)).await;
    let (began, before) = (Instant::now(), logins(bao));
    tokio::time::sleep(span).await;
    let (classes, count) = load.since(began);
    assert_eq!(classes, [Some(class)], "of {count} calls");
    assert!(count > 50, "{count} calls are no load");
    let (tried, most) = (logins(bao) - before, bound(began.elapsed()));
    assert!(tried <= most, "{tried} logins for {count} calls, at most {most}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_revoked_under_load_costs_one_login_and_no_call() {
    let bao = Bao::start(|_| ()).await;
    let load = Load::start(bao.transit()).await;
    for _ in 0..3 {
        let (began, before) = (Instant::now(), logins(&bao));
        tokio::time::sleep(Duration::from_millis(700)).await;
        bao.server.state().revoke_all_tokens();
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let (classes, count) = load.since(began);
        assert_eq!(classes, [None], "of {count} calls");
        assert!(count > 50, "{count} calls are no load");
        assert_eq!(logins(&bao) - before, 1);
    }
    load.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_is_taken_away_costs_few_logins_and_hinders_nothing_when_it_is_back() {
    let bao = Bao::start(|_| ()).await;
    let load = Load::start(bao.transit()).await;
    put_policy(&bao, "path \"x\" { capabilities = [\"read\"] }").await;
    fails_for(&bao, &load, Duration::from_secs(10), Class::TokenRejected).await;
    put_policy(&bao, &bao.setup.policy_text()).await;
    load.works_again(Instant::now()).await;
    // What follows right after it is another matter and waits for nothing that came before.
    let revoked = Instant::now();
    bao.server.state().revoke_all_tokens();
    load.works_again(revoked).await;
    load.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_lost_its_policies_is_noticed_when_it_has_them_back() {
    let bao = Bao::start(|_| ()).await;
    let load = Load::start(bao.transit()).await;
    put_role(&bao, "nothing").await;
    bao.server.state().revoke_all_tokens();
    fails_for(&bao, &load, Duration::from_secs(5), Class::TokenRejected).await;
    // The tokens that are held stay as poor as they were made.
    put_role(&bao, &bao.setup.policy).await;
    load.works_again(Instant::now()).await;
    load.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_is_deleted_and_restored() {
    let bao = Bao::start(|_| ()).await;
    let load = Load::start(bao.transit()).await;
    let began = Instant::now();
    assert!(bao.root().call("DELETE", "auth/jwt/role/kms", &Value::Null).await.unwrap().is_ok());
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(load.since(began).0, [None], "a token that is there is as good as before");
    bao.server.state().revoke_all_tokens();
    fails_for(&bao, &load, Duration::from_secs(8), Class::LoginRefused).await;
    put_role(&bao, &bao.setup.policy).await;
    load.works_again(Instant::now()).await;
    load.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jwt_that_expires_during_an_outage() {
    let bao = Bao::start(|_| ()).await;
    let load = Load::start(bao.transit()).await;
    bao.server.state().seal();
    // Two hours later both the JWT and the token's lease are over.
    bao.server.state().set_clock_offset_ms(2 * 3_600_000);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (sealed, before) = (Instant::now(), logins(&bao));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!((load.since(sealed).0, logins(&bao) - before), (vec![Some(Class::Sealed)], 0));
    bao.server.state().unseal();
    fails_for(&bao, &load, Duration::from_secs(6), Class::LoginRefused).await;
    bao.write_jwt(3 * 3_600);
    load.works_again(Instant::now()).await;
    load.end().await;
}
