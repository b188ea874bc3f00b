//! Flights: shared by identical calls, ended by the last waiter, each waiter on its own clock.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::super::testing::{decrypt, encrypt, opened};
use super::*;
use crate::request::Stage;

/// A puppet Transit that counts calls begun and dropped unanswered, and takes this long.
#[derive(Clone)]
struct Puppet {
    begun: Arc<AtomicUsize>,
    dropped: Arc<AtomicUsize>,
    takes: Duration,
}

struct Unanswered(Arc<AtomicUsize>, bool);

impl Unanswered {
    /// Takes the guard whole into the future; a field alone would be copied there and the guard dropped early.
    fn answered(&mut self) {
        self.1 = true;
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if !self.1 {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl Service<Bound> for Puppet {
    type Response = Reply;
    type Error = Error;
    type Future = Answer<Reply>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Bound) -> Self::Future {
        self.begun.fetch_add(1, Ordering::SeqCst);
        let (mut guard, takes) = (Unanswered(self.dropped.clone(), false), self.takes);
        Box::pin(async move {
            tokio::time::sleep(takes).await;
            guard.answered();
            Ok(opened())
        })
    }
}

fn layer(takes: Duration) -> (Coalesce<Puppet>, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let puppet = Puppet { begun: Arc::default(), dropped: Arc::default(), takes };
    let (begun, dropped) = (puppet.begun.clone(), puppet.dropped.clone());
    (Coalesce::new(puppet, &Config::default(), PipelineMetrics::new()), begun, dropped)
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn sixty_five_identical_decrypts_are_one_call() {
    let (mut layer, begun, _) = layer(SECOND);
    let calls: Vec<_> = (0..65).map(|_| tokio::spawn(layer.call(decrypt("vault:v1:a", 5 * SECOND)))).collect();
    for call in calls {
        assert!(call.await.expect("task").is_ok());
    }
    assert_eq!(begun.load(Ordering::SeqCst), 1);
    assert!(layer.flights.as_ref().expect("on").lock().expect("lock").is_empty(), "nothing stays");
}

#[tokio::test(start_paused = true)]
async fn different_texts_and_encrypts_do_not_share() {
    let (mut layer, begun, _) = layer(SECOND);
    let calls = [
        decrypt("vault:v1:a", 5 * SECOND),
        decrypt("vault:v1:b", 5 * SECOND),
        encrypt(5 * SECOND),
        encrypt(5 * SECOND),
    ];
    let calls: Vec<_> = calls.into_iter().map(|bound| tokio::spawn(layer.call(bound))).collect();
    for call in calls {
        assert!(call.await.expect("task").is_ok());
    }
    assert_eq!(begun.load(Ordering::SeqCst), 4);
}

#[tokio::test(start_paused = true)]
async fn the_flight_goes_on_while_one_waits_and_ends_with_the_last() {
    let (mut layer, begun, dropped) = layer(SECOND);
    let first = tokio::spawn(layer.call(decrypt("vault:v1:a", 5 * SECOND)));
    tokio::time::sleep(SECOND / 4).await;
    let second = tokio::spawn(layer.call(decrypt("vault:v1:a", 5 * SECOND)));
    let third = tokio::spawn(layer.call(decrypt("vault:v1:a", 5 * SECOND)));
    tokio::time::sleep(SECOND / 4).await;
    // The one that began it may leave first.
    first.abort();
    tokio::time::sleep(SECOND / 4).await;
    assert_eq!(dropped.load(Ordering::SeqCst), 0);
    third.abort();
    assert!(second.await.expect("task").is_ok());
    assert_eq!((begun.load(Ordering::SeqCst), dropped.load(Ordering::SeqCst)), (1, 0));

    let last = [(); 2].map(|()| tokio::spawn(layer.call(decrypt("vault:v1:a", 5 * SECOND))));
    tokio::time::sleep(SECOND / 4).await;
    last.iter().for_each(tokio::task::JoinHandle::abort);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!((begun.load(Ordering::SeqCst), dropped.load(Ordering::SeqCst)), (2, 1));
    assert!(layer.call(decrypt("vault:v1:a", 5 * SECOND)).await.is_ok(), "the next one flies anew");
}

/// A Transit that fails with this class when its call's deadline comes.
fn gives_up(class: Class) -> impl Service<Bound, Response = Reply, Error = Error, Future = Answer<Reply>> + Clone {
    tower::service_fn(move |bound: Bound| -> Answer<Reply> {
        Box::pin(async move {
            bound.context.progress.enter(Stage::OpenBao);
            tokio::time::sleep_until(bound.context.deadline.expect("a deadline")).await;
            Err(class.into())
        })
    })
}

#[tokio::test(start_paused = true)]
async fn a_flight_lasts_as_long_as_its_longest_waiter_whatever_its_attempts_meet() {
    for class in [Class::Timeout, Class::NoLeader, Class::DeadlineExceeded] {
        let mut layer = Coalesce::new(gives_up(class), &Config::default(), PipelineMetrics::new());
        let began = Instant::now();
        let first = tokio::spawn(layer.call(decrypt("vault:v1:a", SECOND)));
        tokio::time::sleep(SECOND / 4).await;
        let patient = decrypt("vault:v1:a", 3 * SECOND);
        let progress = patient.context.progress.clone();
        let second = tokio::spawn(layer.call(patient));
        tokio::time::sleep(SECOND / 4).await;
        assert_eq!(progress.stage(), Some(Stage::OpenBao), "who joins is where the flight is");
        let error = second.await.expect("task").expect_err("nobody answers");
        assert_eq!((error.class(), began.elapsed()), (class, 13 * SECOND / 4));
        assert!(first.await.expect("task").is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn who_comes_after_a_failed_landing_flies_anew() {
    let begun = Arc::new(AtomicUsize::new(0));
    let counter = begun.clone();
    let puppet = tower::service_fn(move |_: Bound| {
        counter.fetch_add(1, Ordering::SeqCst);
        std::future::ready(Err::<Reply, Error>(Class::Internal.into()))
    });
    let mut layer = Coalesce::new(puppet, &Config::default(), PipelineMetrics::new());
    let waiters = [(); 2].map(|()| layer.call(decrypt("vault:v1:a", SECOND)));
    let [first, second] = waiters;
    assert!(first.await.is_err());
    // It has landed and is still held by its other waiter.
    assert!(layer.call(decrypt("vault:v1:a", SECOND)).await.is_err());
    assert_eq!(begun.load(Ordering::SeqCst), 2);
    drop(second);
    assert!(layer.flights.as_ref().expect("on").lock().expect("lock").is_empty(), "nothing stays");
}

#[tokio::test(start_paused = true)]
async fn no_seed_outlives_its_last_waiter() {
    let seed = crate::request::secret(vec![7; 32]);
    let (held, given) = (Arc::downgrade(&seed), std::sync::Mutex::new(Some(seed)));
    let given = Arc::new(given);
    let puppet = tower::service_fn(move |_: Bound| {
        let seed = given.lock().expect("lock").take().expect("asked once");
        std::future::ready(Ok::<_, Error>(Reply::Decrypted(seed)))
    });
    let mut layer = Coalesce::new(puppet, &Config::default(), PipelineMetrics::new());
    let calls = [layer.call(decrypt("vault:v1:a", SECOND)), layer.call(decrypt("vault:v1:a", SECOND))];
    for call in calls {
        drop(call.await.expect("opened"));
    }
    tokio::task::yield_now().await;
    assert!(held.upgrade().is_none(), "nothing but the waiters held it");
}

#[tokio::test]
async fn a_panic_is_the_answer_of_all_waiters() {
    let puppet = tower::service_fn(|_: Bound| async {
        tokio::task::yield_now().await;
        panic!("on purpose")
    });
    let metrics = PipelineMetrics::new();
    let mut layer: Coalesce<_> = Coalesce::new(puppet, &Config::default(), metrics.clone());
    let waiters = [(); 3].map(|()| tokio::spawn(layer.call(decrypt("vault:v1:a", SECOND))));
    for waiter in waiters {
        let error = waiter.await.expect("no waiter panics").expect_err("no answer");
        assert_eq!(error.class(), Class::Internal);
    }
    assert_eq!(metrics.panics(), 1);
    assert!(layer.flights.as_ref().expect("on").lock().expect("lock").is_empty(), "nothing stays");
}

#[test]
fn nobody_joins_a_flight_that_has_looked_at_the_time_for_the_last_time() {
    let (now, later) = (Some(Instant::now()), Some(Instant::now() + SECOND));
    let until = Until::new(now);
    assert!(until.extend(later));
    assert!(!until.is_over(now), "somebody has more time");
    assert!(until.extend(now));
    assert!(until.is_over(later));
    assert!(!until.extend(None), "too late");
}
