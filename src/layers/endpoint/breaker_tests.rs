//! Breakers: opened by what did no work, one trial at a time, closed by an answer.

use super::*;

fn breakers(addresses: usize) -> Breakers {
    Breakers::new(addresses, PipelineMetrics::new())
}

fn asked(pick: &Pick) -> Option<usize> {
    match pick {
        Pick::Ask { at, .. } => Some(*at),
        Pick::Wait { .. } => None,
    }
}

const LATER: Duration = Duration::from_secs(2);

#[tokio::test(start_paused = true)]
async fn the_file_decides_until_an_address_fails_and_again_when_it_answers() {
    let (breakers, now) = (breakers(3), Instant::now());
    assert_eq!(asked(&breakers.pick(now)), Some(0));
    breakers.failed(0, Class::Unreachable, now);
    assert_eq!(asked(&breakers.pick(now)), Some(1));
    breakers.failed(1, Class::ServerError, now);
    assert_eq!(asked(&breakers.pick(now)), Some(2), "a doubtful failure moves an address to the end");
    breakers.failed(2, Class::Sealed, now);
    assert_eq!(asked(&breakers.pick(now)), Some(1), "and does not open its breaker");
    breakers.answered(1);
    assert!(breakers.probe_due(now).is_none(), "the pause is not over");
    let (at, trial) = breakers.probe_due(now + LATER).expect("the first open address");
    assert_eq!(at, 0);
    breakers.probed(0);
    drop(trial);
    assert_eq!(asked(&breakers.pick(now)), Some(0), "back to the first of the file");
    breakers.failed(0, Class::ServerError, now);
    assert_eq!(asked(&breakers.pick(now)), Some(1), "last for a while");
    assert_eq!(asked(&breakers.pick(now + LATER)), Some(0), "and no longer");
}

#[tokio::test(start_paused = true)]
async fn with_every_breaker_open_one_call_tries_and_the_others_wait() {
    let (breakers, now) = (breakers(1), Instant::now());
    breakers.failed(0, Class::NoLeader, now);
    let Pick::Wait { until: Some(until), class: Class::NoLeader } = breakers.pick(now) else { panic!("must wait") };
    assert!((now..now + FIRST_PAUSE * 2).contains(&until));
    let trial = breakers.pick(until);
    assert!(matches!(&trial, Pick::Ask { at: 0, trial: Some(_) }));
    assert!(matches!(breakers.pick(until), Pick::Wait { until: None, .. }), "one at a time");
    drop(trial);
    assert!(matches!(breakers.pick(until), Pick::Ask { .. }), "a trial that is given up is somebody else's");
}

#[tokio::test(start_paused = true)]
async fn pauses_grow_and_an_answer_makes_them_short_again() {
    let (breakers, mut now) = (breakers(1), Instant::now());
    let mut longest = Duration::ZERO;
    for _ in 0..20 {
        breakers.failed(0, Class::Unreachable, now);
        let Pick::Wait { until: Some(until), .. } = breakers.pick(now) else { panic!("must wait") };
        longest = longest.max(until - now);
        now = until;
        let trial = breakers.pick(now);
        assert!(matches!(trial, Pick::Ask { .. }));
        breakers.failed(0, Class::Unreachable, now);
        drop(trial);
        now += LATER;
        breakers.probed(0);
    }
    assert!(longest > FIRST_PAUSE * 3 && longest <= LAST_PAUSE * 3 / 2, "{longest:?}");
    breakers.answered(0);
    breakers.failed(0, Class::Unreachable, now);
    let Pick::Wait { until: Some(until), .. } = breakers.pick(now) else { panic!("must wait") };
    assert!(until - now <= FIRST_PAUSE * 3 / 2);
}

#[tokio::test(start_paused = true)]
async fn calls_that_were_on_their_way_prolong_nothing() {
    let (breakers, now) = (breakers(1), Instant::now());
    for _ in 0..16 {
        breakers.failed(0, Class::Unreachable, now);
    }
    let Pick::Wait { until: Some(until), .. } = breakers.pick(now) else { panic!("must wait") };
    assert!(until - now <= FIRST_PAUSE * 3 / 2);
}

#[tokio::test(start_paused = true)]
async fn doubtful_failures_open_after_three_in_a_row() {
    let (breakers, now) = (breakers(1), Instant::now());
    for _ in 0..2 {
        breakers.failed(0, Class::RateLimited, now);
        assert!(asked(&breakers.pick(now)).is_some());
    }
    breakers.answered(0);
    for _ in 0..3 {
        breakers.failed(0, Class::RateLimited, now);
    }
    assert!(matches!(breakers.pick(now), Pick::Wait { class: Class::RateLimited, .. }));
}

#[tokio::test(start_paused = true)]
async fn who_waits_goes_on_when_the_trial_is_over() {
    let (breakers, now) = (breakers(1), Instant::now());
    breakers.failed(0, Class::Sealed, now);
    let trial = breakers.pick(now + LATER);
    let changed = breakers.changed();
    breakers.answered(0);
    tokio::time::timeout(LATER, changed).await.expect("woken");
    assert_eq!(asked(&breakers.pick(now)), Some(0));
    drop(trial);
}
