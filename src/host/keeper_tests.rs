//! A keeper over a puppet of Transit: what a defect of its own, and a key that does not open what it seals, do to Status.

use std::sync::atomic::{AtomicU8, Ordering};

use secrecy::ExposeSecret;
use serde_json::{Value, json};

use super::super::hindsight::LAG;
use super::*;
use crate::auth::{Attempt, Method};
use crate::key::{Seen, refresh};
use crate::request::{BaoCall, BaoReply, BaoService, Exchange, Purpose};
use crate::telemetry::metrics::PipelineMetrics;

/// A session that never has a token: the puppet asks for none.
struct NoLogin;

impl Method for NoLogin {
    fn login(&self) -> Result<Attempt, Error> {
        Err(Class::CredentialUnavailable.into())
    }
}

/// How the puppet behaves.
const WELL: u8 = 0;
const PANICS_ONCE: u8 = 1;
const OPENS_NOTHING: u8 = 2;
const OPENS_ANOTHER: u8 = 3;
const HAS_TWO_VERSIONS: u8 = 4;
const HAS_THREE_VERSIONS: u8 = 5;
const WAS_MADE_ANEW: u8 = 6;
const SEALS_UNDER_ANOTHER_VERSION: u8 = 7;
const AWAY: u8 = 8;
const HAS_A_YOUNG_VERSION: u8 = 9;
const HAS_A_YOUNG_VERSION_AND_IS_SLOW: u8 = 10;

/// What an answer takes of a puppet that is slow: less than anybody's patience.
const SLOW: Duration = Duration::from_millis(2_400);
/// How old the young version is when the puppet is made.
const YOUNG: u64 = 100;

/// Transit with one key whose ciphertext is the plaintext under a prefix.
fn transit(mood: Arc<AtomicU8>) -> BaoService {
    let unix = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    BaoService::new(tower::service_fn(move |call: BaoCall| {
        assert!(mood.compare_exchange(PANICS_ONCE, WELL, Ordering::SeqCst, Ordering::SeqCst).is_err(), "on purpose");
        let mood = mood.load(Ordering::SeqCst);
        let answer = (mood != AWAY).then(|| answer(mood, unix - YOUNG, call)).ok_or(Class::Unreachable.into());
        async move {
            if mood == HAS_A_YOUNG_VERSION_AND_IS_SLOW {
                tokio::time::sleep(SLOW).await;
            }
            answer
        }
    }))
}

fn answer(mood: u8, young: u64, call: BaoCall) -> BaoReply {
    let asked: Value =
        call.body.map_or(Value::Null, |body| serde_json::from_slice(body.expose_secret()).expect("JSON"));
    let (latest, keys) = match mood {
        HAS_TWO_VERSIONS => (2, json!({ "1": 1_000, "2": 2_000 })),
        HAS_A_YOUNG_VERSION | HAS_A_YOUNG_VERSION_AND_IS_SLOW => (2, json!({ "1": 1_000, "2": young })),
        HAS_THREE_VERSIONS => (3, json!({ "1": 1_000, "2": 2_000, "3": 3_000 })),
        WAS_MADE_ANEW => (1, json!({ "1": 1_060 })),
        _ => (1, json!({ "1": 1_000 })),
    };
    let data = match call.purpose {
        Purpose::Metadata => json!({
            "type": "aes256-gcm96", "latest_version": latest, "keys": keys,
            "supports_encryption": true, "supports_decryption": true,
        }),
        Purpose::KeysConfig => json!({ "disable_upsert": true }),
        Purpose::Encrypt => {
            let plaintext = asked["plaintext"].as_str().expect("a plaintext");
            let version = asked["key_version"].as_u64().expect("a version");
            let version = version + u64::from(mood == SEALS_UNDER_ANOTHER_VERSION);
            json!({ "ciphertext": format!("vault:v{version}:{plaintext}"), "key_version": version })
        }
        _ => {
            let plaintext = asked["ciphertext"].as_str().and_then(|text| text.rsplit(':').next());
            json!({ "plaintext": plaintext.expect("a text") })
        }
    };
    let (status, body) = match (call.purpose, mood) {
        (Purpose::Decrypt, OPENS_NOTHING) => (400, json!({ "errors": ["cipher: message authentication failed"] })),
        (Purpose::Decrypt, OPENS_ANOTHER) => (200, json!({ "data": { "plaintext": "AAAA" } })),
        _ => (200, json!({ "data": data })),
    };
    reply(status, &body)
}

