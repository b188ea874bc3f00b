//! The `telemetry` section: where logs, metrics and traces go.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::plugin::Plugin;
use crate::units::Span;

/// `telemetry`: where logs, metrics and traces go.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[schemars(rename = "Telemetry")]
pub struct Config {
    /// Logs, on standard error.
    pub logs: Logs,
    /// Metrics, served by the admin listener at `/metrics`.
    pub metrics: Metrics,
    /// Traces; none are exported when empty.
    pub traces: Traces,
}

/// `telemetry.logs`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Logs {
    /// One JSON object or one line of text for each event. Default json.
    pub format: Format,
    /// The least severe level that is written. Default info.
    pub level: Level,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One JSON object a line.
    #[default]
    Json,
    /// Text for people; coloured on a terminal unless NO_COLOR is set.
    Text,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Only what needs somebody.
    Error,
    /// And what may need somebody soon.
    Warn,
    /// And each change of state.
    #[default]
    Info,
    /// And what helps to find a fault.
    Debug,
    /// And everything else, still nothing secret; optimized builds leave out what libraries say of each frame.
    Trace,
}

/// `telemetry.metrics`: there is nothing to set; the admin listener serves them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Metrics {}

/// `telemetry.traces`: exporters by name.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Traces {
    /// OTLP over gRPC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp: Option<Otlp>,
}

/// `telemetry.traces.otlp`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Otlp {
    /// The collector, `http://host:4317` or `https://host:4317`.
    #[schemars(regex(pattern = "^https?://[^\\s/]+/?$"))]
    pub endpoint: String,
    /// Share of calls that begin a trace when their caller brings none, 0 to 1. Default 1.
    #[serde(default = "all")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub sample_ratio: f64,
    /// How long one export may take. Default 5s.
    #[serde(default = "five_seconds")]
    pub timeout: Span,
    /// PEM file with the CA of an https collector; the system's roots when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub ca_file: Option<PathBuf>,
}

fn all() -> f64 {
    1.0
}

fn five_seconds() -> Span {
    Span::from_secs(5)
}

/// The exporters.
pub const TABLE: &[Plugin] = &[
    Plugin {
        room: "telemetry.logs",
        name: "json",
        summary: "One JSON object a line on standard error.",
        why: "For machines: the journal and log collectors.",
    },
    Plugin { room: "telemetry.logs", name: "text", summary: "One line of text on standard error.", why: "For people." },
    Plugin {
        room: "telemetry.metrics",
        name: "prometheus",
        summary: "Served by the admin listener at /metrics.",
        why: "Pulled, so that a dead backend never slows a call.",
    },
    Plugin {
        room: "telemetry.traces",
        name: "otlp",
        summary: "OTLP over gRPC to a collector.",
        why: "Joins the API server's request, this program and OpenBao.",
    },
];

// === impl Level ===

impl Level {
    /// The word of the file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}
