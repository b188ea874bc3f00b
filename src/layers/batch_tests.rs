//! Batches: formed only while others are on their way, each item with its own outcome, nothing left behind.

use super::super::testing::{decrypt, encrypt, opened};
use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A puppet Transit that notes the texts of each lot and answers after a while.
#[derive(Clone)]
struct Puppet {
    lots: Arc<Mutex<Vec<Vec<String>>>>,
    takes: Duration,
    answer: fn(&[String]) -> Result<Outcomes, Error>,
}

fn all_open(texts: &[String]) -> Result<Outcomes, Error> {
    Ok(texts.iter().map(|_| Ok(opened())).collect())
}

impl Service<Lot> for Puppet {
    type Response = Outcomes;
    type Error = Error;
    type Future = Answer<Outcomes>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, lot: Lot) -> Self::Future {
        let text = |bound: &Bound| match &bound.payload {
            crate::request::Payload::Decrypt(text) => String::from_utf8_lossy(text).into_owned(),
            crate::request::Payload::Encrypt(_) => "seal".to_owned(),
        };
        let texts: Vec<_> = lot.iter().map(text).collect();
        self.lots.lock().expect("lots").push(texts.clone());
        let (takes, answer) = (self.takes, self.answer);
        Box::pin(async move {
            tokio::time::sleep(takes).await;
            answer(&texts)
        })
    }
}

fn layer(max_items: usize, max_queued: usize, answer: fn(&[String]) -> Result<Outcomes, Error>) -> Batch<Puppet> {
    let puppet = Puppet { lots: Arc::default(), takes: Duration::from_millis(10), answer };
    Batch::new(puppet, &Config { max_items }, max_queued, PipelineMetrics::new())
}

fn lots(batch: &Batch<Puppet>) -> Vec<usize> {
    batch.inner.lots.lock().expect("lots").iter().map(Vec::len).collect()
}

fn inside(platform: &Platform) -> (usize, usize) {
    let state = platform.state();
    (state.exchanges, state.waiting.len())
}

const TEXTS: [&str; 12] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];

async fn all(batch: &mut Batch<Puppet>) -> Vec<Result<Reply, Error>> {
    let calls: Vec<_> = TEXTS.iter().map(|text| tokio::spawn(batch.call(decrypt(text, SECOND)))).collect();
    let mut answers = Vec::new();
    for call in calls {
        answers.push(call.await.expect("a call"));
    }
    answers
}

#[tokio::test(start_paused = true)]
async fn who_comes_while_others_are_on_their_way_goes_together() {
    let mut batch = layer(128, 100, all_open);
    assert!(all(&mut batch).await.iter().all(Result::is_ok));
    assert_eq!(lots(&batch), [1, 1, 10]);
    assert!(batch.call(decrypt("z", SECOND)).await.is_ok());
    assert_eq!(lots(&batch).last(), Some(&1), "alone and at once when nobody else is inside");
    assert_eq!(batch.platform.expect("on").state().exchanges, 0);
}

#[tokio::test(start_paused = true)]
async fn a_batch_has_a_largest_size_and_one_turns_it_off() {
    let mut batch = layer(4, 100, all_open);
    all(&mut batch).await;
    assert_eq!(lots(&batch), [1, 1, 4, 4, 2]);
    let mut off = layer(1, 100, all_open);
    all(&mut off).await;
    assert_eq!(lots(&off), [1; 12]);
}

#[tokio::test(start_paused = true)]
async fn in_a_crowd_the_next_batch_waits_for_the_one_before_unless_it_is_full() {
    let mut batch = layer(128, 100, all_open);
    let crowd = tokio::spawn({
        let mut batch = batch.clone();
        async move { all(&mut batch).await }
    });
    tokio::time::sleep(Duration::from_millis(15)).await;
    let platform = batch.platform.clone().expect("on");
    assert_eq!(inside(&platform), (1, 0), "a batch of ten is on its way");
    let more: Vec<_> = TEXTS[..3].iter().map(|text| tokio::spawn(batch.call(decrypt(text, SECOND)))).collect();
    tokio::task::yield_now().await;
    assert_eq!(inside(&platform), (1, 3));
    for call in more {
        assert!(call.await.expect("a call").is_ok());
    }
    assert_eq!(crowd.await.expect("the crowd").len(), 12);
    assert_eq!(lots(&batch), [1, 1, 10, 3]);
    // It is forgotten after a few that come alone.
    batch.call(decrypt("z", SECOND)).await.expect("alone");
    let two: Vec<_> = TEXTS[..2].iter().map(|text| tokio::spawn(batch.call(decrypt(text, SECOND)))).collect();
    tokio::task::yield_now().await;
    assert_eq!(inside(&platform), (2, 0));
    for call in two {
        assert!(call.await.expect("a call").is_ok());
    }

    let mut batch = layer(8, 100, all_open);
    let texts = TEXTS.iter().cycle().take(40);
    let calls: Vec<_> = texts.map(|text| tokio::spawn(batch.call(decrypt(text, SECOND)))).collect();
    for call in calls {
        assert!(call.await.expect("a call").is_ok());
    }
    assert_eq!(lots(&batch), [1, 1, 8, 8, 8, 8, 6]);
}

