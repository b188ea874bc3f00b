//! What a login or renewal grants, and when to act on it. Reckoned from `lease_duration` on the monotonic clock alone.

use std::time::Duration;

use secrecy::SecretString;
use serde::Deserialize;
use tokio::time::Instant;

use crate::error::{Class, Error};
use crate::request::BaoReply;

/// A granted lease.
pub(super) struct Lease {
    pub(super) token: SecretString,
    pub(super) granted: Instant,
    pub(super) duration: Duration,
    pub(super) renewable: bool,
}

#[derive(Deserialize)]
struct Envelope {
    auth: Option<Grant>,
}

#[derive(Deserialize)]
struct Grant {
    client_token: SecretString,
    lease_duration: u64,
    #[serde(default)]
    renewable: bool,
    #[serde(default)]
    mfa_requirement: Option<serde::de::IgnoredAny>,
}

// === impl Lease ===

impl Lease {
    /// The lease that a reply of status 200 grants.
    pub(super) fn parse(reply: &BaoReply, asked: Instant) -> Result<Self, Error> {
        let bad = || Error::new(Class::BadReply, "the answer to the login is not OpenBao's");
        let envelope: Envelope = serde_json::from_slice(&reply.body).map_err(|_| bad())?;
        let grant = envelope.auth.ok_or_else(bad)?;
        if grant.mfa_requirement.is_some() {
            return Err(Error::new(
                Class::LoginRefused,
                "the login wants a second factor, which a service cannot give",
            ));
        }
        Ok(Self {
            token: grant.client_token,
            granted: asked,
            duration: Duration::from_secs(grant.lease_duration),
            renewable: grant.renewable,
        })
    }

    /// When it is time to renew or log in again: after two thirds, a little earlier or later on each node. A lease of
    /// zero never ends.
    pub(super) fn act_at(&self) -> Option<Instant> {
        let share = 0.62 + 0.08 * fastrand::f64();
        (!self.duration.is_zero()).then(|| self.granted + self.duration.mul_f64(share))
    }

    /// When the token is no good any more; `None`: never.
    pub(super) fn ends_at(&self) -> Option<Instant> {
        (!self.duration.is_zero()).then(|| self.granted + self.duration)
    }
}
