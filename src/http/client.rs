//! Building the HTTP client: no proxy from the environment, no redirects, no hidden repeats, keep-alive, HTTP/1.1.

use std::time::Duration;

use super::pipe::PipeOptions;
use super::trust::Material;
use crate::error::{Class, Error};

/// How long a connection, handshake included, may take to be made.
const CONNECT: Duration = Duration::from_secs(2);
/// OpenBao closes idle connections after 5 minutes; closing them first avoids sending into one that just closed.
const IDLE: Duration = Duration::from_secs(60);

/// A client of this material.
pub(super) fn build(material: &Material, options: &PipeOptions) -> Result<reqwest::Client, Error> {
    reqwest::Client::builder()
        .tls_backend_preconfigured(material.tls(options)?)
        .https_only(true)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .tcp_keepalive(Duration::from_secs(15))
        .pool_max_idle_per_host(options.max_idle)
        .pool_idle_timeout(IDLE)
        .user_agent(concat!("bao-kms-provider/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| Error::new(Class::Internal, format!("the HTTP client cannot be built: {error}")))
}