fn reply(status: u16, body: &Value) -> BaoReply {
    let (date, retry_after, location) = (None, None, None);
    BaoReply { status, body: body.to_string().into(), date, retry_after, location, endpoint: Some(0) }
}

fn keeper(mood: &Arc<AtomicU8>) -> Keeper {
    let bao = transit(mood.clone());
    let at_health = mood.clone();
    let health = tower::service_fn(move |_: Exchange| {
        let away = at_health.load(Ordering::SeqCst) == AWAY;
        std::future::ready(if away { Err(Error::from(Class::Unreachable)) } else { Ok(reply(200, &json!({}))) })
    });
    let metrics = PipelineMetrics::new();
    let endpoint = Endpoint::new(vec!["https://bao:8200".into()], Vec::new(), health, metrics.clone());
    let config: crate::key::identity::Config = serde_json::from_value(json!({
        "providerName": "p", "clusterId": "c", "openbaoId": "b", "transitMountId": "m", "keyLineageId": "l",
    }))
    .expect("an identity");
    let transit_config = serde_json::from_value(json!({ "endpoints": [], "mount": "transit", "key": "k" }));
    let (refresh, requests) = refresh::channel(Duration::from_secs(30));
    let (health, rotation) = (HealthPolicy::default(), Rotation::default());
    Keeper {
        pipeline: "p".into(),
        key: Arc::new(KeyState::new(&health, &rotation, refresh)),
        identity: Arc::new(Identity::of(&config, "")),
        transit: Transit::new(&transit_config.expect("a section"), bao, Duration::from_millis(2_500)),
        endpoint,
        session: Session::start(
            Arc::new(NoLogin),
            BaoService::new(tower::service_fn(|_: BaoCall| std::future::pending::<Result<BaoReply, Error>>())),
            Arc::new(|| Ok(())),
            metrics,
            "p".into(),
        ),
        rotation,
        health,
        requests: Arc::new(Mutex::new(requests)),
        findings: Arc::default(),
        witness: Witness::new(None, String::new(), "p".into(), PipelineMetrics::new(), Arc::default()),
    }
}

#[tokio::test(start_paused = true)]
async fn a_keeper_that_panics_shows_and_begins_anew() {
    let mood = Arc::new(AtomicU8::new(WELL));
    let keeper = keeper(&mood);
    let key = keeper.key.clone();
    let keeping = tokio::spawn(keeper.keep());
    let status = || key.status(Instant::now()).healthz;
    tokio::time::sleep(LAST_PAUSE / 10).await;
    assert_eq!(status(), "ok");
    let key_id = key.peek().expect("a view").active().key_id.clone();

    mood.store(PANICS_ONCE, Ordering::SeqCst);
    let began = Instant::now();
    while status() == "ok" {
        assert!(began.elapsed() < Duration::from_secs(60), "the next look meets the panic");
        tokio::time::sleep(LAST_PAUSE / 10).await;
    }
    assert_eq!(status(), Class::Internal.name());
    tokio::time::sleep(LAST_PAUSE * 2).await;
    assert_eq!(status(), "ok", "and the one after it is made");
    assert_eq!(key.peek().expect("a view").active().key_id, key_id, "what was known stays");
    assert!(!keeping.is_finished());
}