#[tokio::test(start_paused = true)]
async fn each_item_has_its_own_outcome() {
    let mut batch = layer(128, 100, |texts| {
        Ok(texts
            .iter()
            .map(|text| if text == "e" { Err(Class::CiphertextInvalid.into()) } else { Ok(opened()) })
            .collect())
    });
    let answers = all(&mut batch).await;
    for (text, answer) in TEXTS.iter().zip(answers) {
        assert_eq!(answer.is_err(), *text == "e", "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_item_that_spoils_its_batch_fails_alone() {
    let mut batch = layer(128, 100, |texts| match texts.iter().any(|text| text == "e") {
        true => Err(Class::Internal.into()),
        false => all_open(texts),
    });
    let answers = all(&mut batch).await;
    for (text, answer) in TEXTS.iter().zip(answers) {
        assert_eq!(answer.is_err(), *text == "e", "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_another_length_is_no_answer_to_anybody_else() {
    let mut batch = layer(128, 100, |texts| {
        let keep = if texts.len() == 1 { 1 } else { texts.len() - 1 };
        all_open(&texts[..keep])
    });
    assert!(all(&mut batch).await.iter().all(Result::is_ok), "each was asked again alone");
}

#[tokio::test(start_paused = true)]
async fn a_failure_of_the_exchange_is_everybodys() {
    let mut batch = layer(128, 100, |_| Err(Class::Sealed.into()));
    let answers = all(&mut batch).await;
    assert!(answers.iter().all(|answer| answer.as_ref().is_err_and(|error| error.class() == Class::Sealed)));
    assert_eq!(lots(&batch), [1, 1, 10], "repeating is the retry layer's");
}

#[tokio::test(start_paused = true)]
async fn who_hangs_up_leaves_nothing_behind() {
    let mut batch = layer(128, 100, all_open);
    batch.inner.takes = Duration::from_secs(3_600);
    let calls: Vec<_> = TEXTS.iter().map(|text| tokio::spawn(batch.call(decrypt(text, SECOND)))).collect();
    tokio::time::sleep(Duration::from_millis(1)).await;
    let platform = batch.platform.clone().expect("on");
    assert_eq!(inside(&platform), (2, 10));
    // The two in front leave; one batch goes in their place, and ends when its own callers leave.
    for call in &calls[..2] {
        call.abort();
    }
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!((platform.state().exchanges, lots(&batch)), (1, vec![1, 1, 10]));
    for call in &calls[2..] {
        call.abort();
    }
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(inside(&platform), (0, 0));
    drop(batch.call(decrypt("never polled", SECOND)));
    assert_eq!(platform.state().exchanges, 0);
}

#[tokio::test(start_paused = true)]
async fn beyond_the_queue_calls_are_refused_and_encrypt_never_waits_here() {
    let mut batch = layer(128, 2, all_open);
    let _calls: Vec<_> = TEXTS[..5].iter().map(|text| tokio::spawn(batch.call(decrypt(text, SECOND)))).collect();
    tokio::task::yield_now().await;
    let error = batch.call(decrypt("z", SECOND)).await.expect_err("refused");
    assert_eq!(error.class(), Class::Overloaded);
    assert!(batch.call(encrypt(SECOND)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn exchanges_that_hang_keep_nobody_waiting() {
    let hung = tower::service_fn(|lot: Lot| -> Answer<Outcomes> {
        let hangs = lot.len() == 1;
        Box::pin(async move {
            if hangs {
                std::future::pending::<()>().await;
            }
            Ok(lot.iter().map(|_| Ok(opened())).collect())
        })
    });
    let mut batch = Batch::new(hung, &Config { max_items: 128 }, 100, PipelineMetrics::new());
    let began = tokio::time::Instant::now();
    let calls: Vec<_> = TEXTS.iter().map(|text| tokio::spawn(batch.call(decrypt(text, SECOND)))).collect();
    tokio::task::yield_now().await;
    let platform = batch.platform.clone().expect("on");
    assert_eq!(inside(&platform), (2, 10));
    let mut calls = calls.into_iter();
    let hanging: Vec<_> = calls.by_ref().take(2).collect();
    for call in calls {
        assert!(call.await.expect("a call").is_ok());
    }
    assert_eq!(began.elapsed(), SLOW);
    assert_eq!(inside(&platform), (0, 0), "what hangs counts no longer");
    for call in hanging {
        call.abort();
        let _ = call.await;
    }
    assert_eq!(inside(&platform), (0, 0), "and its end gives nothing back twice");
}

#[tokio::test(start_paused = true)]
async fn answers_that_are_nobodys_end_a_batch_soon() {
    let mut batch = layer(128, 100, |_| Err(Class::BadReply.into()));
    let answers = all(&mut batch).await;
    assert!(answers.iter().all(|answer| answer.as_ref().is_err_and(|error| error.class() == Class::BadReply)));
    assert_eq!(lots(&batch), [1, 1, 10, 1, 1], "two items alone show that it is none of theirs");
}

#[tokio::test(start_paused = true)]
async fn who_has_left_is_not_asked_for_alone() {
    let mut batch = layer(128, 100, |texts| match texts.len() {
        1 => all_open(texts),
        _ => Err(Class::Internal.into()),
    });
    let calls: Vec<_> = TEXTS.iter().map(|text| tokio::spawn(batch.call(decrypt(text, SECOND)))).collect();
    tokio::time::sleep(Duration::from_millis(15)).await;
    for call in &calls[4..] {
        call.abort();
    }
    for call in calls.into_iter().take(4) {
        assert!(call.await.expect("a call").is_ok());
    }
    tokio::time::sleep(SECOND).await;
    assert_eq!(lots(&batch), [1, 1, 10, 1, 1], "the two that still wait");
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_is_asked_for_item_by_item_holds_up_nobody_else() {
    let mut batch = layer(128, 100, |texts| match texts.iter().any(|text| text == "e") {
        true => Err(Class::Internal.into()),
        false => all_open(texts),
    });
    batch.inner.takes = Duration::from_millis(100);
    let crowd = tokio::spawn({
        let mut batch = batch.clone();
        async move { all(&mut batch).await }
    });
    tokio::time::sleep(Duration::from_millis(250)).await;
    assert!(!crowd.is_finished(), "ten exchanges, one after the other");
    let began = Instant::now();
    batch.call(decrypt("z", SECOND)).await.expect("a newcomer");
    assert_eq!(began.elapsed(), batch.inner.takes);
    assert_eq!(crowd.await.expect("the crowd").iter().filter(|answer| answer.is_err()).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_becomes_full_leaves_at_once_and_an_old_crowd_is_none() {
    let mut batch = layer(10, 100, all_open);
    let crowd = tokio::spawn({
        let mut batch = batch.clone();
        async move { all(&mut batch).await }
    });
    tokio::time::sleep(Duration::from_millis(15)).await;
    let platform = batch.platform.clone().expect("on");
    assert_eq!(inside(&platform), (1, 0));
    let mut more = Vec::new();
    for (at, text) in TEXTS[..10].iter().enumerate() {
        more.push(tokio::spawn(batch.call(decrypt(text, SECOND))));
        assert_eq!(inside(&platform), if at < 9 { (1, at + 1) } else { (2, 0) });
    }
    for call in more {
        assert!(call.await.expect("a call").is_ok());
    }
    crowd.await.expect("the crowd");
    assert_eq!(lots(&batch), [1, 1, 10, 10]);

    tokio::time::sleep(FORGOTTEN).await;
    let two: Vec<_> = TEXTS[..2].iter().map(|text| tokio::spawn(batch.call(decrypt(text, SECOND)))).collect();
    assert_eq!(inside(&platform), (2, 0), "neither waits for the other");
    for call in two {
        assert!(call.await.expect("a call").is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_a_batch_is_counted_and_answers_its_callers() {
    let puppet = tower::service_fn(|lot: Lot| -> Answer<Outcomes> {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(10)).await;
            assert!(lot.len() == 1, "on purpose");
            Ok(vec![Ok(opened())])
        })
    });
    let metrics = PipelineMetrics::new();
    let mut batch = Batch::new(puppet, &Config::default(), 100, metrics.clone());
    let calls: Vec<_> = TEXTS.iter().map(|text| tokio::spawn(batch.call(decrypt(text, SECOND)))).collect();
    let mut failed = 0;
    for call in calls {
        let answer = call.await.expect("no caller panics");
        failed += usize::from(answer.is_err_and(|error| error.class() == Class::Internal));
    }
    assert_eq!((failed, metrics.panics()), (10, 1));
    assert_eq!(inside(&batch.platform.expect("on")), (0, 0));
}
