//! Pages of the book that are made from the program's own tables: what is watched, and what each word means.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bao_kms_provider::error::{Bearing, Class, Repeat};
use bao_kms_provider::front::grpc_code;
use bao_kms_provider::key::config::{HealthPolicy, Rotation};
use bao_kms_provider::key::{Identity, KeyState, Severity, View, findings, identity, refresh};
use bao_kms_provider::request::{Kind, Purpose};
use bao_kms_provider::telemetry::metrics::PipelineMetrics;
use bao_kms_provider::telemetry::observed::{Observed, Outlook};
use bao_kms_provider::telemetry::{events, registry};

use super::config::current;

/// Alerts worth having: name, expression, what it means.
const ALERTS: &[(&str, &str, &str)] = &[
    (
        "BaoKmsPathDown",
        "bao_kms_status{reason!=\"ok\"} == 1",
        "Status is not ok: kube-apiserver stops writing after its grace. The reason is the label; docs/troubleshooting.md has it.",
    ),
    (
        "BaoKmsTrouble",
        "bao_kms_trouble == 1 unless on(pipeline) bao_kms_status{reason!=\"ok\"} == 1",
        "Something is wrong and still tolerated: the time that `health.tolerance` gives is running.",
    ),
    (
        "BaoKmsSocketGone",
        "bao_kms_socket_ready == 0",
        "The socket cannot be had, so that kube-apiserver has nobody to ask. `/readyz` says why; it is tried again every five seconds.",
    ),
    (
        "BaoKmsLooksOld",
        "bao_kms_last_success_age_seconds > 600",
        "No look at the path has succeeded for ten minutes, though the key is read every half minute and a seed is sealed and opened every five.",
    ),
    (
        "BaoKmsKeyIdsDiffer",
        "count(count by (key_id_hash) (bao_kms_key_id_info)) by () > 1",
        "Nodes of one cluster use different key_ids for longer than a rotation takes. Select the cluster by its own labels.",
    ),
    (
        "BaoKmsTokenEnds",
        "bao_kms_token_expiry_timestamp_seconds > 0 and bao_kms_token_expiry_timestamp_seconds - time() < 120",
        "The token is about to end and has not been renewed.",
    ),
    (
        "BaoKmsCredentialEnds",
        "bao_kms_credential_expiry_timestamp_seconds > 0 and bao_kms_credential_expiry_timestamp_seconds - time() < 3600",
        "The JWT or the certificate ends within an hour: whoever renews the file has stopped doing so.",
    ),
    (
        "BaoKmsCallsFail",
        "sum by (pipeline, class) (rate(bao_kms_calls_total{class!=\"ok\"}[5m])) > 0.1",
        "Calls fail steadily; the class says why.",
    ),
    (
        "BaoKmsConfigRefused",
        "bao_kms_config_refused == 1",
        "The configuration on disk was refused. What ran goes on; a restart would run something else or nothing. `/readyz` says why.",
    ),
    (
        "BaoKmsWitness",
        "bao_kms_witness_trouble == 1",
        "`witness.file` cannot be kept: a restart may not notice a key that was rolled back. The log says why.",
    ),
    ("BaoKmsPanic", "increase(bao_kms_panics_total[1h]) > 0", "A defect of this program. Please report it."),
];

fn outlook() -> Outlook {
    Outlook { pipelines: ArcSwap::from_pointee(vec![observed()]), ..Outlook::default() }
}

/// A pipeline to which everything has happened once, so that every metric shows.
fn observed() -> Observed {
    let metrics = PipelineMetrics::new();
    for kind in [Kind::Encrypt, Kind::Decrypt] {
        drop(metrics.enter(kind));
        metrics.answered(kind, Some(Class::Sealed), Duration::ZERO);
    }
    metrics.attempted(Purpose::Login, Some(0), None, Duration::ZERO);
    metrics.logged_in("login", None);
    let _gauges = metrics.breakers(1);
    let (refresh, _requests) = refresh::channel(Duration::from_secs(1));
    let key = KeyState::new(&HealthPolicy::default(), &Rotation::default(), refresh);
    key.failed(Class::Sealed, tokio::time::Instant::now());
    let name = || "n".to_owned();
    let identity = identity::Config {
        provider_name: name(),
        cluster_id: name(),
        openbao_id: name(),
        transit_mount_id: name(),
        key_lineage_id: name(),
        fingerprint: String::new(),
    };
    let metadata = serde_json::json!({"type": "aes256-gcm96", "latest_version": 1, "keys": {"1": 1}});
    let metadata = serde_json::from_value(metadata).expect("metadata");
    let view = View::at(&Identity::of(&identity, ""), &metadata, 2, 0, None).expect("a view");
    key.publish(Arc::new(view));
    Observed {
        name: "a".into(),
        key: Arc::new(key),
        metrics,
        findings: Arc::new(ArcSwap::from_pointee(Vec::new())),
        fingerprint: "f".into(),
        socket: Arc::new(|| Ok(())),
    }
}

