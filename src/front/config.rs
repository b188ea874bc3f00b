//! The `socket` section of a pipeline.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::Mode;

/// `socket`: where kube-apiserver finds the pipeline, and who may connect.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(rename = "Socket")]
pub struct Config {
    /// Absolute path of the socket, at most 100 bytes.
    #[schemars(with = "String", regex(pattern = "^/.{1,99}$"))]
    pub path: PathBuf,
    /// Its mode, right from the first instant; for everybody only beside allowPeers. Default "0660".
    #[serde(default = "default_mode")]
    pub mode: Mode,
    /// Its group, by name or number; this process's group when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub group: Option<String>,
    /// Whether the last component of the socket's directory is made when it is missing, with mode 0750. Default false.
    #[serde(default)]
    pub create_directory: bool,
    /// Whether API servers before Kubernetes 1.32 are understood, which name the escaped path of the socket as the authority
    /// of their calls. Costs others nothing after their first call. Default true.
    #[serde(default = "default_true")]
    pub escaped_authority: bool,
    /// Who may connect, beyond what the mode says.
    #[serde(default)]
    pub allow_peers: AllowPeers,
}

/// `socket.allowPeers`: whoever matches one of the lists may connect; both empty: the mode alone decides.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct AllowPeers {
    /// User ids.
    pub uids: Vec<u32>,
    /// Group ids, primary or supplementary.
    pub gids: Vec<u32>,
}

fn default_true() -> bool {
    true
}

fn default_mode() -> Mode {
    Mode::new(0o660)
}
