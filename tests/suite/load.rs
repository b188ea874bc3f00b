//! Load on a socket: callers that seal and open until they are told to stop, and an account of what failed, when, and how
//! long the slowest took. Another plaintext ends the test at once, whatever fault is under way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bao_kms_provider::front::client::Client;
use tokio::task::JoinSet;

/// Callers at work.
pub struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    callers: JoinSet<Account>,
}

/// A round that failed.
#[derive(Debug)]
pub struct Failure {
    pub from: Instant,
    pub to: Instant,
    pub text: String,
}

/// What became of all rounds.
#[derive(Debug, Default)]
pub struct Account {
    /// Rounds that went well.
    pub done: usize,
    pub failures: Vec<Failure>,
    /// The longest round, whether it went well or not.
    pub slowest: Duration,
}

// === impl Load ===

impl Load {
    /// Callers that share a connection.
    pub fn start(client: &Client, callers: usize) -> Self {
        Self::of(callers, Duration::from_millis(5), |at| {
            let (client, seed) = (client.clone(), vec![at as u8; 32]);
            move || {
                let (client, seed) = (client.clone(), seed.clone());
                async move { round(&client, &seed).await }
            }
        })
    }

    /// Callers of another kind: `caller` makes what each of them repeats, with this pause between.
    pub fn of<C, F>(callers: usize, pause: Duration, caller: impl Fn(usize) -> C) -> Self
    where
        C: Fn() -> F + Send + 'static,
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut set = JoinSet::new();
        for at in 0..callers {
            let (stop, done, round) = (stop.clone(), done.clone(), caller(at));
            set.spawn(async move {
                let mut account = Account::default();
                while !stop.load(Ordering::Relaxed) {
                    let from = Instant::now();
                    let answer = round().await;
                    account.slowest = account.slowest.max(from.elapsed());
                    match answer {
                        Ok(()) => {
                            account.done += 1;
                            done.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(text) => account.failures.push(Failure { from, to: Instant::now(), text }),
                    }
                    tokio::time::sleep(pause).await;
                }
                account
            });
        }
        Self { stop, done, callers: set }
    }

    /// How many rounds went well so far.
    pub fn done(&self) -> usize {
        self.done.load(Ordering::Relaxed)
    }

    /// Ends it.
    pub async fn end(self) -> Account {
        self.stop.store(true, Ordering::Relaxed);
        let mut whole = Account::default();
        for one in self.callers.join_all().await {
            whole.done += one.done;
            whole.failures.extend(one.failures);
            whole.slowest = whole.slowest.max(one.slowest);
        }
        whole
    }
}

// === impl Account ===

impl Account {
    /// No round failed, and there were more than `enough` of them.
    pub fn assert_clean(&self, enough: usize, what: &str) {
        let told = |failure: &Failure| format!("after {:.1?}: {}", failure.to - failure.from, failure.text);
        let texts: Vec<_> = self.failures.iter().map(told).collect();
        assert!(texts.is_empty(), "{what}: {} of {} rounds failed: {texts:#?}", texts.len(), self.done + texts.len());
        assert!(self.done > enough, "{what}: {} rounds are no load", self.done);
    }
}

/// One seed sealed and opened again.
pub async fn round(client: &Client, seed: &[u8]) -> Result<(), String> {
    sealed_under(client, seed).await.map(drop)
}

/// The same; the key_id that the seed was sealed under.
pub async fn sealed_under(client: &Client, seed: &[u8]) -> Result<String, String> {
    let sealed = client.encrypt(seed.to_vec(), "u").await.map_err(|error| format!("Encrypt: {error}"))?;
    let opened = client.decrypt(sealed.ciphertext.to_vec(), "u", &sealed.key_id, sealed.annotations.clone()).await;
    assert_eq!(opened.map_err(|error| format!("Decrypt: {error}"))?, seed, "another plaintext");
    Ok(sealed.key_id)
}
