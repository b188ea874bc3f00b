//! What a key is: identity, key_id, annotations, associated data, the view of its versions, findings, and what Status
//! says of it. Pure: it knows neither gRPC nor HTTP, and time only as a value that is passed in.

pub mod aad;
pub mod annotations;
pub mod check;
pub mod clock;
pub mod config;
pub mod findings;
pub mod id;
pub mod identity;
pub mod metadata;
pub mod refresh;
pub mod seen;
pub mod state;
pub mod view;

pub use check::Refusal;
pub use clock::BaoClock;
pub use findings::{Finding, Severity};
pub use id::KeyId;
pub use identity::{Identity, Pins, same_key};
pub use metadata::Metadata;
pub use refresh::{Due, Refresh, RefreshRequests, Why};
pub use seen::Seen;
pub use state::{Health, KeyState, Outage, StatusReport};
pub use view::{Loss, Version, View};

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// Unpadded base64url of SHA-256: how ids and hashes are written everywhere in the format.
pub fn hash(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, bytes))
}
