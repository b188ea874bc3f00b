//! What a door asks of its callers. A reload may change it while the door is open: connections that are there are asked
//! again before the next byte of theirs is read.

use super::{AllowPeers, Config};

/// The part of the `socket` section that holds for each connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Who may connect.
    pub allow_peers: AllowPeers,
    /// `socket.escapedAuthority`; a connection keeps what held when it was made.
    pub escaped_authority: bool,
}

// === impl Rules ===

impl Rules {
    /// Those of a `socket` section.
    pub fn of(config: &Config) -> Self {
        Self { allow_peers: config.allow_peers.clone(), escaped_authority: config.escaped_authority }
    }
}
