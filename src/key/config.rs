//! The sections `rotation` and `health` of a pipeline: when a version becomes active, and when trouble is shown.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Outage;
use crate::units::{SECONDS_PATTERN, Span};

/// `rotation`: when a new Transit version is taken into use.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Rotation {
    /// How long after its creation a version becomes active, by OpenBao's clock; the same on every node, and at least
    /// twice metadataInterval; whole seconds, because OpenBao's clock has no finer ones. Default 2m.
    #[schemars(regex(pattern = SECONDS_PATTERN))]
    pub activation_delay: Span,
    /// How often the key's metadata is read, with jitter. Default 30s.
    pub metadata_interval: Span,
}

/// `health`: what Status says when OpenBao is away.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[schemars(rename = "HealthPolicy")]
pub struct HealthPolicy {
    /// For how long after the last success OpenBao's absence leaves Status healthy. Default 3m.
    pub tolerance: Span,
    /// How often a random seed is encrypted and decrypted as a probe; also at once after a fault. Default 5m.
    pub deep_probe_interval: Span,
    /// What Status answers once the tolerance has passed: the reason with an empty key_id, or with the last one. Default stop-writes.
    pub outage: Outage,
}

impl Default for Rotation {
    fn default() -> Self {
        Self { activation_delay: Span::from_secs(120), metadata_interval: Span::from_secs(30) }
    }
}

impl Default for HealthPolicy {
    fn default() -> Self {
        Self { tolerance: Span::from_secs(180), deep_probe_interval: Span::from_secs(300), outage: Outage::default() }
    }
}
