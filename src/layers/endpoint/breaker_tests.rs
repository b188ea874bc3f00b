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

fn pick(breakers: &Breakers, now: Instant) -> Pick {
    breakers.pick(now, |_| false)
}

const LATER: Duration = Duration::from_secs(2);

#[tokio::test(start_paused = true)]
async fn the_file_decides_until_an_address_fails_and_again_when_it_answers() {
    let (breakers, now) = (breakers(3), Instant::now());
    assert_eq!(asked(&pick(&breakers, now)), Some(0));
    breakers.failed(0, Class::Unreachable, now);
    assert_eq!(asked(&pick(&breakers, now)), Some(1));
    breakers.failed(1, Class::ServerError, now);
    assert_eq!(asked(&pick(&breakers, now)), Some(2), "a doubtful failure moves an address to the end");
    breakers.failed(2, Class::Sealed, now);
    assert_eq!(asked(&pick(&breakers, now)), Some(1), "and does not open its breaker");
    breakers.answered(1, now);
    assert!(breakers.probe_due(now).is_none(), "the pause is not over");
    let (at, trial) = breakers.probe_due(now + LATER).expect("the first open address");
    assert_eq!(at, 0);
    breakers.probed(0, now);
    drop(trial);
    assert_eq!(asked(&pick(&breakers, now)), Some(0), "back to the first of the file");
    breakers.failed(0, Class::ServerError, now);
    assert_eq!(asked(&pick(&breakers, now)), Some(1), "last for a while");
    assert_eq!(asked(&pick(&breakers, now + LATER)), Some(0), "and no longer");
}

#[tokio::test(start_paused = true)]
async fn with_every_breaker_open_one_call_tries_and_the_others_wait() {
    let (breakers, now) = (breakers(1), Instant::now());
    breakers.failed(0, Class::NoLeader, now);
    let Pick::Wait { until, class: Class::NoLeader } = pick(&breakers, now) else { panic!("must wait") };
    assert!((now..now + FIRST_PAUSE * 2).contains(&until));
    let trial = pick(&breakers, until);
    assert!(matches!(&trial, Pick::Ask { at: 0, trial: Some(_) }));
    assert!(matches!(pick(&breakers, until), Pick::Wait { until: next, .. } if next == until + ALONE), "one at a time");
    drop(trial);
    assert!(matches!(pick(&breakers, until), Pick::Ask { .. }), "a trial that is given up is somebody else's");
}

#[tokio::test(start_paused = true)]
async fn pauses_grow_and_an_answer_makes_them_short_again() {
    let (breakers, mut now) = (breakers(1), Instant::now());
    let mut longest = Duration::ZERO;
    breakers.failed(0, Class::Unreachable, now);
    for _ in 0..20 {
        let Pick::Wait { until, .. } = pick(&breakers, now) else { panic!("must wait") };
        longest = longest.max(until - now);
        now = until;
        let trial = pick(&breakers, now);
        assert!(matches!(trial, Pick::Ask { .. }));
        breakers.failed(0, Class::Unreachable, now);
    }
    assert!(longest > FIRST_PAUSE * 3 && longest <= LAST_PAUSE * 3 / 2, "{longest:?}");
    breakers.answered(0, now);
    breakers.failed(0, Class::Unreachable, now);
    let Pick::Wait { until, .. } = pick(&breakers, now) else { panic!("must wait") };
    assert!(until - now <= FIRST_PAUSE * 3 / 2);
}

#[tokio::test(start_paused = true)]
async fn calls_that_were_on_their_way_prolong_nothing() {
    let (breakers, now) = (breakers(1), Instant::now());
    for _ in 0..16 {
        breakers.failed(0, Class::Unreachable, now);
    }
    let Pick::Wait { until, .. } = pick(&breakers, now) else { panic!("must wait") };
    assert!(until - now <= FIRST_PAUSE * 3 / 2);
}

#[tokio::test(start_paused = true)]
async fn doubtful_failures_open_after_three_in_a_row() {
    let (breakers, now) = (breakers(1), Instant::now());
    for _ in 0..2 {
        breakers.failed(0, Class::RateLimited, now);
        assert!(asked(&pick(&breakers, now)).is_some());
    }
    breakers.answered(0, now);
    for _ in 0..3 {
        breakers.failed(0, Class::RateLimited, now);
    }
    assert!(matches!(pick(&breakers, now), Pick::Wait { class: Class::RateLimited, .. }));
}

