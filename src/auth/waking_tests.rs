//! What ends a back-off early, and what does not: wakes, calls that ask, rejections, and `Retry-After`.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_renewal_that_failed_is_tried_again_at_once_when_woken() {
    let puppet = Puppet::new();
    let session = puppet.start();
    session.wait().await.expect("a token");
    puppet.fail_renewals(Some(Err(Class::Unreachable)));
    pass(2_600).await;
    puppet.fail_renewals(None);
    let before = puppet.counts().1;
    session.wake();
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(puppet.counts(), (1, before + 1));
    assert!(session.last_error().is_none());
}

#[tokio::test(start_paused = true)]
async fn refused_logins_back_off_and_waking_shortens_the_wait() {
    let puppet = Puppet::new();
    puppet.fail_logins(Some(Ok(403)));
    let session = puppet.start();
    assert_eq!(session.wait().await.expect_err("refused").class(), Class::LoginRefused);
    pass(600).await;
    let tried = puppet.counts().0;
    assert!((15..=40).contains(&tried), "{tried} logins in ten minutes");
    puppet.fail_logins(None);
    session.wake();
    pass(2).await;
    assert_eq!(session.token().expect("logged in").generation, 1);
    for _ in 0..100 {
        session.wake();
    }
    pass(5).await;
    assert_eq!(puppet.counts().0, tried + 1, "waking a healthy session does nothing");
}

#[tokio::test(start_paused = true)]
async fn waking_all_the_time_does_not_flood_openbao() {
    let puppet = Puppet::new();
    puppet.fail_logins(Some(Err(Class::Unreachable)));
    let session = puppet.start();
    for _ in 0..1_000 {
        session.wake();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let tried = puppet.counts().0;
    assert!(tried <= 21, "{tried} logins in ten seconds");
}

#[tokio::test(start_paused = true)]
async fn whoever_wakes_waits_for_the_login_that_follows() {
    let puppet = Puppet::new();
    puppet.fail_logins(Some(Err(Class::Unreachable)));
    let session = puppet.start();
    assert_eq!(session.wait().await.expect_err("away").class(), Class::Unreachable);
    pass(120).await;
    puppet.fail_logins(None);
    session.wake();
    let asked = Instant::now();
    assert_eq!(text(&session.wait().await.expect("not the old error")).get(..1), Some("t"));
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_wake_during_a_login_that_fails_leads_to_another_one() {
    let puppet = Puppet::new();
    puppet.fail_logins(Some(Err(Class::Unreachable)));
    puppet.latency_ms.store(300, Ordering::SeqCst);
    let session = puppet.start();
    pass(120).await;
    while session.shared.round.borrow().busy {
        pass(1).await;
    }
    session.wake();
    tokio::time::sleep(Duration::from_millis(100)).await;
    session.wake();
    tokio::time::sleep(Duration::from_millis(250)).await;
    assert!(session.last_error().is_some(), "the first one has failed");
    puppet.fail_logins(None);
    let asked = Instant::now();
    session.wait().await.expect("the login after the one that failed");
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
}

#[tokio::test(start_paused = true)]
async fn refusals_are_asked_about_again_every_two_seconds_however_often_woken() {
    let puppet = Puppet::new();
    puppet.fail_logins(Some(Ok(400)));
    let session = puppet.start();
    for _ in 0..600 {
        session.wake();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let tried = puppet.counts().0;
    assert!((30..=35).contains(&tried), "{tried} logins in a minute");
    puppet.fail_logins(None);
    session.wake();
    let asked = Instant::now();
    session.wait().await.expect("the repaired role");
    assert!(asked.elapsed() <= Duration::from_secs(2), "{:?}", asked.elapsed());
}

#[tokio::test(start_paused = true)]
async fn calls_that_are_refused_do_not_wait_and_notice_a_repair_within_two_seconds() {
    let puppet = Puppet::new();
    puppet.fail_logins(Some(Ok(400)));
    let session = puppet.start();
    session.wait().await.expect_err("refused");
    pass(120).await;
    let (before, asked) = (puppet.counts().0, Instant::now());
    let mut refused = 0;
    while asked.elapsed() < Duration::from_secs(60) {
        refused += usize::from(session.wait().await.is_err());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let tried = puppet.counts().0 - before;
    assert!((25..=35).contains(&tried), "{tried} logins in a minute");
    assert!(refused >= 500, "{refused} calls of 600 went on at once");
    puppet.fail_logins(None);
    let repaired = Instant::now();
    while session.wait().await.is_err() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(repaired.elapsed() <= Duration::from_millis(2_100), "{:?}", repaired.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_revocation_does_not_wait_for_a_back_off() {
    // The token outlives its refused renewal and the logins that fail after it, and is revoked then.
    let puppet = Puppet::new();
    let session = puppet.start();
    let first = session.wait().await.expect("a token");
    puppet.fail_renewals(Some(Ok(400)));
    puppet.fail_logins(Some(Err(Class::Unreachable)));
    pass(2_700).await;
    assert!(session.token().is_some(), "still valid");
    puppet.fail_logins(None);
    let asked = Instant::now();
    assert_eq!(text(&session.renew_after_rejection(first.generation).await.expect("a token")).get(..1), Some("t"));
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());

    // Rejected first, then OpenBao is away for minutes; its next rejection says that it is back.
    let second = session.token().expect("a token");
    puppet.fail_logins(Some(Err(Class::Unreachable)));
    session.renew_after_rejection(second.generation).await.expect_err("away");
    pass(300).await;
    puppet.fail_logins(None);
    let asked = Instant::now();
    session.renew_after_rejection(second.generation).await.expect("not the old error");
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
}

#[tokio::test(start_paused = true)]
async fn openbao_is_left_alone_for_as_long_as_it_asks_whoever_wakes() {
    let puppet = Puppet::new();
    puppet.retry_after.store(20, Ordering::SeqCst);
    puppet.fail_logins(Some(Ok(429)));
    let session = puppet.start();
    assert_eq!(session.wait().await.expect_err("limited").class(), Class::RateLimited);
    for _ in 0..190 {
        session.wake();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(puppet.counts().0, 1);
    puppet.fail_logins(None);
    pass(2).await;
    assert_eq!(puppet.counts().0, 2);
    assert!(session.token().is_some());
}
