//! Logs, metrics and traces: what the program says of itself. Nothing here holds plaintext, ciphertext or tokens, and
//! no trouble of an exporter slows a call.

pub mod events;
pub mod metrics;
