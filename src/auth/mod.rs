//! How a token is obtained and kept: login methods, a file each, and one session that renews. Tokens live in memory only.

mod backoff;
pub mod cert;
pub mod jwt;
mod lease;
mod papers;
mod renewal;
mod session;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

pub use backoff::REPAIR_INTERVAL;
pub use session::{Session, Token};

use crate::error::Error;
use crate::request::BaoCall;

crate::plugin_choice! {
    /// `auth`: how a token is obtained; a map with exactly one key.
    #[schemars(rename = "Auth")]
    pub enum Config in "auth" as dyn Login {
        "jwt" => Jwt(jwt::Config): "A JWT from a file, which somebody outside the protected cluster issues and renews.", "The default: needs no key material of its own and is short-lived.";
        "cert" => Cert(cert::Config): "A client certificate and its key.", "For nodes that have a machine identity, from files.";
    }
}

/// What the configuration of a login method offers. It stands beside the method, so that a new one is a file and a line.
pub trait Login {
    /// The method.
    fn method(&self) -> Arc<dyn Method>;

    /// The files that it names, each with its key.
    fn files(&self) -> Vec<(&'static str, &Path)>;

    /// Certificate and key that the TLS connection itself must show, when the method wants that.
    fn client_identity(&self) -> Option<(PathBuf, PathBuf)> {
        None
    }
}

/// What a login method does: makes the login call from what its files hold now.
pub trait Method: Send + Sync {
    /// The login call and what the credential says of itself. Files are read at each call, so that it may block; a call that
    /// is not made costs nothing.
    ///
    /// # Errors
    /// `credential_unavailable` when a file is missing or unusable.
    fn login(&self) -> Result<Attempt, Error>;

    /// Whether the token is bound to the certificate of the connection. Then what connections are made of stays as it is
    /// between two logins: OpenBao renews such a token for the same certificate alone (`openbao.md`).
    fn binds_connection(&self) -> bool {
        false
    }
}

/// One login about to be made.
#[derive(Debug)]
pub struct Attempt {
    /// The call; anonymous, with the namespace header.
    pub call: BaoCall,
    /// When the credential expires by its own word, Unix seconds.
    pub expires_unix: Option<u64>,
    /// When what is remarkable about it changes by itself, Unix seconds: shortly before it expires, and when it does.
    pub changes_unix: Option<u64>,
    /// What is remarkable about the credential. Never stops a login: the node's clock may be wrong, OpenBao decides.
    pub findings: Vec<String>,
}

// === impl Config ===

impl Config {
    /// The method that the configuration names.
    pub fn method(&self) -> Arc<dyn Method> {
        self.chosen().method()
    }

    /// Certificate and key that the TLS connection itself must show, when the method wants that.
    pub fn client_identity(&self) -> Option<(PathBuf, PathBuf)> {
        self.chosen().client_identity()
    }
}

/// The first of these moments that is still to come, Unix seconds.
fn upcoming(now: SystemTime, moments: impl IntoIterator<Item = u64>) -> Option<u64> {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    moments.into_iter().filter(|moment| *moment > now).min()
}
