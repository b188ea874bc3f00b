//! An OpenBao-compatible server for the quick start and the tests, with what stands around it: credentials, the set-up
//! that any OpenBao needs, and the contract that holds the server to real OpenBao. Nothing on the path imports it.

pub mod certificate;
pub mod client;
pub mod contract;
pub mod jwt;
pub mod provision;
pub mod server;
