//! `backend.transit`: where OpenBao is, and which key of which mount is used. Nothing here has a default that could point
//! at another key than the operator meant.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::http::TlsConfig;

/// `backend.transit`: where OpenBao is, and which key of which mount is used.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(rename = "Transit")]
pub struct Config {
    /// Addresses of OpenBao's nodes, `https://host:port`, tried in the order of their health.
    #[schemars(
        length(min = 1, max = 16),
        inner(regex(
            pattern = "^https://([A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?|\\[[0-9A-Fa-f:.]{2,45}\\])(:[0-9]{1,5})?/?$"
        ))
    )]
    pub endpoints: Vec<String>,
    /// The OpenBao namespace in its one canonical spelling; empty for the root namespace. Goes into every key_id.
    #[serde(default)]
    #[schemars(length(max = 1024), regex(pattern = "^([^/%]+(/[^/%]+)*)?$"))]
    pub namespace: String,
    /// The path of the Transit mount.
    #[schemars(regex(pattern = "^[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$"))]
    pub mount: String,
    /// The name of the Transit key. This program never creates it.
    #[schemars(regex(pattern = "^[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?$"))]
    pub key: String,
    /// How OpenBao's certificate is judged.
    #[serde(default)]
    pub tls: TlsConfig,
    /// Hosts, `host:port`, beside the endpoints to which a standby may redirect.
    #[serde(default)]
    #[schemars(inner(regex(
        pattern = "^([A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?|\\[[0-9A-Fa-f:.]{2,45}\\])(:[0-9]{1,5})?$"
    )))]
    pub redirect_hosts: Vec<String>,
}
