//! The composed stack over a puppet of Transit: what no layer alone can promise.

use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use secrecy::ExposeSecret;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tower::Service;

use super::testing::identity;
use super::{Answer, Config, stack};
use crate::error::{Class, Error};
use crate::key::config::{HealthPolicy, Rotation};
use crate::key::{KeyState, Metadata, View, refresh};
use crate::request::{
    Context as CallContext, KmsService, Lot, Operation, Outcomes, Payload, Reply, Request, Response, Stage, secret,
};
use crate::telemetry::metrics::PipelineMetrics;

/// What an API server waits.
const PATIENT: Duration = Duration::from_secs(3);
/// Opens only when it is asked for again: the node lags when it hears of it first.
const LAGS: &str = "lags";

/// What a lot has in the place of a seed that is to be sealed.
const SEALS: &str = "seals";

/// Opens each text as itself, after a while, and notes the lots that it was asked for.
#[derive(Clone)]
struct Transit {
    lots: Arc<Mutex<Vec<Vec<String>>>>,
    /// What an exchange of one call takes.
    alone: Duration,
    /// What an exchange of more takes.
    together: Duration,
}

/// The stack, with a key that has just been seen to work.
struct Hallway {
    kms: KmsService,
    key: Arc<KeyState>,
    lots: Arc<Mutex<Vec<Vec<String>>>>,
}

/// What a call ended with, and when it did since it began.
type Ended = (Result<Response, Error>, Duration);

// === impl Transit ===

impl Service<Lot> for Transit {
    type Response = Outcomes;
    type Error = Error;
    type Future = Answer<Outcomes>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, lot: Lot) -> Self::Future {
        let mut texts = Vec::with_capacity(lot.len());
        for bound in &lot {
            bound.context.progress.enter(Stage::OpenBao);
            texts.push(match &bound.payload {
                Payload::Decrypt(text) => String::from_utf8_lossy(text).trim_start_matches("vault:v1:").to_owned(),
                Payload::Encrypt(_) => SEALS.to_owned(),
            });
        }
        let mut lots = self.lots.lock().expect("lots");
        let is_new = !lots.iter().flatten().any(|text| text == LAGS);
        lots.push(texts.clone());
        drop(lots);
        let takes = if texts.len() == 1 { self.alone } else { self.together };
        Box::pin(async move {
            tokio::time::sleep(takes).await;
            let open = |text: String| match text == LAGS && is_new {
                true => Err(Error::from(Class::StaleNode)),
                false if text == SEALS => Ok(Reply::Encrypted("vault:v1:sealed".into())),
                false => Ok(Reply::Decrypted(secret(text.into_bytes()))),
            };
            Ok(texts.into_iter().map(open).collect())
        })
    }
}

// === impl Hallway ===

impl Hallway {
    fn new(alone: Duration, together: Duration) -> Self {
        let (key, lots) = (healthy(), Arc::default());
        let transit = Transit { lots: Arc::clone(&lots), alone, together };
        let kms = stack(&Config::default(), key.clone(), transit, PipelineMetrics::new());
        Self { kms, key, lots }
    }

    /// Begins a Decrypt of this text for a caller who waits so long.
    fn decrypt(&mut self, text: &str, patience: Duration) -> JoinHandle<Ended> {
        let view = self.key.peek().expect("a view");
        let version = view.active();
        let operation = Operation::Decrypt {
            ciphertext: format!("vault:v1:{text}").into(),
            key_id: version.key_id.to_string(),
            annotations: (*version.annotations).clone(),
        };
        let mut context = CallContext::new("u");
        context.patience = Some(patience);
        let began = context.arrived;
        let answer = self.kms.call(Request { operation, context });
        tokio::spawn(async move {
            let answer = answer.await;
            (answer, began.elapsed())
        })
    }

    fn lots(&self) -> Vec<Vec<String>> {
        self.lots.lock().expect("lots").clone()
    }
}

fn healthy() -> Arc<KeyState> {
    let metadata: Metadata = serde_json::from_value(serde_json::json!({
        "type": "aes256-gcm96", "latest_version": 1, "keys": { "1": 1_000 },
    }))
    .expect("metadata");
    let view = View::at(&identity(), &metadata, 1_000_000, 120, None).expect("a view");
    let (refresh, _) = refresh::channel(Duration::from_secs(30));
    let key = KeyState::new(&HealthPolicy::default(), &Rotation::default(), refresh);
    key.publish(Arc::new(view));
    key.succeeded(Instant::now());
    Arc::new(key)
}

/// The call opened its own text; when it did.
async fn opened(call: JoinHandle<Ended>, text: &str) -> Duration {
    let (answer, took) = call.await.expect("a call");
    match answer {
        Ok(Response::Decrypt { plaintext }) => assert_eq!(plaintext.expose_secret(), text.as_bytes()),
        other => panic!("{text}: {other:?}"),
    }
    took
}

