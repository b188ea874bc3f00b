//! The `admin` section: where metrics and readiness are served.

use std::net::SocketAddr;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::ADDRESS_PATTERN;

/// `admin`: metrics, liveness and readiness over HTTP; off when absent.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(rename = "Admin")]
pub struct Config {
    /// Address and port. Other than loopback only with tls.
    #[schemars(with = "String", regex(pattern = ADDRESS_PATTERN))]
    pub listen: SocketAddr,
    /// Serves TLS and wants a client certificate from everybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
}

/// `admin.tls`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(rename = "AdminTls")]
pub struct Tls {
    /// PEM file with the server certificate and its chain.
    #[schemars(length(min = 1))]
    pub cert_file: PathBuf,
    /// PEM file with its private key.
    #[schemars(length(min = 1))]
    pub key_file: PathBuf,
    /// PEM file with the CA of the clients that may read.
    #[schemars(length(min = 1))]
    pub client_ca_file: PathBuf,
}
