//! Asking the keeper to look at the key now. However many callers ask, few looks follow: one an interval for what callers
//! say, one a second for what OpenBao itself says; all who wait share them.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// Looks for what OpenBao itself has said are at least this far apart.
const APART: Duration = Duration::from_secs(1);
/// More callers than can wait share the next look by simply looking again.
const WAITERS: usize = 1024;

/// Why somebody wants a look at the key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// A caller has a key_id that is not known: true or made up, one look an interval is enough.
    UnknownKeyId,
    /// OpenBao refused a version that the view allows: the view is old.
    ViewIsOld,
    /// OpenBao refused a call for a reason that touches the key or the right to use it: nobody waits, but Status must say so.
    KeyTrouble,
}

#[derive(Debug)]
struct Asked {
    why: Why,
    done: Option<oneshot::Sender<()>>,
}

/// The asking side; cheap to clone.
#[derive(Clone, Debug)]
pub struct Refresh {
    requests: mpsc::Sender<Asked>,
}

/// The keeper's side.
#[derive(Debug)]
pub struct RefreshRequests {
    requests: mpsc::Receiver<Asked>,
    interval: Duration,
    last_for_caller: Option<Instant>,
    last: Option<Instant>,
}

/// A look that is due.
#[derive(Debug, Default)]
pub struct Due {
    /// Those who wait for it.
    pub waiters: Vec<oneshot::Sender<()>>,
    /// Whether the right to use the key has to be proved as well.
    pub prove: bool,
}

/// A pair: callers ask, the keeper serves at most one look an `interval` for [`Why::UnknownKeyId`].
pub fn channel(interval: Duration) -> (Refresh, RefreshRequests) {
    let (sender, receiver) = mpsc::channel(WAITERS);
    let requests = RefreshRequests { requests: receiver, interval, last_for_caller: None, last: None };
    (Refresh { requests: sender }, requests)
}

// === impl Refresh ===

impl Refresh {
    /// Waits until a look is over, or returns at once when none is allowed yet.
    pub async fn ask(&self, why: Why) {
        let (done, wait) = oneshot::channel();
        if self.requests.try_send(Asked { why, done: Some(done) }).is_ok() {
            // A dropped sender means the same as an answer: look at the view as it is now.
            let _ = wait.await;
        }
    }

    /// The same without waiting.
    pub fn hint(&self, why: Why) {
        // With so many who ask already, a look is on its way.
        let _ = self.requests.try_send(Asked { why, done: None });
    }
}

// === impl RefreshRequests ===

impl RefreshRequests {
    /// Takes over another interval, as a reload may bring.
    pub fn set_interval(&mut self, interval: Duration) {
        self.interval = interval;
    }

    /// The next look that is due. Who asks for one that is not allowed yet is let go.
    pub async fn due(&mut self) -> Due {
        loop {
            let Some(first) = self.requests.recv().await else {
                // Every asking side is gone; nobody will ask again.
                return std::future::pending().await;
            };
            let (mut due, mut allowed) = (Due::default(), false);
            let mut next = Some(first);
            while let Some(Asked { why, done }) = next {
                allowed |= self.allows(why);
                due.prove |= why == Why::KeyTrouble;
                due.waiters.extend(done);
                next = self.requests.try_recv().ok();
            }
            if allowed {
                self.last = Some(Instant::now());
                return due;
            }
        }
    }

    fn allows(&mut self, why: Why) -> bool {
        let older = |last: Option<Instant>, than| last.is_none_or(|last| last.elapsed() >= than);
        if why != Why::UnknownKeyId {
            return older(self.last, APART);
        }
        let allowed = older(self.last_for_caller, self.interval);
        if allowed {
            self.last_for_caller = Some(Instant::now());
        }
        allowed
    }

    /// Lets go whoever asked while a look was under way: they share its result.
    pub fn release(&mut self, waiters: Vec<oneshot::Sender<()>>) {
        for waiter in waiters {
            let _ = waiter.send(());
        }
        while let Ok(asked) = self.requests.try_recv() {
            if let Some(done) = asked.done {
                let _ = done.send(());
            }
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
            while let Ok(due) = tokio::time::timeout(Duration::from_secs(10), requests.due()).await {
                reads += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
                requests.release(due.waiters);
            }
            reads
        });
        let askers: Vec<_> = (0..100)
            .map(|at| {
                let refresh = refresh.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(at)).await;
                    refresh.ask(Why::UnknownKeyId).await;
                })
            })
            .collect();
        for asker in askers {
            asker.await.expect("nobody waits for ever");
        }
        assert_eq!(keeper.await.expect("keeper"), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_openbao_says_is_looked_at_once_a_second_whatever_callers_have_asked_for() {
        let (refresh, mut requests) = channel(Duration::from_secs(3_600));
        let now_due = async |requests: &mut RefreshRequests| {
            tokio::time::timeout(Duration::from_millis(1), requests.due()).await.ok().map(|due| due.prove)
        };
        refresh.hint(Why::UnknownKeyId);
        assert_eq!(now_due(&mut requests).await, Some(false));
        refresh.hint(Why::UnknownKeyId);
        assert_eq!(now_due(&mut requests).await, None, "one an interval");
        tokio::time::sleep(APART).await;
        refresh.hint(Why::ViewIsOld);
        refresh.hint(Why::KeyTrouble);
        assert_eq!(now_due(&mut requests).await, Some(true));
        refresh.hint(Why::KeyTrouble);
        assert_eq!(now_due(&mut requests).await, None, "one a second");
        tokio::time::sleep(APART).await;
        refresh.hint(Why::ViewIsOld);
        assert_eq!(now_due(&mut requests).await, Some(false));
        refresh.hint(Why::UnknownKeyId);
        assert_eq!(now_due(&mut requests).await, None);
    }
}
