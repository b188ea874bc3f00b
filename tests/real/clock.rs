//! A node whose clock is years behind, or an hour ahead or behind: it jumps, and each time its token is taken away.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bao_kms_provider::front::client::Client;
use serde_json::json;

use crate::support::openbao::OpenBao;
use crate::support::provider::{Login, Provider, Setup};
use crate::support::wait::{LONG, until};

const YEARS_BEHIND: i64 = -3 * 365 * 24 * 3_600;
const HOUR: i64 = 3_600;
/// After this the program's clock has jumped: it looks at its file once a second, and on a busy machine a little later.
const JUMPED: Duration = Duration::from_millis(2_500);
/// By then a call has met that the token is gone, and there is another one.
const LOGGED_IN: Duration = Duration::from_millis(3_500);
/// Long enough for that and for a renewal of that token, which comes after four seconds at most; too short for a second one
/// before the token is taken away again, which would be refused now and then.
const BETWEEN: Duration = Duration::from_secs(7);
/// By which two clocks that should agree may differ: a lease, and a slow machine. The jumps are far longer.
const ABOUT: f64 = 60.0;

/// Sets the program's clock. In one step: whoever reads a file that is still empty keeps to the clock of before for a second.
fn set(clock: &Path, seconds: i64) {
    let next = clock.with_extension("next");
    std::fs::write(&next, format!("{seconds:+}\n")).expect("a file");
    std::fs::rename(next, clock).expect("in its place");
}