/// Name, type, labels and help of every metric, from the text that Prometheus reads.
pub fn metrics() -> Vec<(String, String, String, String)> {
    let text = registry::render(&outlook()).expect("rendered");
    let mut rows: Vec<(String, String, String, String)> = Vec::new();
    for line in text.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            rows.push((name.to_owned(), String::new(), String::new(), help.trim_end_matches('.').to_owned() + "."));
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let row = rows.iter_mut().find(|row| row.0 == name).expect("a help line before");
            row.1 = kind.to_owned();
            if kind == "counter" {
                row.0.push_str("_total");
            }
        } else if let Some((name, rest)) = line.split_once('{')
            && let Some(row) = rows.iter_mut().find(|row| name.starts_with(&row.0) && row.2.is_empty())
        {
            let labels = rest.split('}').next().unwrap_or_default().split(',');
            let names: BTreeSet<_> =
                labels.filter_map(|label| label.split('=').next()).filter(|l| *l != "le").collect();
            row.2 = names.into_iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(" ");
        }
    }
    rows
}

fn observability() -> String {
    let mut text = String::from(
        "# What do I watch, and what do I alert on?

This page is made from the program's own tables; a test keeps it true. The admin listener (`admin.listen`) serves
`/metrics`, `/livez` (this process) and `/readyz` (the whole path, with the reasons as JSON).

## Alerts worth having

| alert | expression | what it means |
|---|---|---|
",
    );
    let row = |text: &mut String, cells: &[&str]| {
        let cells: Vec<_> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
        writeln!(text, "| {} |", cells.join(" | ")).expect("a string");
    };
    for (name, expression, meaning) in ALERTS {
        row(&mut text, &[name, &format!("`{expression}`"), meaning]);
    }
    text.push_str("\n## Metrics\n\n| metric | type | labels | what it tells |\n|---|---|---|---|\n");
    for (name, kind, labels, help) in metrics() {
        row(&mut text, &[&format!("`{name}`"), &kind, &labels, &help]);
    }
    text.push_str(
        "
`class` is `ok` or a word of [troubleshooting.md](troubleshooting.md). `endpoint` is the position of the address in
`backend.transit.endpoints`, counted from 0. `key_id_hash` is what kube-apiserver's own metrics
(`apiserver_envelope_encryption_key_id_hash_total`) call the same key_id.

## Events

Every log line that an alert may build on carries one of these words as `event`. No line is written for a single call:
`calls_failed` sums up a minute.

| event | when |
|---|---|
",
    );
    for (name, meaning) in events::ALL {
        row(&mut text, &[&format!("`{name}`"), meaning]);
    }
    text.push_str(
        "
## Traces

With `telemetry.traces.otlp` each KMS call is a span (`kms.encrypt`, `kms.decrypt`) in its caller's trace, and each exchange
with OpenBao a child (`openbao.attempt`), whose context goes on to OpenBao. Spans wait in a bounded queue; when the collector
is away they are dropped, `exporter_trouble` says so once a minute, and no call waits.
",
    );
    text
}

fn troubleshooting() -> String {
    let mut text = String::from(
        "# Status or a log line says a word: what do I do?

This page is made from the program's own tables; a test keeps it true. The same word stands in Status, in the field `class`
of a log line, in the metrics, at `/readyz` and at the head of the message that kube-apiserver logs.

* *shows at once*: Status carries the word as soon as it is known, because it concerns the key or the right to use it.
* *after tolerance*: Status stays `ok` while the last success is younger than `health.tolerance`, because OpenBao is away.
* *calls only*: single calls fail with it; it says nothing about the path as a whole.

| word | what it means | what to do | in Status | repeated | gRPC |
|---|---|---|---|---|---|
",
    );
    for &class in Class::ALL {
        let status = match (class, class.bearing()) {
            (Class::Starting, _) => "until the first look that succeeds",
            (Class::Internal, _) => "when nobody looks after the key any more",
            (_, Bearing::None) => "calls only",
            (_, Bearing::Absence) => "after tolerance",
            (_, Bearing::Key) => "shows at once",
        };
        let repeat = match class.repeat() {
            Repeat::Never => "never",
            Repeat::Counted => "a few times",
            Repeat::Free => "until the deadline",
        };
        let (meaning, help, code) = (class.meaning(), class.help(), grpc_code(class));
        writeln!(text, "| `{class}` | {meaning} | {help} | {status} | {repeat} | {code:?} |").expect("a string");
    }
    text.push_str(
        "
## Findings on the key

They stand at `/readyz` and in the log (`key_finding`). Only a blocking one shows in Status.

| finding | how bad | what it means |
|---|---|---|
",
    );
    for finding in findings::ALL {
        let severity = match finding.severity {
            Severity::Info => "good to know",
            Severity::Warning => "weakens a promise",
            Severity::Blocking => "blocks",
        };
        writeln!(text, "| `{}` | {severity} | {} |", finding.name, finding.text).expect("a string");
    }
    text
}

#[test]
fn pages_made_from_tables_are_current() {
    current("docs/observability.md", &observability());
    current("docs/troubleshooting.md", &troubleshooting());
}

#[test]
fn every_alert_asks_for_a_metric_that_there_is() {
    let names: BTreeSet<_> = metrics().into_iter().map(|row| row.0).collect();
    assert!(names.len() > 20, "{names:?}");
    for (alert, expression, _) in ALERTS {
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let asked: Vec<_> = expression.split(|c| !word(c)).filter(|part| part.starts_with("bao_kms_")).collect();
        assert!(!asked.is_empty(), "{alert}");
        for metric in asked {
            assert!(names.contains(metric), "{alert}: {metric} is no metric: {names:?}");
        }
    }
}
