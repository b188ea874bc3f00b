//! What `/metrics` says after known events, value by value.

use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::support::{PATIENCE, Stage, status_until};

/// The value of the one row that starts with this name and carries these labels.
fn value(text: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let mut rows = text.lines().filter(|line| line.starts_with(&format!("{name}{{")));
    let row = rows.find(|row| labels.iter().all(|label| row.contains(label)))?;
    row.rsplit(' ').next()?.parse().ok()
}

/// Waits until a row has a value of which this holds.
async fn until(stage: &Stage, name: &str, labels: &[&str], holds: impl Fn(f64) -> bool) -> f64 {
    let began = Instant::now();
    loop {
        let text = stage.admin("/metrics").await.1;
        if let Some(value) = value(&text, name, labels).filter(|value| holds(*value)) {
            return value;
        }
        assert!(began.elapsed() < PATIENCE, "{name} {labels:?} never holds:\n{text}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn unix() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64()
}

#[tokio::test(flavor = "multi_thread")]
async fn ages_expiries_trouble_and_identity_are_what_has_happened() {
    const AGE: &str = "bao_kms_last_success_age_seconds";
    let stage = Stage::set().await;
    stage.issue_jwt(5_000);
    let issued = unix();
    stage.server.state().seal();
    let file = stage.write("config.yaml", &stage.config("    health: { tolerance: 10m }"));
    let program = stage.serve(&stage.config("    health: { tolerance: 10m }"));
    let client = stage.client().await;
    until(&stage, "bao_kms_trouble", &["class=\"sealed\""], |value| value == 1.0).await;
    until(&stage, AGE, &[], f64::is_nan).await;
    let text = stage.admin("/metrics").await.1;
    assert_eq!(value(&text, "bao_kms_token_expiry_timestamp_seconds", &[]), Some(0.0), "no token yet");

    stage.server.state().unseal();
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    // The login is younger than the seal, and the token lives for an hour.
    let token = until(&stage, "bao_kms_token_expiry_timestamp_seconds", &[], |value| value > 0.0).await;
    assert!((issued + 3_590.0..=unix() + 3_601.0).contains(&token), "{token} {issued}");
    let credential = until(&stage, "bao_kms_credential_expiry_timestamp_seconds", &[], |value| value > 0.0).await;
    assert!((issued + 4_990.0..=issued + 5_001.0).contains(&credential), "{credential} {issued}");
    let young = until(&stage, AGE, &[], |value| value >= 0.0).await;
    assert!(young < PATIENCE.as_secs_f64(), "{young}");
    let text = stage.admin("/metrics").await.1;
    assert_eq!(value(&text, "bao_kms_trouble", &[]), None, "nothing is wrong:\n{text}");

    let mut show = Command::new(env!("CARGO_BIN_EXE_bao-kms-provider"));
    let shown = show.args(["config", "show", "--config"]).arg(file).output().expect("it runs").stdout;
    let shown = String::from_utf8(shown).expect("text");
    let fingerprint = shown.split(|c: char| c.is_whitespace() || c == '"').find(|word| word.starts_with("obf1."));
    let label = format!("fingerprint=\"{}\"", fingerprint.expect("config show prints it"));
    assert_eq!(value(&text, "bao_kms_identity_info", &[&label]), Some(1.0), "{label}:\n{text}");

    // Trouble shows at once, while Status still tolerates it, and the last success grows older.
    stage.server.state().seal();
    until(&stage, "bao_kms_trouble", &["class=\"sealed\""], |value| value == 1.0).await;
    until(&stage, "bao_kms_status", &["reason=\"ok\""], |value| value == 1.0).await;
    let first = until(&stage, AGE, &[], |value| value >= 0.0).await;
    until(&stage, AGE, &[], |value| value >= first + 1.0).await;
    assert_eq!(program.stop().0, Some(0));
}