/// Seals and opens until then: no call fails, Status is healthy, and the key_id is this one and no other.
async fn serves(client: &Client, key_id: &str, end: Instant) {
    while Instant::now() < end {
        let sealed = client.encrypt(vec![7; 32], "u").await.expect("Encrypt");
        assert_eq!(sealed.key_id, key_id, "no key_id moves");
        let opened = client.decrypt(sealed.ciphertext.to_vec(), "u", &sealed.key_id, sealed.annotations).await;
        assert_eq!(opened.expect("Decrypt"), vec![7; 32]);
        let status = client.status().await.expect("Status");
        assert_eq!((status.healthz.as_str(), status.key_id.as_str()), ("ok", key_id));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Rotates the key; the new version is taken over at OpenBao's time. Gives its key_id.
async fn rotates(bao: &OpenBao, client: &Client, before: &str) -> String {
    bao.write(&bao.key("/rotate"), json!({})).await;
    until("the new version", LONG, async || match client.status().await.map_err(|error| error.to_string())?.key_id {
        same if same == before => Err("the old one".to_owned()),
        key_id => Ok(key_id),
    })
    .await
}

/// There have been so many logins, and OpenBao granted each.
async fn check_logins(provider: &Provider, wanted: f64) {
    let fine = provider.sum("bao_kms_logins_total", &["call=\"login\"", "class=\"ok\""]).await;
    let all = provider.logins().await;
    assert!((all - wanted).abs() < f64::EPSILON, "{all} logins, not {wanted}: one for each token, no storm");
    assert!((fine - wanted).abs() < f64::EPSILON, "{fine} logins of {wanted} were granted");
}

/// The token was granted or renewed while the program's clock was off by so much.
async fn check_clock(provider: &Provider, off: i64) {
    let ends = provider.sum("bao_kms_token_expiry_timestamp_seconds", &[]).await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64() + off as f64;
    assert!((ends - now).abs() < ABOUT, "the token ends {} s from the clock that was set", ends - now);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_years_behind_and_jumps_moves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    // Its certificate was valid in those years too; another one would be `tls`, as it should be.
    let mut bao = OpenBao::durable(folder.path()).await;
    bao.setup.token_ttl = "6s".into();
    bao.provision().await;
    let mut setup = Setup::new(folder.path(), &bao, Login::Jwt);
    let clock = folder.path().join("clock");
    let set = |seconds: i64| set(&clock, seconds);
    set(YEARS_BEHIND);
    setup.clock = Some(clock.clone());
    let provider = setup.start();
    let began = Instant::now();
    let mut key_id = provider.status("ok").await;
    let log = provider.log();
    let year =
        |log: &str| log.lines().next().and_then(|line| line.split("\"timestamp\":\"").nth(1)?.get(..4)?.parse().ok());
    let behind: i32 = year(&log).expect("a time in the log");
    assert!(behind < 2026, "the clock of this process is not behind: {log}");
    let client = provider.connect().await;
    check_logins(&provider, 1.0).await;
    for (tokens, jump) in [(1.0, HOUR), (2.0, -HOUR), (3.0, HOUR), (4.0, 0)] {
        set(YEARS_BEHIND + jump);
        let jumped = Instant::now();
        serves(&client, &key_id, jumped + JUMPED).await;
        check_logins(&provider, tokens).await;
        // By the new clock every moment of the token before may be wrong: only a login is of use now.
        bao.write("sys/leases/revoke-prefix/auth/jwt", json!({})).await;
        serves(&client, &key_id, jumped + LOGGED_IN).await;
        if jump == HOUR {
            // The next jump leads back beyond this moment: the key_id must not follow it.
            key_id = rotates(&bao, &client, &key_id).await;
        }
        serves(&client, &key_id, jumped + BETWEEN).await;
        check_logins(&provider, tokens + 1.0).await;
        check_clock(&provider, YEARS_BEHIND + jump).await;
    }
    let fine = provider.sum("bao_kms_logins_total", &["call=\"renew\"", "class=\"ok\""]).await;
    let renewals = provider.sum("bao_kms_logins_total", &["call=\"renew\""]).await;
    assert!((renewals - fine).abs() < f64::EPSILON, "every renewal is one of a token that OpenBao knows");
    // After two thirds of the lease or a little earlier, each, and one more at either end.
    let most = began.elapsed().as_secs_f64() / 3.6 + 2.0;
    assert!((3.0..=most).contains(&fine), "{fine} renewals, not 3 to {most}");
    rotates(&bao, &client, &key_id).await;
}

/// By the node's own clock the JWT, which is good for an hour, has expired after the one jump and is not good yet after the
/// other: OpenBao alone says what it is worth.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_an_hour_around_the_true_time_hinders_no_login() {
    let folder = tempfile::tempdir().expect("a folder");
    let bao = OpenBao::durable(folder.path()).await;
    bao.provision().await;
    let mut setup = Setup::new(folder.path(), &bao, Login::Jwt);
    let clock = folder.path().join("clock");
    let set = |seconds: i64| set(&clock, seconds);
    set(0);
    setup.clock = Some(clock.clone());
    let provider = setup.start();
    let key_id = provider.status("ok").await;
    let client = provider.connect().await;
    check_logins(&provider, 1.0).await;
    for (tokens, jump) in [(1.0, HOUR), (2.0, 0), (3.0, -HOUR), (4.0, 0)] {
        set(jump);
        let jumped = Instant::now();
        // The token, which is good for an hour as well, goes by no clock of the node.
        serves(&client, &key_id, jumped + JUMPED).await;
        check_logins(&provider, tokens).await;
        bao.write("sys/leases/revoke-prefix/auth/jwt", json!({})).await;
        serves(&client, &key_id, jumped + BETWEEN).await;
        check_logins(&provider, tokens + 1.0).await;
        check_clock(&provider, jump + HOUR).await;
    }
    let log = provider.log();
    for doubt in ["the JWT has expired by this node's clock", "the JWT is not valid yet by this node's clock"] {
        assert!(log.contains(doubt), "the jumps were to lead past both ends of its validity: {log}");
    }
    let renewals = provider.sum("bao_kms_logins_total", &["call=\"renew\""]).await;
    assert!(renewals < 1.0, "{renewals} renewals of tokens that are seconds old");
}
