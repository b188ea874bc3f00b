//! Readiness: whether the whole path works, for each pipeline, with the reason when it does not.

use serde::Serialize;
use tokio::time::Instant;

use crate::telemetry::observed::{Observed, Outlook};
use crate::telemetry::registry::kube_hash;

/// The body of `/readyz`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    /// Whether every pipeline is ready.
    pub(super) ready: bool,
    /// Why the configuration on disk is not what runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    config_refused: Option<String>,
    /// Settings of the file that only a restart puts in force, as key paths.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    restart_needed: Vec<String>,
    pipelines: Vec<Row>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    name: String,
    ready: bool,
    /// What Status says: `ok` or a class.
    reason: &'static str,
    /// What is wrong with the path even when it is tolerated for now.
    #[serde(skip_serializing_if = "Option::is_none")]
    trouble: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trouble_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    help: Option<&'static str>,
    /// `ready`, or why there is no socket.
    socket: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    active_version: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_id_hash: Option<String>,
    fingerprint: String,
    findings: Vec<&'static str>,
}

pub(super) fn report(outlook: &Outlook) -> Report {
    let rows: Vec<Row> = outlook.pipelines.load().iter().map(row).collect();
    Report {
        ready: !rows.is_empty() && rows.iter().all(|row| row.ready),
        config_refused: outlook.config_refused.load().as_deref().cloned(),
        restart_needed: outlook.restart_needed.load().to_vec(),
        pipelines: rows,
    }
}

fn row(pipeline: &Observed) -> Row {
    let now = Instant::now();
    let (view, health) = (pipeline.key.peek(), pipeline.key.health());
    let shown = pipeline.key.shown_trouble(now);
    let reason = match shown {
        Some(class) => class.name(),
        None if view.is_none() => "starting",
        None => "ok",
    };
    let socket = (pipeline.socket)();
    Row {
        name: pipeline.name.to_string(),
        ready: reason == "ok" && socket.is_ok(),
        reason,
        trouble: health.trouble.map(|(class, _)| class.name()),
        trouble_seconds: health.trouble.map(|(_, since)| now.saturating_duration_since(since).as_secs()),
        help: health.trouble.map(|(class, _)| class.help()),
        socket: socket.map_or_else(|why| why, |()| "ready".to_owned()),
        active_version: view.as_ref().map(|view| view.active().number),
        key_id_hash: view.as_ref().map(|view| kube_hash(view.active().key_id.as_str())),
        fingerprint: pipeline.fingerprint.clone(),
        findings: pipeline.findings.load().iter().map(|finding| finding.name).collect(),
    }
}
