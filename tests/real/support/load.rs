//! Callers that seal and open without end, and what each of their calls came to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bao_kms_provider::front::client::{Client, ClientError};
use tokio::task::JoinSet;
use tonic::Code;

/// What the program keeps of its caller's patience at most, so that its answer is there in time.
const MARGIN: Duration = Duration::from_millis(200);

/// One call that is over.
#[derive(Debug)]
pub struct Call {
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
    calls.push(Call { patience, began, ended: Instant::now(), refusal: sealed.as_ref().err().map(refusal) });
    let Ok(sealed) = sealed else { return };
    let began = Instant::now();
    let opened = client.decrypt(sealed.ciphertext.to_vec(), "u", &sealed.key_id, sealed.annotations).await;
    calls.push(Call { patience, began, ended: Instant::now(), refusal: opened.as_ref().err().map(refusal) });
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
