//! Building the HTTP client: no proxy from the environment, no redirects, no hidden repeats, HTTP/1.1 keep-alive. It is
//! built anew when its files change, because connections and resumption tickets never ask a verifier again.

use std::time::Duration;

use rustls::ClientConfig;

use crate::error::{Class, Error};

/// How long a connection, handshake included, may take to be made.
const CONNECT: Duration = Duration::from_secs(2);
/// OpenBao closes idle connections after 5 minutes; closing them first avoids sending into one that just closed.
const IDLE: Duration = Duration::from_secs(60);
/// A peer that vanished without a word is noticed on idle connections too.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A client that keeps `max_idle` connections to each address.
pub(super) fn build(tls: ClientConfig, max_idle: usize) -> Result<reqwest::Client, Error> {
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .https_only(true)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .tcp_keepalive(KEEP_ALIVE)
        .pool_max_idle_per_host(max_idle)
        .pool_idle_timeout(IDLE)
        .user_agent(concat!("bao-kms-provider/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| Error::new(Class::Internal, format!("the HTTP client cannot be built: {error}")))
}