#[tokio::test(start_paused = true)]
async fn an_hour_of_absence_is_over_within_two_seconds_of_its_end() {
    for absent_at_start in [true, false] {
        let mood = Arc::new(AtomicU8::new(if absent_at_start { AWAY } else { WELL }));
        let keeper = keeper(&mood);
        let key = keeper.key.clone();
        let keeping = tokio::spawn(keeper.keep());
        tokio::time::sleep(LAST_PAUSE).await;
        mood.store(AWAY, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_secs(3_600)).await;
        let status = key.status(Instant::now());
        assert_eq!((status.healthz, status.key_id), (Class::Unreachable.name(), None));
        mood.store(WELL, Ordering::SeqCst);
        let back = Instant::now();
        while key.status(Instant::now()).healthz != "ok" {
            assert!(back.elapsed() < Duration::from_secs(2), "{:?}", key.status(Instant::now()));
            tokio::time::sleep(LAST_PAUSE / 100).await;
        }
        keeping.abort();
    }
}

/// Absence is waited for; a key that does not open what it seals must not seal one seed more.
#[tokio::test(start_paused = true)]
async fn a_key_that_does_not_open_what_it_seals_stops_writes_at_once() {
    for wrong in [OPENS_NOTHING, OPENS_ANOTHER, SEALS_UNDER_ANOTHER_VERSION] {
        let mood = Arc::new(AtomicU8::new(WELL));
        let keeper = keeper(&mood);
        let (key, probes_every) = (keeper.key.clone(), keeper.health.deep_probe_interval.get());
        let keeping = tokio::spawn(keeper.keep());
        tokio::time::sleep(LAST_PAUSE).await;
        assert_eq!(key.status(Instant::now()).healthz, "ok");
        mood.store(wrong, Ordering::SeqCst);
        // No call says so; the next proof does.
        tokio::time::sleep(probes_every * 2).await;
        let status = key.status(Instant::now());
        assert_eq!((status.healthz, status.key_id), (Class::KeyUnusable.name(), None));
        assert_eq!(key.seals_nothing(), Some(Class::KeyUnusable), "nor does a call that was on its way");
        mood.store(WELL, Ordering::SeqCst);
        tokio::time::sleep(LAST_PAUSE * 2).await;
        assert_eq!((key.status(Instant::now()).healthz, key.seals_nothing()), ("ok", None));
        keeping.abort();
    }
}

/// Nodes go by OpenBao's clock alone: one whose way to it is slow just then is no later than the others.
#[tokio::test(start_paused = true)]
async fn a_version_becomes_active_at_its_moment_while_a_look_takes_long() {
    let delay = Rotation::default().activation_delay.get();
    let left = delay - Duration::from_secs(YOUNG);
    for early in [0, 300, 600, 900] {
        let mood = Arc::new(AtomicU8::new(HAS_A_YOUNG_VERSION));
        let mut keeper = keeper(&mood);
        keeper.rotation.metadata_interval = "1s".parse().expect("a span");
        let key = keeper.key.clone();
        let active = || key.peek().expect("a view").active().number;
        let keeping = tokio::spawn(keeper.keep());
        tokio::time::sleep(left - Duration::from_millis(2_500 + early)).await;
        assert_eq!(active(), 1);
        mood.store(HAS_A_YOUNG_VERSION_AND_IS_SLOW, Ordering::SeqCst);
        // The clock of the reply has whole seconds: it may have been one further when the puppet was made.
        tokio::time::sleep(Duration::from_millis(2_600 + early)).await;
        assert_eq!(active(), 2, "a look was under way: {early}");
        keeping.abort();
    }
}

fn second() -> Seen {
    Seen { active: (2, 2_000), latest: (2, 2_000) }
}

/// A keeper that remembers this, and OpenBao's key as it is now.
fn started(mood: u8, seen: Seen) -> (Arc<AtomicU8>, Arc<KeyState>, tokio::task::JoinHandle<()>) {
    let mood = Arc::new(AtomicU8::new(mood));
    let keeper = keeper(&mood);
    let key = keeper.key.clone();
    key.remember(seen);
    (mood, key, tokio::spawn(keeper.keep()))
}

