//! The door: the Unix socket, who may knock, and KMS v2 turned into our own words and back. Status is answered here, from
//! memory.

mod authority;
pub mod client;
mod config;
mod connection;
pub mod handover;
mod inherit;
mod peers;
mod quiet;
mod rules;
mod server;
mod service;
mod socket;
mod status_code;
#[allow(missing_docs, clippy::all, clippy::pedantic)]
#[rustfmt::skip]
pub mod v2;

pub use config::{AllowPeers, Config};
pub use inherit::{Inherited, Known};
pub use rules::Rules;
pub use server::{Bounds, Door, PARTING, serve};
pub use socket::{Socket, SocketError, Source, acquire, fit};
pub use status_code::code as grpc_code;
