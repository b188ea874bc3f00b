//! Asking the keeper to look at the key now. However many callers ask, few looks follow: one an interval for what callers
//! say, one a second for what OpenBao itself says; all who wait share them. That OpenBao has refused a call is not forgotten for
//! a look that had begun before: it proves nothing against it.

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
    /// What OpenBao has said since the last look began.
    owed: Option<Due>,
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
    let requests = RefreshRequests { requests: receiver, interval, last_for_caller: None, last: None, owed: None };
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

    /// The next look that is due. A caller who asks for one that is not allowed yet is let go; what OpenBao has said waits
    /// for its turn.
    pub async fn due(&mut self) -> Due {
        loop {
            let turn = self.last.map_or_else(Instant::now, |last| last + APART);
            let first = tokio::select! {
                biased;
                // Every asking side is gone: nobody will ask again.
                Some(first) = self.requests.recv() => Some(first),
                () = tokio::time::sleep_until(turn), if self.owed.is_some() => None,
                else => return std::future::pending().await,
            };
            let mut allowed = false;
            let mut next = first;
            while let Some(Asked { why, done }) = next {
                if why != Why::UnknownKeyId || self.allows_caller() || allowed {
                    let owed = self.owed.get_or_insert_default();
                    owed.prove |= why == Why::KeyTrouble;
                    owed.waiters.extend(done);
                    allowed |= why == Why::UnknownKeyId;
                }
                next = self.requests.try_recv().ok();
            }
            let now = Instant::now();
            if let Some(owed) = self.owed.take_if(|_| allowed || now >= turn) {
                self.last = Some(now);
                return owed;
            }
        }
    }

    fn allows_caller(&mut self) -> bool {
        let allowed = self.last_for_caller.is_none_or(|last| last.elapsed() >= self.interval);
        if allowed {
            self.last_for_caller = Some(Instant::now());
        }
        allowed
    }

    /// Lets go whoever asked while a look was under way: they share its result. Trouble with the
    /// key that a call met meanwhile is looked at anew; who was told that the view is old asks again.
    pub fn release(&mut self, waiters: Vec<oneshot::Sender<()>>) {
        let mut waiters = waiters;
        let mut prove = self.owed.take().is_some_and(|owed| {
            waiters.extend(owed.waiters);
            owed.prove
        });
        while let Ok(Asked { why, done }) = self.requests.try_recv() {
            prove |= why == Why::KeyTrouble;
            waiters.extend(done);
        }
        self.owed = prove.then(|| Due { waiters: Vec::new(), prove });
        for waiter in waiters {
            // Who has left needs no answer.
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
        assert_eq!(now_due(&mut requests).await, Some(true), "and it is not forgotten until then");
        tokio::time::sleep(APART).await;
        refresh.hint(Why::ViewIsOld);
        assert_eq!(now_due(&mut requests).await, Some(false));
        refresh.hint(Why::UnknownKeyId);
        assert_eq!(now_due(&mut requests).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_openbao_says_while_a_look_is_under_way_is_looked_at_anew() {
        let (refresh, mut requests) = channel(Duration::from_secs(3_600));
        let callers = [Why::UnknownKeyId, Why::ViewIsOld].map(|why| {
            let refresh = refresh.clone();
            tokio::spawn(async move { refresh.ask(why).await })
        });
        refresh.hint(Why::KeyTrouble);
        tokio::time::sleep(Duration::from_millis(1)).await;
        // A look of the keeper's own that had begun before is over now.
        requests.release(Vec::new());
        for caller in callers {
            tokio::time::timeout(APART / 10, caller).await.expect("let go").expect("a task");
        }
        let due = tokio::time::timeout(APART / 10, requests.due()).await.expect("at once");
        assert!(due.prove && due.waiters.is_empty());
        requests.release(due.waiters);
        assert!(tokio::time::timeout(APART * 10, requests.due()).await.is_err(), "once is enough");
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_told_that_the_view_is_old_waits_for_the_next_look_that_may_be_made() {
        let (refresh, mut requests) = channel(Duration::from_secs(3_600));
        refresh.hint(Why::ViewIsOld);
        let due = requests.due().await;
        requests.release(due.waiters);
        let began = Instant::now();
        let caller = tokio::spawn(async move { refresh.ask(Why::ViewIsOld).await });
        let due = requests.due().await;
        assert_eq!((began.elapsed(), due.waiters.len(), due.prove), (APART, 1, false));
        assert!(!caller.is_finished());
        requests.release(due.waiters);
        caller.await.expect("let go");
    }
}
