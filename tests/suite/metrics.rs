//! What a scrape tells of a running program.

use std::time::{Duration, Instant};

use super::support::{PATIENCE, Stage, status_until, until};

#[tokio::test(flavor = "multi_thread")]
async fn metrics_tell_what_happened() {
    let stage = Stage::set().await;
    let _program = stage.serve(&stage.config(""));
    let client = stage.client().await;
    let status = status_until(&client, "ok", |status| status.healthz == "ok").await;
    client.encrypt(vec![7; 32], "u").await.expect("Encrypt");
    let (code, text) = stage.admin("/metrics").await;
    assert_eq!(code, 200);
    use std::fmt::Write;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, status.key_id.as_bytes());
    let hash = digest.as_ref().iter().fold("sha256:".to_owned(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string");
        text
    });
    for wanted in [
        "bao_kms_calls_total{pipeline=\"a\",call=\"encrypt\",class=\"ok\"} 1",
        "bao_kms_status{pipeline=\"a\",reason=\"ok\"} 1",
        "bao_kms_active_key_version{pipeline=\"a\"} 1",
        "bao_kms_openbao_attempts_total{pipeline=\"a\",purpose=\"login\",endpoint=\"0\",class=\"ok\"} 1",
        "bao_kms_calls_in_flight{pipeline=\"a\",call=\"encrypt\"} 0",
        &format!("key_id_hash=\"{hash}\""),
    ] {
        assert!(text.contains(wanted), "{wanted}\n{text}");
    }
}

/// An alert on the age would never fire if failures refreshed it.
#[tokio::test(flavor = "multi_thread")]
async fn the_age_of_the_last_success_grows_through_failures_and_falls_with_a_success() {
    let stage = Stage::set().await;
    let _program = stage.serve(&stage.config(""));
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    let scrape = async || stage.admin("/metrics").await.1;
    let age = async || -> f64 {
        let text = scrape().await;
        let line = text.lines().find(|line| line.starts_with("bao_kms_last_success_age_seconds{pipeline=\"a\"}"));
        line.and_then(|line| line.rsplit(' ').next()).expect("an age").parse().expect("a number")
    };
    let shows_trouble = async || scrape().await.contains("bao_kms_trouble{pipeline=\"a\",class=\"sealed\"} 1");

    stage.server.state().seal();
    let began = Instant::now();
    while !shows_trouble().await {
        assert!(began.elapsed() < PATIENCE, "the seal is never noticed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (first, asked, since) = (age().await, stage.server.calls().of("sys/health"), Instant::now());
    until("six more looks that fail", || stage.server.calls().of("sys/health") >= asked + 6).await;
    let (grown, passed) = (age().await, since.elapsed().as_secs_f64());
    assert!(grown >= first + passed * 0.8, "{first} s, and {grown} s after {passed} s");

    stage.server.state().unseal();
    let began = Instant::now();
    while age().await >= grown / 2.0 {
        assert!(began.elapsed() < PATIENCE, "a success does not reset the age");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!shows_trouble().await);
}
