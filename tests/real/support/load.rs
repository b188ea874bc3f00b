//! Callers that seal and open without end, and what each of their calls came to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bao_kms_provider::front::client::{Client, ClientError};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tonic::Code;

/// What the program keeps of its caller's patience at most, so that its answer is there in time.
const MARGIN: Duration = Duration::from_millis(200);

/// How many sealed seeds arrivals open in turn: more than are under way at once, so that each of those is another one.
const SEEDS: usize = 1_000;

/// One call that is over.
#[derive(Debug)]
pub struct Call {
    /// Whether it came whatever became of others.
    pub arrival: bool,
    /// How long its caller waits.
    pub patience: Duration,
    pub began: Instant,
    pub ended: Instant,
    /// Code and message when it failed.
    pub refusal: Option<(Code, String)>,
}

/// The callers, until `end`.
#[derive(Default)]
pub struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    callers: JoinSet<Vec<Call>>,
}

impl Call {
    /// When the program has to have answered.
    pub fn due(&self) -> Instant {
        self.began + self.patience - (self.patience / 10).min(MARGIN)
    }
}

impl Load {
    /// More callers of this patience, each with a pause after it has sealed and opened once.
    pub fn add(&mut self, client: &Client, callers: usize, patience: Duration, pause: Duration) {
        for at in 0..callers {
            let client = client.clone().with_timeout(patience);
            let (stop, done) = (self.stop.clone(), self.done.clone());
            self.callers.spawn(async move {
                let (seed, mut calls) = (vec![at as u8; 32], Vec::new());
                while !stop.load(Ordering::Relaxed) {
                    round(&client, &seed, patience, &mut calls).await;
                    done.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(pause).await;
                }
                calls
            });
        }
    }

    /// Calls of this patience that come all the same, one each `apart`, whatever became of those before: each opens what
    /// no other one that is under way opens. They do not count as rounds.
    pub async fn arrive(&mut self, client: &Client, apart: Duration, patience: Duration) {
        assert!(apart * u32::try_from(SEEDS).expect("few") > 2 * patience, "one seed twice at a time is one call");
        let client = client.clone().with_timeout(patience);
        let mut sealed = Vec::new();
        for at in 0..SEEDS {
            let seed = at.to_be_bytes().repeat(4);
            sealed.push((client.encrypt(seed.clone(), "u").await.expect("Encrypt"), seed));
        }
        let stop = self.stop.clone();
        self.callers.spawn(async move {
            let (mut calls, mut ticks) = (JoinSet::new(), interval(apart));
            // A test that was held up is not to make the burst that it looks for.
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            for (reply, seed) in sealed.iter().cycle() {
                ticks.tick().await;
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let (client, reply, seed) = (client.clone(), reply.clone(), seed.clone());
                calls.spawn(async move {
                    let began = Instant::now();
                    let opened = client.decrypt(reply.ciphertext, "u", &reply.key_id, reply.annotations).await;
                    let refusal = opened.as_ref().err().map(refusal);
                    assert!(opened.is_err() || opened.is_ok_and(|opened| opened == seed), "another plaintext");
                    Call { arrival: true, patience, began, ended: Instant::now(), refusal }
                });
            }
            calls.join_all().await
        });
    }

    /// How often a caller has sealed and opened, well or not.
    pub fn rounds(&self) -> usize {
        self.done.load(Ordering::Relaxed)
    }

    /// Every call, when the last one is over.
    pub async fn end(self) -> Vec<Call> {
        self.stop.store(true, Ordering::Relaxed);
        self.callers.join_all().await.into_iter().flatten().collect()
    }
}

async fn round(client: &Client, seed: &[u8], patience: Duration, calls: &mut Vec<Call>) {
    let began = Instant::now();
    let sealed = client.encrypt(seed.to_vec(), "u").await;
    let over = |began, error: Option<&ClientError>| Call {
        arrival: false,
        patience,
        began,
        ended: Instant::now(),
        refusal: error.map(refusal),
    };
    calls.push(over(began, sealed.as_ref().err()));
    let Ok(sealed) = sealed else { return };
    let began = Instant::now();
    let opened = client.decrypt(sealed.ciphertext.to_vec(), "u", &sealed.key_id, sealed.annotations).await;
    calls.push(over(began, opened.as_ref().err()));
    if let Ok(opened) = opened {
        assert_eq!(opened, seed, "another plaintext");
    }
}

fn refusal(error: &ClientError) -> (Code, String) {
    match error {
        ClientError::Call(status) => (status.code(), status.message().to_owned()),
        ClientError::Connect { .. } => (Code::Unavailable, error.to_string()),
    }
}
