//! The configuration file: loaded, merged, validated against the schema, deserialized, checked across fields. The structs
//! stand beside what they configure; here they are only put together.

mod checks;
pub mod document;
mod explain;
mod finding;
mod judge;
mod load;
mod nearest;
mod origins;
mod outline;
mod place;
mod pointer;
pub mod schema;
mod show;
mod source;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use explain::explain;
pub use finding::{Finding, Findings};
pub use load::{ENVIRONMENT, Loaded, load};
pub use show::show;

/// The whole file.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(title = "bao-kms-provider configuration")]
pub struct Config {
    /// The version of this file's format.
    pub config_version: ConfigVersion,
    /// One socket, one key identity, one login, one stack and one backend each.
    #[schemars(length(min = 1, max = 64))]
    pub pipelines: Vec<Pipeline>,
    /// Where logs, metrics and traces go.
    #[serde(default)]
    pub telemetry: crate::telemetry::Config,
    /// What becomes of this process's memory.
    #[serde(default)]
    pub memory: crate::host::lock::Config,
    /// Metrics, liveness and readiness over HTTP; off when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin: Option<crate::host::admin::Config>,
}

/// The version of the file's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ConfigVersion {
    /// The only one there is.
    V1,
}

/// One pipeline.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Pipeline {
    /// Label for logs, metrics and overlays; unique in the file.
    #[schemars(regex(pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"))]
    pub name: String,
    /// Where kube-apiserver finds the pipeline.
    pub socket: crate::front::Config,
    /// The same on every node; goes into every key_id; keep it with the etcd backups.
    pub identity: crate::key::identity::Config,
    /// How a token is obtained.
    pub auth: crate::auth::Config,
    /// What wraps the seeds.
    pub backend: crate::backend::Config,
    /// Settings of the stack.
    #[serde(default)]
    pub layers: crate::layers::Config,
    /// When a new Transit version is taken into use.
    #[serde(default)]
    pub rotation: crate::key::config::Rotation,
    /// What Status says when OpenBao is away.
    #[serde(default)]
    pub health: crate::key::config::HealthPolicy,
    /// What a restart remembers of the key; nothing when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub witness: Option<crate::host::witness::Config>,
}
