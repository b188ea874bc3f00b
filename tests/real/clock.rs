//! A node whose clock is years behind, and jumps while its token is renewed every few seconds.

use std::time::{Duration, Instant};

use crate::support::openbao::OpenBao;
use crate::support::provider::{Login, Setup};
use crate::support::wait::{LONG, until};

const YEARS_BEHIND: i64 = -3 * 365 * 24 * 3_600;
const HOUR: i64 = 3_600;
/// Long enough for a renewal between two jumps.
const BETWEEN: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_years_behind_and_jumps_moves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    // Its certificate was valid in those years too; another one would be `tls`, as it should be.
    let mut bao = OpenBao::durable(folder.path()).await;
    bao.setup.token_ttl = "6s".into();
    bao.provision().await;
    let mut setup = Setup::new(folder.path(), &bao, Login::Jwt);
    let clock = folder.path().join("clock");
    let set = |seconds: i64| std::fs::write(&clock, format!("{seconds:+}\n")).expect("a file");
    set(YEARS_BEHIND);
    setup.clock = Some(clock.clone());
    let provider = setup.start();
    let first = provider.status("ok").await;
    let log = provider.log();
    let year =
        |log: &str| log.lines().next().and_then(|line| line.split("\"timestamp\":\"").nth(1)?.get(..4)?.parse().ok());
    let behind: i32 = year(&log).expect("a time in the log");
    assert!(behind < 2026, "the clock of this process is not behind: {log}");
    let client = provider.connect().await;
    let began = Instant::now();
    for jump in [HOUR, -HOUR, HOUR, 0] {
        set(YEARS_BEHIND + jump);
        let jumped = Instant::now();
        while jumped.elapsed() < BETWEEN {
            let sealed = client.encrypt(vec![7; 32], "u").await.expect("Encrypt");
            assert_eq!(sealed.key_id, first, "no key_id moves");
            let opened = client.decrypt(sealed.ciphertext.to_vec(), "u", &sealed.key_id, sealed.annotations).await;
            assert_eq!(opened.expect("Decrypt"), vec![7; 32]);
            assert_eq!(client.status().await.expect("Status").healthz, "ok");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    let fine = provider.sum("bao_kms_logins_total", &["call=\"renew\"", "class=\"ok\""]).await;
    let renewals = provider.sum("bao_kms_logins_total", &["call=\"renew\""]).await;
    assert!((provider.logins().await - 1.0).abs() < f64::EPSILON, "one login, no storm");
    assert!((renewals - fine).abs() < f64::EPSILON, "every renewal is one of a token that OpenBao knows");
    // After two thirds of the lease or a little earlier, each, and one more at either end.
    let most = began.elapsed().as_secs_f64() / 3.6 + 2.0;
    assert!((3.0..=most).contains(&fine), "{fine} renewals, not 3 to {most}");
    // A rotation is taken over at OpenBao's time.
    bao.write(&bao.key("/rotate"), serde_json::json!({})).await;
    until("the new version", LONG, async || match client.status().await.map_err(|error| error.to_string())?.key_id {
        same if same == first => Err("the old one".to_owned()),
        _ => Ok(()),
    })
    .await;
}
