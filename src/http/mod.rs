//! The pipe to OpenBao: one exchange in, one reply or one error out. The only room on the path that names reqwest and
//! rustls.

mod client;
mod config;
mod failure;
mod material;
mod pipe;
mod reply;
mod trust;

pub use config::TlsConfig;
pub use pipe::{Pipe, PipeOptions};