/// Status and Encrypt refuse, and what opens is known up to this version.
fn opens_alone(key: &KeyState, latest: u32) {
    let status = key.status(Instant::now());
    assert_eq!((status.healthz, status.key_id), (Class::KeyRolledBack.name(), None));
    assert_eq!(key.seals_nothing(), Some(Class::KeyRolledBack));
    assert_eq!(key.peek().expect("a view to open with").latest(), latest);
}

/// A process that starts knows of its key what the one before has seen: what is left is opened, nothing is sealed, until the
/// key is back.
#[tokio::test(start_paused = true)]
async fn a_start_after_a_rollback_opens_what_is_left_and_seals_nothing() {
    let third = Seen { active: (3, 3_000), latest: (3, 3_000) };
    let (mood, key, keeping) = started(WELL, third);
    tokio::time::sleep(LAG - LAST_PAUSE).await;
    assert_eq!((key.status(Instant::now()).healthz, key.peek()), ("starting", None), "a standby may lag");
    tokio::time::sleep(LAST_PAUSE * 3).await;
    for _ in 0..3 {
        opens_alone(&key, 1);
        tokio::time::sleep(LAST_PAUSE * 3).await;
    }
    // A better backup, and still not the newest one.
    mood.store(HAS_TWO_VERSIONS, Ordering::SeqCst);
    tokio::time::sleep(LAST_PAUSE * 2).await;
    opens_alone(&key, 2);
    mood.store(HAS_THREE_VERSIONS, Ordering::SeqCst);
    tokio::time::sleep(LAST_PAUSE * 2).await;
    assert_eq!((key.status(Instant::now()).healthz, key.seals_nothing()), ("ok", None));
    assert_eq!(key.peek().expect("a view").seen(), third);
    keeping.abort();
}

/// That a version was made at another time needs no second look.
#[tokio::test(start_paused = true)]
async fn a_start_with_a_key_that_was_made_anew_seals_nothing_until_the_old_one_is_back() {
    let (mood, key, keeping) = started(WAS_MADE_ANEW, Seen { active: (1, 1_000), latest: (1, 1_000) });
    // Whoever waits for the first view already knows that it is none to seal with.
    key.announced().await;
    assert_eq!(key.seals_nothing(), Some(Class::KeyRolledBack));
    tokio::time::sleep(LAG * 3).await;
    opens_alone(&key, 1);
    mood.store(WELL, Ordering::SeqCst);
    tokio::time::sleep(LAST_PAUSE * 2).await;
    assert_eq!(key.status(Instant::now()).healthz, "ok");
    assert_eq!(key.peek().expect("a view").active().created, 1_000, "nothing of the other one is left");
    keeping.abort();
}

/// What is remembered speaks of the second version alone; the view knows when the first one was made.
#[tokio::test(start_paused = true)]
async fn a_key_that_is_made_anew_is_noticed_at_once_whatever_is_remembered() {
    let (mood, key, keeping) = started(HAS_TWO_VERSIONS, second());
    tokio::time::sleep(LAST_PAUSE).await;
    assert_eq!(key.status(Instant::now()).healthz, "ok");
    mood.store(WAS_MADE_ANEW, Ordering::SeqCst);
    tokio::time::sleep(Rotation::default().metadata_interval.get() + LAG / 2).await;
    opens_alone(&key, 2);
    keeping.abort();
}

/// A witness that could not be read in time speaks later.
#[tokio::test(start_paused = true)]
async fn what_is_remembered_late_closes_a_key_that_was_taken_for_what_it_is() {
    let (_, key, keeping) = started(WELL, Seen { active: (1, 1_000), latest: (1, 1_000) });
    tokio::time::sleep(LAST_PAUSE).await;
    assert_eq!(key.status(Instant::now()).healthz, "ok");
    key.remember(second());
    tokio::time::sleep(Rotation::default().metadata_interval.get() * 2 + LAG).await;
    opens_alone(&key, 1);
    keeping.abort();
}

#[test]
fn every_failed_round_bears_on_health() {
    for &class in Class::ALL {
        assert_ne!(health_class(&class.into()).bearing(), Bearing::None, "{class}");
    }
}