#[tokio::test(start_paused = true)]
async fn who_waits_goes_on_when_the_trial_is_over() {
    let (breakers, now) = (breakers(1), Instant::now());
    breakers.failed(0, Class::Sealed, now);
    let trial = pick(&breakers, now + LATER);
    let changed = breakers.changed();
    breakers.answered(0, now);
    tokio::time::timeout(LATER, changed).await.expect("woken");
    assert_eq!(asked(&pick(&breakers, now)), Some(0));
    drop(trial);
}

#[tokio::test(start_paused = true)]
async fn a_call_goes_to_an_address_that_it_has_not_tried() {
    let (breakers, now) = (breakers(2), Instant::now());
    assert_eq!(asked(&breakers.pick(now, |at| at == 0)), Some(1));
    assert_eq!(asked(&breakers.pick(now, |_| true)), Some(0), "any is better than none");
    breakers.failed(1, Class::Sealed, now);
    assert_eq!(asked(&breakers.pick(now, |at| at == 0)), Some(0), "what serves comes before what does not");
}

#[tokio::test(start_paused = true)]
async fn a_trial_that_takes_long_keeps_nobody_from_the_next_one() {
    let (breakers, now) = (breakers(1), Instant::now());
    breakers.failed(0, Class::Timeout, now);
    breakers.failed(0, Class::Timeout, now);
    breakers.failed(0, Class::Timeout, now);
    let slow = pick(&breakers, now + LATER);
    let second = pick(&breakers, now + LATER + ALONE);
    assert!(matches!((&slow, &second), (Pick::Ask { .. }, Pick::Ask { .. })));
    drop(slow);
    assert!(asked(&pick(&breakers, now + LATER + ALONE)).is_none(), "the second one is still alone");
    drop(second);
    assert!(asked(&pick(&breakers, now + LATER + ALONE)).is_some());
}

#[tokio::test(start_paused = true)]
async fn while_nobody_serves_a_good_probe_lets_one_call_go_and_not_all() {
    let (breakers, now) = (breakers(2), Instant::now());
    breakers.failed(0, Class::NoLeader, now);
    breakers.failed(1, Class::NoLeader, now);
    breakers.probed(1, now);
    let first = pick(&breakers, now);
    assert_eq!(asked(&first), Some(1));
    assert!(asked(&pick(&breakers, now)).is_none(), "a standby that knows no leader answers probes too");
    breakers.answered(1, now);
    assert_eq!((asked(&pick(&breakers, now)), asked(&pick(&breakers, now))), (Some(1), Some(1)));
    breakers.probed(0, now);
    assert_eq!(asked(&pick(&breakers, now)), Some(0), "where one serves, a good probe is enough");
}

