//! Reading beside the workers, looks between logins, and what is told of them.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use super::*;
use crate::request::{Method as HttpMethod, Purpose};

/// A credential that a test writes.
#[derive(Default)]
struct Puppet {
    expires: AtomicU64,
    changes: AtomicU64,
    gone: AtomicBool,
    binds: AtomicBool,
    reads: AtomicUsize,
    /// Held by a test for as long as the volume hangs.
    volume: Mutex<()>,
}

impl Method for Puppet {
    fn binds_connection(&self) -> bool {
        self.binds.load(Ordering::SeqCst)
    }

    fn login(&self) -> Result<Attempt, Error> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        drop(self.volume.lock().expect("the volume"));
        if self.gone.load(Ordering::SeqCst) {
            return Err(Error::new(Class::CredentialUnavailable, "the file is gone"));
        }
        let expires = self.expires.load(Ordering::SeqCst);
        Ok(Attempt {
            call: BaoCall::own(Purpose::Login, HttpMethod::Post, "auth/jwt/login", Duration::from_secs(5)),
            expires_unix: Some(expires),
            changes_unix: Some(self.changes.load(Ordering::SeqCst)).filter(|at| *at > 0),
            findings: vec![format!("expires at {expires}")],
        })
    }
}

impl Puppet {
    fn reads(&self) -> usize {
        self.reads.load(Ordering::SeqCst)
    }
}

fn papers(puppet: &Arc<Puppet>, reload: Reload) -> Arc<Papers> {
    Arc::new(Papers::new(puppet.clone(), reload, PipelineMetrics::new(), "p".into()))
}

fn told(papers: &Papers) -> Vec<String> {
    papers.told.lock().expect("told").findings.clone()
}

#[tokio::test(start_paused = true)]
async fn a_credential_is_looked_at_each_minute_without_a_login() {
    let puppet = Arc::new(Puppet::default());
    let reloads = Arc::new(AtomicUsize::new(0));
    let counted = reloads.clone();
    let papers = papers(
        &puppet,
        Arc::new(move || {
            counted.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }),
    );
    let looks = papers.clone();
    let watch = tokio::spawn(async move { looks.watch(&Notify::new()).await });
    puppet.expires.store(1_000, Ordering::SeqCst);
    papers.login().await.expect("a call");
    assert_eq!((papers.metrics.credential_expiry(), puppet.reads()), (1_000.0, 1));
    puppet.expires.store(2_000, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert_eq!((papers.metrics.credential_expiry(), puppet.reads()), (2_000.0, 2));
    assert_eq!(told(&papers), ["expires at 2000"]);
    puppet.gone.store(true, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(told(&papers), ["the file is gone"]);
    assert_eq!(papers.metrics.credential_expiry(), 2_000.0, "the last that is known, so that the alert stays");
    assert!((11..=13).contains(&puppet.reads()), "{} reads in eleven minutes", puppet.reads());
    assert_eq!(reloads.load(Ordering::SeqCst), puppet.reads(), "with what the connection is made of");
    watch.abort();
}

#[tokio::test(start_paused = true)]
async fn whoever_says_that_files_have_changed_is_believed_at_once() {
    let puppet = Arc::new(Puppet::default());
    let papers = papers(&puppet, Arc::new(|| Ok(())));
    let (looks, asks) = (papers.clone(), Arc::new(Notify::new()));
    let asked = asks.clone();
    let watch = tokio::spawn(async move { looks.watch(&asked).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(puppet.reads(), 0);
    asks.notify_one();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(puppet.reads(), 1);
    watch.abort();
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_bound_to_the_connection_keeps_it_between_logins() {
    for (binds, reloads) in [(false, 3), (true, 1)] {
        let puppet = Arc::new(Puppet::default());
        puppet.binds.store(binds, Ordering::SeqCst);
        let counter = Arc::new(AtomicUsize::new(0));
        let counted = counter.clone();
        let reload: Reload = Arc::new(move || {
            counted.fetch_add(1, Ordering::SeqCst);
            Ok(())
        });
        let papers = papers(&puppet, reload);
        papers.login().await.expect("a call");
        papers.look().await;
        papers.look().await;
        assert_eq!((puppet.reads(), counter.load(Ordering::SeqCst)), (3, reloads));
    }
}

#[test]
fn the_next_look_is_in_a_minute_or_when_the_credential_says_something_else() {
    let now = UNIX_EPOCH + Duration::from_millis(1_000_500);
    for (changes, seconds) in [(None, 60), (Some(1_010), 10), (Some(9_000), 60), (Some(1_000), 1), (Some(0), 1)] {
        assert_eq!(pause(changes, now).as_secs(), seconds, "{changes:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_credential_that_is_about_to_expire_is_looked_at_then() {
    let puppet = Arc::new(Puppet::default());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time").as_secs();
    puppet.changes.store(now + 20, Ordering::SeqCst);
    let papers = papers(&puppet, Arc::new(|| Ok(())));
    let looks = papers.clone();
    let watch = tokio::spawn(async move { looks.watch(&Notify::new()).await });
    tokio::time::sleep(Duration::from_secs(10)).await;
    papers.login().await.expect("a call");
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert_eq!(puppet.reads(), 1);
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(puppet.reads(), 2);
    watch.abort();
}

/// Real time: a thread that hangs stops the clock of a test.
#[tokio::test]
async fn a_volume_that_hangs_blocks_no_worker_and_one_thread_only() {
    let puppet = Arc::new(Puppet::default());
    let papers = papers(&puppet, Arc::new(|| Ok(())));
    let began = tokio::time::Instant::now();
    {
        let (hold, held) = (puppet.clone(), Arc::new(AtomicBool::new(false)));
        let (release, released) = std::sync::mpsc::channel::<()>();
        let holds = held.clone();
        let holder = std::thread::spawn(move || {
            let volume = hold.volume.lock().expect("the volume");
            holds.store(true, Ordering::SeqCst);
            released.recv().expect("released");
            drop(volume);
        });
        while !held.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let (first, second) = (papers.clone(), papers.clone());
        let first = tokio::spawn(async move { first.login().await.err() });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(began.elapsed() < Duration::from_secs(4), "this task's only worker goes on");
        let error = first.await.expect("joined").expect("it hangs");
        assert_eq!(error.class(), Class::CredentialUnavailable);
        assert!(error.detail().contains("volume"), "{error}");
        // The next one waits for the first thread instead of starting another.
        let second = tokio::spawn(async move { second.login().await });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(puppet.reads(), 1);
        release.send(()).expect("it waits");
        second.await.expect("joined").expect("a call, once the volume answers");
        assert_eq!(puppet.reads(), 2, "what the first thread found is old");
        holder.join().expect("joined");
    }
}
