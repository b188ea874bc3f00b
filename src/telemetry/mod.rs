//! Logs, metrics and traces: what the program says of itself. Nothing here holds plaintext, ciphertext or tokens, and
//! no trouble of an exporter slows a call.

pub mod config;
pub mod events;
mod exporter;
pub mod logs;
pub mod metrics;
pub mod observed;
pub mod registry;
pub mod tally;
pub mod traces;
mod watched;
mod writer;

pub use config::{Config, TABLE};
pub use logs::{Guard, InitError, init};