#[tokio::test(start_paused = true)]
async fn a_redirect_does_not_lead_to_an_address_that_failed_a_moment_ago() {
    let (breakers, now) = (breakers(2), Instant::now());
    assert!(matches!(breakers.may_follow(1, now), Some(None)));
    breakers.failed(1, Class::Unreachable, now);
    assert!(breakers.may_follow(1, now).is_none());
    assert!(matches!(breakers.may_follow(1, now + LATER), Some(Some(_))), "its pause is over");
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_fails_late_says_nothing_of_an_address_that_has_answered_since() {
    let (breakers, began) = (breakers(1), Instant::now());
    let (answered, late) = (began + ALONE / 2, began + ALONE);
    breakers.answered(0, answered);
    breakers.probe_failed(0, Class::Unreachable, began, late);
    assert_eq!(asked(&pick(&breakers, late)), Some(0), "it began before the answer");
    breakers.probe_failed(0, Class::Sealed, began, late);
    assert!(matches!(pick(&breakers, late), Pick::Wait { class: Class::Sealed, .. }), "that it is sealed came last");
    breakers.lags(0, answered);
    breakers.probe_failed(0, Class::Unreachable, began, late);
    assert_eq!(asked(&pick(&breakers, late)), Some(0), "a node that lags has answered too");
    breakers.probe_failed(0, Class::Unreachable, answered, late);
    assert!(matches!(pick(&breakers, late), Pick::Wait { class: Class::Unreachable, .. }), "it began after it");
}

#[tokio::test(start_paused = true)]
async fn where_calls_fail_and_probes_are_answered_one_call_tries_now_and_then() {
    let (breakers, began) = (breakers(2), Instant::now());
    for _ in 0..DOUBTFUL {
        breakers.failed(0, Class::ServerError, began);
    }
    let mut tried = 0;
    for second in 1..=60 {
        let now = began + Duration::from_secs(second);
        // As a call does it: it looks for its own address first.
        let first = pick(&breakers, now);
        if asked(&first) == Some(0) {
            tried += 1;
            assert_eq!(asked(&pick(&breakers, now)), Some(1), "one alone");
            assert_eq!(asked(&breakers.pick(now, |at| at == 0)), Some(1), "and none that has been there");
            breakers.failed(0, Class::ServerError, now);
        } else if let Some((at, trial)) = breakers.probe_due(now) {
            breakers.probed(at, now);
            drop(trial);
        }
    }
    assert!((5..=12).contains(&tried), "{tried}");
    let now = began + Duration::from_secs(90);
    let (at, trial) = breakers.probe_due(now).expect("it is looked after all the same");
    breakers.probed(at, now);
    drop(trial);
    let trial = pick(&breakers, now + PROVED_BY_CALLS);
    assert_eq!(asked(&trial), Some(0));
    breakers.answered(0, now + PROVED_BY_CALLS);
    drop(trial);
    assert_eq!(asked(&pick(&breakers, now + PROVED_BY_CALLS)), Some(0), "a call that is answered closes it");
}

#[tokio::test(start_paused = true)]
async fn what_is_on_probation_is_asked_at_once_when_nobody_else_serves() {
    let (breakers, now) = (breakers(2), Instant::now());
    for _ in 0..DOUBTFUL {
        breakers.failed(0, Class::Timeout, now);
    }
    breakers.probed(0, now + LATER);
    breakers.failed(1, Class::Unreachable, now + LATER);
    let next = pick(&breakers, now + LATER);
    assert!(matches!(next, Pick::Ask { at: 0, trial: Some(_) }), "{next:?}");
}

#[tokio::test(start_paused = true)]
async fn an_address_behind_those_that_serve_is_there_again_after_a_good_probe() {
    let (breakers, now) = (breakers(2), Instant::now());
    for _ in 0..DOUBTFUL {
        breakers.failed(1, Class::ServerError, now);
    }
    assert!(!breakers.has_other(0));
    breakers.probed(1, now + LATER);
    assert!(breakers.has_other(0), "no call tries it while the first one serves");
}

#[tokio::test(start_paused = true)]
async fn a_good_probe_disproves_what_a_probe_has_found() {
    let (breakers, now) = (breakers(2), Instant::now());
    for _ in 0..DOUBTFUL {
        breakers.probe_failed(0, Class::Tls, now, now);
    }
    assert_eq!(asked(&pick(&breakers, now)), Some(1));
    breakers.probed(0, now + LATER);
    assert_eq!(asked(&pick(&breakers, now + LATER)), Some(0));

    // A node that dies breaks off what is on its way; then probes find nobody, until it is back.
    for _ in 0..DOUBTFUL {
        breakers.failed(0, Class::ConnectionLost, now + LATER);
    }
    let (at, trial) = breakers.probe_due(now + LATER * 2).expect("the pause is over");
    breakers.probe_failed(at, Class::Unreachable, now + LATER * 2, now + LATER * 2);
    drop(trial);
    breakers.probed(0, now + LATER * 3);
    assert_eq!(asked(&pick(&breakers, now + LATER * 3)), Some(0), "at once");
}

#[tokio::test(start_paused = true)]
async fn a_trial_on_probation_that_ends_without_a_verdict_is_not_repeated_at_once() {
    let (breakers, now) = (breakers(2), Instant::now());
    for _ in 0..DOUBTFUL {
        breakers.failed(0, Class::Timeout, now);
    }
    breakers.probed(0, now);
    tokio::time::sleep(PROVED_BY_CALLS).await;
    let trial = pick(&breakers, Instant::now());
    assert_eq!(asked(&trial), Some(0));
    drop(trial);
    assert_eq!(asked(&pick(&breakers, Instant::now())), Some(1));
    tokio::time::sleep(PROVED_BY_CALLS).await;
    assert_eq!(asked(&pick(&breakers, Instant::now())), Some(0));
}
