//! What a soak has beside callers that seal and open: bursts of many seeds, callers that hang up, and an API server that looks
//! at Status. The key_id that it is given never goes back to one that it had before.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bao_kms_provider::front::client::{Client, EncryptResponse};
use tokio::task::{JoinHandle, JoinSet};

use super::handover::repeated;
use super::load::Load;

/// Different seeds in a burst.
const BURST: usize = 64;
/// Between two bursts, and between two calls of who hangs up.
const BETWEEN_BURSTS: Duration = Duration::from_secs(1);
const BETWEEN_HANG_UPS: Duration = Duration::from_millis(20);
/// Longer than some calls take, shorter than others.
const HANGS_UP_AFTER: Duration = Duration::from_millis(3);

/// A seed and what it was sealed to.
type Sealed = (Vec<u8>, EncryptResponse);

/// All of them at work.
pub struct Beside {
    bursts: Load,
    hang_ups: Load,
    looks: JoinHandle<usize>,
}

async fn seal(client: &Client, count: usize) -> Arc<Vec<Sealed>> {
    let mut all = Vec::new();
    for at in 0..count {
        let seed = at.to_be_bytes().repeat(4);
        let sealed = client.encrypt(seed.clone(), "u").await.expect("Encrypt");
        all.push((seed, sealed));
    }
    Arc::new(all)
}

async fn open(client: Client, (seed, sealed): Sealed) -> Result<(), String> {
    let kms = client.clone();
    let opened = repeated(&client, move || {
        let (kms, sealed) = (kms.clone(), sealed.clone());
        async move { kms.decrypt(sealed.ciphertext.to_vec(), "u", &sealed.key_id, sealed.annotations).await }
    });
    let opened = opened.await.map_err(|error| format!("{error:?}"))?;
    assert_eq!(opened, seed, "another plaintext");
    Ok(())
}

/// All at once; what the first of them failed with.
async fn burst(client: Client, seeds: Arc<Vec<Sealed>>) -> Result<(), String> {
    let mut calls = JoinSet::new();
    for one in seeds.iter() {
        calls.spawn(open(client.clone(), one.clone()));
    }
    calls.join_all().await.into_iter().collect()
}

/// Looks until it is aborted or the key_id goes back; how often it was answered.
async fn look(client: Client) -> usize {
    let (mut had, mut answered): (Vec<String>, usize) = (Vec::new(), 0);
    loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        // While a process takes over its connection is told to go.
        let Ok(status) = client.status().await else { continue };
        answered += 1;
        if status.key_id.is_empty() || had.last() == Some(&status.key_id) {
            continue;
        }
        if had.contains(&status.key_id) {
            return answered;
        }
        had.push(status.key_id);
    }
}

// === impl Beside ===

impl Beside {
    pub async fn start(socket: &Path) -> Self {
        let client = Client::connect(socket).await.expect("a connection");
        let seeds = seal(&client, BURST).await;
        let (bursting, all) = (client.clone(), seeds.clone());
        let bursts = Load::of(1, BETWEEN_BURSTS, move |_| {
            let (client, seeds) = (bursting.clone(), all.clone());
            move || burst(client.clone(), seeds.clone())
        });
        let leaving = client.clone();
        let hang_ups = Load::of(2, BETWEEN_HANG_UPS, move |_| {
            let (client, one) = (leaving.clone(), seeds[0].clone());
            move || {
                let call = open(client.clone(), one.clone());
                async move {
                    // Whatever it would have been answered: nobody is there any more.
                    let _ = tokio::time::timeout(HANGS_UP_AFTER, call).await;
                    Ok(())
                }
            }
        });
        Self { bursts, hang_ups, looks: tokio::spawn(look(client)) }
    }

    /// Ends all of it; the account of the bursts.
    pub async fn end(self) -> super::load::Account {
        assert!(!self.looks.is_finished(), "a key_id came back that another one had followed");
        self.looks.abort();
        assert!(self.hang_ups.end().await.done > 100, "few hung up");
        self.bursts.end().await
    }
}
