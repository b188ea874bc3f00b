//! What a login or renewal grants, and when to act on it. Reckoned from `lease_duration` on the monotonic clock alone,
//! because standbys may tell outdated expiry times and a node's wall clock may be wrong.

use std::time::Duration;

use secrecy::SecretString;
use serde::Deserialize;
use tokio::time::Instant;

use crate::error::{Class, Error};
use crate::request::BaoReply;

/// No lease is reckoned longer; it keeps a nonsensical duration from overflowing the clock.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3_600);

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
    #[serde(default)]
    client_token: Option<SecretString>,
    #[serde(default)]
    lease_duration: u64,
    #[serde(default)]
    renewable: bool,
    #[serde(default)]
    mfa_requirement: Option<serde::de::IgnoredAny>,
}

// === impl Lease ===

impl Lease {
    /// The lease that a reply to a login or renewal grants.
    ///
    /// # Errors
    /// `login_refused` when OpenBao said no; the class of the absence when it is not able to say anything, or something
    /// else answered in its place.
    pub(super) fn of(reply: &BaoReply, asked: Instant) -> Result<Self, Error> {
        if reply.status == 200 { Self::parse(reply, asked) } else { Err(refusal(reply)) }
    }

    fn parse(reply: &BaoReply, asked: Instant) -> Result<Self, Error> {
        let bad = || Error::new(Class::BadReply, "the answer to the login is not OpenBao's");
        let envelope: Envelope = serde_json::from_slice(&reply.body).map_err(|_| bad())?;
        let grant = envelope.auth.ok_or_else(bad)?;
        if grant.mfa_requirement.is_some() {
            let detail = "the login wants a second factor, which a service cannot give";
            return Err(Error::new(Class::LoginRefused, detail));
        }
        Ok(Self {
            token: grant.client_token.ok_or_else(bad)?,
            granted: asked,
            duration: Duration::from_secs(grant.lease_duration).min(LONGEST),
            renewable: grant.renewable,
        })
    }

    /// When it is time to renew or log in again: after two thirds or a little earlier, different on each node. `None`: a
    /// lease of zero never ends.
    pub(super) fn act_at(&self) -> Option<Instant> {
        let share = (2.0 / 3.0) * (0.9 + 0.1 * fastrand::f64());
        (!self.duration.is_zero()).then(|| self.granted + self.duration.mul_f64(share))
    }

    /// When the token is no good any more; `None`: never.
    pub(super) fn ends_at(&self) -> Option<Instant> {
        (!self.duration.is_zero()).then(|| self.granted + self.duration)
    }
}

/// Status first, then the few texts that change what a status means (`openbao.md` A.8, B.3).
fn refusal(reply: &BaoReply) -> Error {
    let Some(errors) = reply.errors() else {
        return reply.of_a_stranger();
    };
    let says = |text: &str| errors.iter().any(|error| error.contains(text));
    let of = |class, detail: &str| Error::new(class, format!("{detail} (HTTP {})", reply.status));
    match reply.status {
        404 if says("namespace not found") => of(Class::NamespaceMissing, "the namespace does not exist"),
        400 | 401 | 403 | 404 | 405 => of(Class::LoginRefused, "OpenBao refuses the credential, the role or the mount"),
        429 => of(Class::RateLimited, "OpenBao limits the rate of logins").with_retry_after(reply.retry_after),
        503 if says("sealed") || says("has been locked") => of(Class::Sealed, "OpenBao or its namespace is sealed"),
        500 if says("local node not active") => of(Class::NoLeader, "no active node is known"),
        502..=504 => of(Class::NoLeader, "no node serves logins"),
        500..=599 => of(Class::ServerError, "internal error of OpenBao"),
        _ => of(Class::BadReply, "an answer that OpenBao does not give"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(status: u16, body: &str) -> Result<Lease, Error> {
        let body = body.to_owned().into();
        let reply = BaoReply { status, body, date: None, retry_after: None, location: None, endpoint: Some(0) };
        Lease::of(&reply, Instant::now())
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_acted_on_after_two_thirds() {
        let lease =
            of(200, r#"{"auth":{"client_token":"s.x","lease_duration":900,"renewable":true}}"#).expect("a lease");
        for _ in 0..50 {
            let after = lease.act_at().expect("it ends") - lease.granted;
            assert!(after >= Duration::from_secs(540) && after <= Duration::from_secs(600), "{after:?}");
        }
        assert_eq!(lease.ends_at(), Some(lease.granted + Duration::from_secs(900)));
    }

    #[test]
    fn a_lease_of_zero_never_ends_and_an_absurd_one_does_not_overflow() {
        let lease = of(200, r#"{"auth":{"client_token":"s.x","lease_duration":0}}"#).expect("a lease");
        assert_eq!((lease.act_at(), lease.ends_at(), lease.renewable), (None, None, false));
        let text = format!(r#"{{"auth":{{"client_token":"s.x","lease_duration":{}}}}}"#, u64::MAX);
        assert!(of(200, &text).expect("a lease").ends_at().is_some());
    }

    #[test]
    fn each_refusal_has_its_class() {
        for (status, body, class) in [
            (200, r#"{"auth":null}"#, Class::BadReply),
            (200, r#"{"auth":{"lease_duration":1}}"#, Class::BadReply),
            (200, "<html>", Class::BadReply),
            (200, r#"{"auth":{"client_token":"","mfa_requirement":{"mfa_request_id":"x"}}}"#, Class::LoginRefused),
            (400, r#"{"errors":["error validating token: x"]}"#, Class::LoginRefused),
            (403, r#"{"errors":["permission denied"]}"#, Class::LoginRefused),
            (404, r#"{"errors":["namespace not found"]}"#, Class::NamespaceMissing),
            (
                404,
                r#"{"errors":["no handler for route \"auth/x/login\". route entry not found."]}"#,
                Class::LoginRefused,
            ),
            (429, r#"{"errors":[]}"#, Class::RateLimited),
            (500, r#"{"errors":["internal error"]}"#, Class::ServerError),
            (500, r#"{"errors":["local node not active but active cluster node not found"]}"#, Class::NoLeader),
            (502, "<html>", Class::NoLeader),
            (400, "<html>", Class::BadReply),
            (401, "", Class::BadReply),
            (403, "<html>blocked", Class::BadReply),
            (403, r#"{"message":"blocked"}"#, Class::BadReply),
            (404, "<html>not found", Class::BadReply),
            (429, "slow down", Class::RateLimited),
            (503, r#"{"errors":["Vault is sealed"]}"#, Class::Sealed),
            (503, r#"{"errors":["namespace is sealed"]}"#, Class::Sealed),
            (418, "", Class::BadReply),
        ] {
            let error = of(status, body).err().expect("a refusal");
            assert_eq!(error.class(), class, "{status} {body}");
            assert!(!error.detail().contains("auth/x"), "no text of OpenBao's goes on");
        }
    }
}
