//! Asking the keeper to read the key's metadata now. However many callers ask, at most one read an interval follows;
//! all who wait share it.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// The asking side; cheap to clone.
#[derive(Clone, Debug)]
pub struct Refresh {
    requests: mpsc::Sender<oneshot::Sender<()>>,
}

/// The keeper's side.
#[derive(Debug)]
pub struct RefreshRequests {
    requests: mpsc::Receiver<oneshot::Sender<()>>,
    interval: Duration,
    last: Option<Instant>,
}

/// More callers than can wait share the next read by simply looking again.
const WAITERS: usize = 1024;

/// A pair: callers ask, the keeper serves at most one read an `interval`.
pub fn channel(interval: Duration) -> (Refresh, RefreshRequests) {
    let (sender, receiver) = mpsc::channel(WAITERS);
    (Refresh { requests: sender }, RefreshRequests { requests: receiver, interval, last: None })
}

// === impl Refresh ===

impl Refresh {
    /// Waits until a read that began after this call is over, or returns at once when the interval allows none.
    pub async fn ask(&self) {
        let (done, wait) = oneshot::channel();
        if self.requests.try_send(done).is_ok() {
            // A dropped sender means the same as an answer: look at the view as it is now.
            let _ = wait.await;
        }
    }
}

// === impl RefreshRequests ===

impl RefreshRequests {
    /// Takes over another interval, as a reload may bring.
    pub fn set_interval(&mut self, interval: Duration) {
        self.interval = interval;
    }

    /// The waiters of the next read that is due; those who come within the interval of the last one are let go.
    pub async fn due(&mut self) -> Vec<oneshot::Sender<()>> {
        loop {
            let Some(first) = self.requests.recv().await else {
                // Every asking side is gone; nobody will ask again.
                return std::future::pending().await;
            };
            let mut waiters = vec![first];
            while let Ok(next) = self.requests.try_recv() {
                waiters.push(next);
            }
            if self.last.is_none_or(|last| last.elapsed() >= self.interval) {
                self.last = Some(Instant::now());
                return waiters;
            }
        }
    }

    /// Lets go whoever asked while a read was under way: they share its result.
    pub fn release(&mut self, waiters: Vec<oneshot::Sender<()>>) {
        for waiter in waiters {
            let _ = waiter.send(());
        }
        while let Ok(waiter) = self.requests.try_recv() {
            let _ = waiter.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn many_who_ask_share_one_read_an_interval() {
        let (refresh, mut requests) = channel(Duration::from_secs(30));
        let keeper = tokio::spawn(async move {
            let mut reads = 0;
            while let Ok(waiters) = tokio::time::timeout(Duration::from_secs(10), requests.due()).await {
                reads += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
                requests.release(waiters);
            }
            reads
        });
        let askers: Vec<_> = (0..100)
            .map(|at| {
                let refresh = refresh.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(at)).await;
                    refresh.ask().await;
                })
            })
            .collect();
        for asker in askers {
            asker.await.expect("nobody waits for ever");
        }
        assert_eq!(keeper.await.expect("keeper"), 1);
    }
}
