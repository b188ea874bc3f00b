//! Flights: shared by identical calls, ended by the last waiter, each waiter on its own clock.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::super::testing::{decrypt, encrypt, opened};
use super::*;

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
    let first = layer.call(decrypt("vault:v1:a", 5 * SECOND));
    let second = layer.call(decrypt("vault:v1:a", 5 * SECOND));
    tokio::task::yield_now().await;
    drop(first);
    tokio::task::yield_now().await;
    assert_eq!(dropped.load(Ordering::SeqCst), 0);
    drop(second);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!((begun.load(Ordering::SeqCst), dropped.load(Ordering::SeqCst)), (1, 1));
    assert!(layer.call(decrypt("vault:v1:a", 5 * SECOND)).await.is_ok(), "the next one flies anew");
}