#[tokio::test(start_paused = true)]
async fn a_caller_in_a_hurry_ends_at_its_own_deadline_and_its_batch_goes_on() {
    let together = Duration::from_secs(1);
    // What it is gathered behind takes so long; where it is when its time is up; what goes together; when that is answered.
    let cases = [
        // It goes along, and the batch outlasts it.
        (100, Stage::OpenBao, vec!["hurried", "c", "d"], 1_100),
        // It still waits when its time is up: nobody asks for it, and the others go once what is in front counts as slow.
        (2_000, Stage::Queue, vec!["c", "d"], 1_250),
    ];
    for (alone, stage, batch, answered) in cases {
        let mut hallway = Hallway::new(Duration::from_millis(alone), together);
        let first = [hallway.decrypt("a", PATIENT), hallway.decrypt("b", PATIENT)];
        // The two in front have to be on their way before anybody is gathered.
        tokio::task::yield_now().await;
        let hurried = hallway.decrypt("hurried", Duration::from_millis(200));
        let others = [hallway.decrypt("c", PATIENT), hallway.decrypt("d", PATIENT)];

        let (answer, took) = hurried.await.expect("a call");
        let error = answer.expect_err("its time is up");
        assert_eq!((error.class(), error.stage()), (Class::DeadlineExceeded, Some(stage)), "{error}");
        assert_eq!(took.as_millis(), 180, "200 ms less a tenth");

        for (call, text) in others.into_iter().zip(["c", "d"]) {
            assert_eq!(opened(call, text).await.as_millis(), answered, "{text}");
        }
        for (call, text) in first.into_iter().zip(["a", "b"]) {
            assert_eq!(opened(call, text).await.as_millis(), u128::from(alone), "{text}");
        }
        assert_eq!(hallway.lots(), [vec!["a"], vec!["b"], batch]);
    }
}

#[tokio::test(start_paused = true)]
async fn an_item_that_met_a_node_that_lags_is_asked_for_again_alone() {
    let takes = Duration::from_millis(10);
    let mut hallway = Hallway::new(takes, takes);
    let texts = ["a", "b", "c", LAGS, "d", "e"];
    let calls: Vec<_> = texts.iter().map(|text| hallway.decrypt(text, PATIENT)).collect();
    for (call, text) in calls.into_iter().zip(texts) {
        let took = opened(call, text).await;
        // Nobody else waits for the repeat.
        assert!(text == LAGS || took.as_millis() <= 20, "{text}: {took:?}");
    }
    assert_eq!(hallway.lots(), [vec!["a"], vec!["b"], vec!["c", LAGS, "d", "e"], vec![LAGS]]);
}

/// An API server that starts: each of fifty seeds is wanted a hundred times, within two exchanges' time.
#[tokio::test(start_paused = true)]
async fn a_storm_asks_for_no_seed_more_than_three_times() {
    let far = Duration::from_millis(50);
    let mut hallway = Hallway::new(far, far);
    let seeds: Vec<_> = (0..50).map(|seed| format!("seed{seed}")).collect();
    let mut calls = Vec::new();
    for _ in 0..100 {
        for seed in &seeds {
            calls.push((hallway.decrypt(seed, PATIENT), seed.as_str()));
        }
        tokio::time::sleep(far * 2 / 100).await;
    }
    for (call, seed) in calls {
        let took = opened(call, seed).await;
        assert!(took <= far * 4, "{seed}: {took:?}");
    }
    let asked = hallway.lots().concat();
    for seed in &seeds {
        let times = asked.iter().filter(|text| *text == seed).count();
        assert!((1..=3).contains(&times), "{seed}: {times}");
    }
}

/// A seed that was sealed while a proof showed that it would not open: nobody may write under it.
#[tokio::test(start_paused = true)]
async fn what_is_on_its_way_when_the_key_does_not_open_is_not_given_out() {
    let (takes, half) = (Duration::from_millis(100), Duration::from_millis(50));
    for class in [Class::KeyUnusable, Class::KeyRolledBack] {
        let mut hallway = Hallway::new(takes, takes);
        let context = CallContext::new("u");
        let sealing =
            hallway.kms.call(Request { operation: Operation::Encrypt { plaintext: secret(vec![1; 32]) }, context });
        let sealing = tokio::spawn(sealing);
        let opening = hallway.decrypt("a", PATIENT);
        tokio::time::sleep(half).await;
        hallway.key.failed(class, Instant::now());
        assert_eq!(sealing.await.expect("a task").expect_err("closed").class(), class);
        assert!(opening.await.expect("a task").0.is_ok(), "what opens is opened");
        assert_eq!(hallway.lots().concat().iter().filter(|text| *text == SEALS).count(), 1, "it was on its way");
    }
}
