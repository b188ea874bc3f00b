//! What the tests stand on: real components as child processes in folders of their own, on free loopback ports, gone when
//! their guard drops. When a test fails, the end of each log is shown.

pub mod apiserver;
pub mod etcd;
pub mod load;
pub mod openbao;
pub mod pki;
pub mod process;
pub mod provider;
pub mod repeat;
pub mod successor;
pub mod wait;

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex, Once, PoisonError};

/// The path of a real component. Panics with the remedy when it is not there.
pub fn component(name: &str) -> PathBuf {
    let folder = std::env::var_os("BAO_KMS_COMPONENTS").expect("BAO_KMS_COMPONENTS is not set: start tests/real/run");
    let path = PathBuf::from(folder).join(name);
    assert!(path.exists(), "{} is missing: start tests/real/run", path.display());
    path
}

/// A loopback port that nobody listens on and that this process has not given out before.
pub fn free_port() -> u16 {
    static GIVEN: LazyLock<Mutex<BTreeSet<u16>>> = LazyLock::new(Mutex::default);
    loop {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port").port();
        if GIVEN.lock().unwrap_or_else(PoisonError::into_inner).insert(port) {
            return port;
        }
    }
}

/// An HTTP client that asks nobody who the other side is: everything here is on loopback and ours.
pub fn client() -> reqwest::Client {
    static PROVIDER: Once = Once::new();
    // Only fails when a provider is installed already, which is as good.
    PROVIDER.call_once(|| drop(rustls::crypto::aws_lc_rs::default_provider().install_default()));
    let builder = reqwest::Client::builder().no_proxy().timeout(std::time::Duration::from_secs(30));
    builder.tls_danger_accept_invalid_certs(true).build().expect("a client")
}
