//! bao-kms-provider stands between a Kubernetes API server and OpenBao, so that what lands in etcd is encrypted.
//!
//! A tour, from the street to the vault. [`front`] is the door: the Unix socket, who may knock, and Status, answered
//! from memory. [`layers`] is the hallway that every Encrypt and Decrypt walks, one layer a file. [`backend`] is the
//! vault room: what Transit is asked and what it answers. [`http`] is the pipe to OpenBao.
//!
//! Beside the path: [`key`] knows what a key is (its ids, annotations, associated data, views and health). [`auth`]
//! obtains tokens and keeps them. [`telemetry`] writes logs, metrics and traces. `dev` is an OpenBao-compatible
//! server for the quick start and the tests.
//!
//! Above the path: `cli` holds one file per command, [`config`] loads and checks the file, [`host`] builds pipelines
//! from it and runs them. [`request`], [`error`], [`units`] and [`plugin`] are the language that the rooms share.

pub mod auth;
pub mod backend;
pub mod cli;
pub mod config;
#[cfg(feature = "dev")]
pub mod dev;
pub mod error;
pub mod files;
pub mod front;
pub mod host;
pub mod http;
pub mod key;
pub mod layers;
pub mod plugin;
pub mod request;
pub mod telemetry;
pub mod units;
