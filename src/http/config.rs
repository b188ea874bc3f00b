//! The `tls` section of a backend: which certificates are believed, and under which name. What it points to is read at
//! run time, so that a missing file is a reason that heals and not an exit.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `tls`: how OpenBao's certificate is judged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[schemars(rename = "Tls")]
pub struct TlsConfig {
    /// PEM file with the CA certificates that sign OpenBao's certificate; replaces the system's roots, which are used when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub ca_file: Option<PathBuf>,
    /// The DNS name or IP address that OpenBao's certificate must carry, when it is not the host of the endpoint. The
    /// handshake itself names the endpoint's host, as without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^[A-Za-z0-9_:]([A-Za-z0-9_.:-]{0,251}[A-Za-z0-9_:])?$"))]
    pub server_name: Option<String>,
}
