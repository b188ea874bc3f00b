//! What the tests of the layers share: bound calls without an API server, and puppets of Transit without OpenBao.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::key::Version;
use crate::key::identity::{Config, Identity};
use crate::request::{Bound, Context, Payload, Reply, secret};

/// Whose key it is.
pub(super) fn identity() -> Identity {
    let name = || "n".to_owned();
    let config = Config {
        provider_name: name(),
        cluster_id: name(),
        openbao_id: name(),
        transit_mount_id: name(),
        key_lineage_id: name(),
        fingerprint: String::new(),
    };
    Identity::of(&config, "")
}

/// Version 1 of some key.
pub(super) fn version() -> Arc<Version> {
    Arc::new(Version::new(&identity(), 1, 1_000))
}

/// A Decrypt of this text, due after `within`.
pub(super) fn decrypt(text: &'static str, within: Duration) -> Bound {
    let mut context = Context::new("u");
    context.deadline = Some(Instant::now() + within);
    Bound { payload: Payload::Decrypt(text.into()), version: version(), context }
}

/// An Encrypt, due after `within`.
pub(super) fn encrypt(within: Duration) -> Bound {
    Bound { payload: Payload::Encrypt(secret(vec![1; 32])), ..decrypt("", within) }
}

/// An opened seed.
pub(super) fn opened() -> Reply {
    Reply::Decrypted(secret(vec![7; 32]))
}
