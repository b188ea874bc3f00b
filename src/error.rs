//! One list of error classes, shared by logs, metrics, Status, gRPC answers and docs. An [`Error`] says what went wrong,
//! where the fault lies, whether trying again can help, and what the operator can do.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use crate::request::Stage;

/// Where the cause of an error lies.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Fault {
    /// The caller of the socket: the call itself is wrong.
    Caller,
    /// This program, its node or its files.
    Us,
    /// OpenBao, or the way to it.
    OpenBao,
}

/// Whether repeating a call can help.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Repeat {
    /// The answer is final.
    Never,
    /// It may have done work: repeats are bounded by count and budget.
    Counted,
    /// It did no work: repeats are bounded by the deadline and jittered back-off alone.
    Free,
}

/// What a class means for Status.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Bearing {
    /// Says nothing about the health of the whole path.
    None,
    /// OpenBao is away: `ok` while the last success is younger than `health.tolerance`.
    Absence,
    /// Touches the key or the right to use it: shown at once.
    Key,
}

macro_rules! classes {
    ($($variant:ident $name:literal $fault:ident $repeat:ident $bearing:ident $meaning:literal $help:literal)+) => {
        /// What went wrong, as one word that never changes its meaning between releases.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        pub enum Class { $(#[doc = $meaning] $variant,)+ }

        impl Class {
            /// Every class, in the order of the docs.
            pub const ALL: &'static [Class] = &[$(Class::$variant,)+];

            /// The word that stands in logs, metrics, Status and the docs.
            pub const fn name(self) -> &'static str { match self { $(Self::$variant => $name,)+ } }

            /// What it means, as a sentence without anything secret.
            pub const fn meaning(self) -> &'static str { match self { $(Self::$variant => $meaning,)+ } }

            /// What the operator does about it.
            pub const fn help(self) -> &'static str { match self { $(Self::$variant => $help,)+ } }

            /// Where the cause lies.
            pub const fn fault(self) -> Fault { match self { $(Self::$variant => Fault::$fault,)+ } }

            /// Whether repeating can help.
            pub const fn repeat(self) -> Repeat { match self { $(Self::$variant => Repeat::$repeat,)+ } }

            /// What it means for Status.
            pub const fn bearing(self) -> Bearing { match self { $(Self::$variant => Bearing::$bearing,)+ } }
        }
    };
}

classes! {
    InvalidRequest "invalid_request" Caller Never None
        "The call is malformed." "Only kube-apiserver should use this socket; check what else connects to it."
    TooLarge "too_large" Caller Never None
        "A field of the call is larger than KMS v2 allows." "Only kube-apiserver should use this socket; check what else connects to it."
    KeyIdMalformed "key_id_malformed" Caller Never None
        "The key_id was not written by this program." "The object was encrypted by another provider: keep that provider in the EncryptionConfiguration until it is rewritten."
    KeyIdUnknown "key_id_unknown" Caller Never None
        "The key_id belongs to no version of this key." "Compare `identity` with the file that wrote the object; a recreated key or a changed identity cannot open old objects."
    AnnotationsInvalid "annotations_invalid" Caller Never None
        "The annotations are missing, malformed or disagree with the key." "The stored object was changed or written under another identity: restore it from a backup, or restore the identity."
    CiphertextInvalid "ciphertext_invalid" Caller Never None
        "The ciphertext is not one that this key made." "The stored object was changed or the key was recreated: restore the object or the key from a backup."
    VersionTooOld "version_too_old" Caller Never None
        "The key version is below a minimum of the key." "Lower min_decryption_version of the Transit key, rewrite all objects, then raise it again. If Encrypt says so, look at min_encryption_version."
    Starting "starting" Us Never Absence
        "The key has not been read and tried yet." "Wait; if it stays, the log names what keeps the first look from succeeding."
    Overloaded "overloaded" Us Never None
        "More calls are waiting than the queue holds." "Look at the latency of OpenBao; raise layers.admit.maxQueued if the bursts are expected."
    DeadlineExceeded "deadline_exceeded" Us Never None
        "The time for the call ran out." "The message names the part that was slow; look at the latency of OpenBao."
    Cancelled "cancelled" Us Never None
        "The caller hung up." "Nothing, unless it is frequent: then the caller's timeout is too short."
    Internal "internal" Us Never None
        "A defect of this program." "Please report it with the log lines around it."
    CredentialUnavailable "credential_unavailable" Us Never Key
        "The login credential cannot be read or used." "The log names the file: it must exist, belong to root or this service, and be readable by nobody else."
    TrustUnavailable "trust_unavailable" Us Never Key
        "The CA file cannot be read or used." "The log names the file: it must be PEM, belong to root or this service, and be writable by nobody else."
    FingerprintMismatch "fingerprint_mismatch" Us Never Key
        "The pinned identity fingerprint differs from the configuration." "Undo the change that the log names, or pin the new fingerprint if no object was ever written under the old one."
    Unreachable "unreachable" OpenBao Free Absence
        "No connection to OpenBao." "Check that OpenBao listens at the configured endpoints and that the network lets us through."
    NameResolution "name_resolution" OpenBao Free Absence
        "The name of an OpenBao endpoint does not resolve." "Check DNS on this node; it must not depend on the protected cluster."
    Tls "tls" OpenBao Counted Absence
        "The TLS handshake with OpenBao failed." "Check tls.caFile and tls.serverName against the certificate that OpenBao shows, and its validity."
    ConnectionLost "connection_lost" OpenBao Counted Absence
        "The connection to OpenBao broke during an exchange." "Look at OpenBao's log and at the network between."
    Timeout "timeout" OpenBao Counted Absence
        "OpenBao did not answer in time." "Look at the load of OpenBao and at the network between."
    Sealed "sealed" OpenBao Free Absence
        "OpenBao is sealed." "Unseal OpenBao."
    NoLeader "no_leader" OpenBao Free Absence
        "OpenBao has no active node." "Wait for the election; if it lasts, look at OpenBao's cluster."
    RateLimited "rate_limited" OpenBao Counted Absence
        "OpenBao limits our rate." "Raise the rate limit quota for this mount or lower layers.admit.maxInFlight."
    ServerError "server_error" OpenBao Counted Absence
        "OpenBao answered with an internal error." "Look at OpenBao's log at the time of ours."
    BadReply "bad_reply" OpenBao Counted Absence
        "The answer is not one that OpenBao gives." "Check that the endpoint is OpenBao and not a proxy or another service."
    StaleNode "stale_node" OpenBao Counted None
        "An OpenBao node lags behind the others." "Nothing, unless it lasts: then look at the replication of OpenBao."
    RedirectRefused "redirect_refused" OpenBao Counted Absence
        "OpenBao redirects to a host that is not listed." "Add the host to backend.transit.endpoints or redirectHosts if it is one of yours."
    TokenRejected "token_rejected" OpenBao Never Key
        "OpenBao refuses a fresh token or the policy no longer allows the call." "Check the policy of the login role: update on encrypt and decrypt, read on the key."
    LoginRefused "login_refused" OpenBao Never Key
        "OpenBao refuses the login." "Check the role, its bound claims, and the validity of the JWT or certificate."
    NamespaceMissing "namespace_missing" OpenBao Never Key
        "The namespace does not exist." "Check backend.transit.namespace."
    MountMissing "mount_missing" OpenBao Never Key
        "No Transit engine is mounted there." "Check backend.transit.mount."
    KeyMissing "key_missing" OpenBao Never Key
        "The Transit key does not exist." "Check backend.transit.key; restore the key from a backup if it was deleted. A new key of the same name cannot open old objects."
    KeySoftDeleted "key_soft_deleted" OpenBao Never Key
        "The Transit key is soft-deleted." "Restore it with soft-delete-restore."
    KeyUnusable "key_unusable" OpenBao Never Key
        "The Transit key cannot be used for this." "The findings in the log and at /readyz name the property; the key must be an AEAD type without derivation."
    KeyRolledBack "key_rolled_back" OpenBao Never Key
        "The Transit key is older than what was seen before: it was restored from a snapshot or recreated." "Restore the newest backup of the key, and restart no API server before: the seeds it has opened may be the last copies. Only if what the key lost is accepted, remove its witness file if it has one and restart this program: objects written under the lost versions stay closed."
    WrongVersion "wrong_version" OpenBao Counted None
        "OpenBao encrypted with another version than asked." "Check that nothing between us and OpenBao rewrites requests."
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An error on the path, cheap to clone because coalesced callers share it.
///
/// `detail` is for the operator's log: it may name files, endpoints and statuses, never key material, tokens or
/// text that came from OpenBao. What a caller of the socket sees is [`Error::public`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    class: Class,
    detail: Cow<'static, str>,
    version: Option<u32>,
    stage: Option<Stage>,
    reason: Option<Class>,
    retry_after: Option<Duration>,
    shared_by: u32,
}

// === impl Error ===

impl Error {
    /// An error of a class, with a detail for the log.
    pub fn new(class: Class, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { class, detail: detail.into(), version: None, stage: None, reason: None, retry_after: None, shared_by: 1 }
    }

    /// Names the key version that the error is about.
    pub fn with_version(mut self, version: u32) -> Self {
        self.version = Some(version);
        self
    }

    /// Names the part of the path in which the time was spent.
    pub fn with_stage(mut self, stage: Stage) -> Self {
        self.stage = Some(stage);
        self
    }

    /// Names what kept the call from being answered before its time ran out.
    pub fn with_reason(mut self, reason: Class) -> Self {
        self.reason = Some(reason);
        self
    }

    /// Keeps OpenBao's `Retry-After`.
    pub fn with_retry_after(mut self, after: Option<Duration>) -> Self {
        self.retry_after = after;
        self
    }

    /// Says that one exchange failed for so many calls at once.
    pub fn with_shared_by(mut self, calls: usize) -> Self {
        self.shared_by = u32::try_from(calls).unwrap_or(u32::MAX).max(1);
        self
    }

    /// What went wrong.
    pub fn class(&self) -> Class {
        self.class
    }

    /// For the log only.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// The key version that the error is about.
    pub fn version(&self) -> Option<u32> {
        self.version
    }

    /// The part of the path in which the time was spent.
    pub fn stage(&self) -> Option<Stage> {
        self.stage
    }

    /// What kept the call from being answered before its time ran out.
    pub fn reason(&self) -> Option<Class> {
        self.reason
    }

    /// How long OpenBao asked us to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// How many calls met it in one exchange. At least 1.
    pub fn shared_by(&self) -> u32 {
        self.shared_by
    }

    /// The sentence that leaves the socket: class and meaning, a version, a stage or a reason where there is one, and nothing else.
    pub fn public(&self) -> String {
        let mut text = format!("{}: {}", self.class.name(), self.class.meaning());
        if let Some(version) = self.version {
            text.push_str(&format!(" (key version {version})"));
        }
        if let Some(stage) = self.stage {
            text.push_str(&format!(" (slow part: {})", stage.name()));
        }
        if let Some(reason) = self.reason {
            text.push_str(&format!(" (because of {})", reason.name()));
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.class.name())?;
        if let Some(version) = self.version {
            write!(f, " (key version {version})")?;
        }
        if !self.detail.is_empty() {
            write!(f, ": {}", self.detail)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

impl From<Class> for Error {
    fn from(class: Class) -> Self {
        Self::new(class, "")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_fit_a_metric_label() {
        let mut names: Vec<_> = Class::ALL.iter().map(|class| class.name()).collect();
        assert!(names.iter().all(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Class::ALL.len());
    }

    #[test]
    fn what_leaves_the_socket_holds_no_detail() {
        let error = Error::new(Class::KeyMissing, "transit/keys/secret-name at bao-0").with_version(3);
        assert_eq!(error.public(), "key_missing: The Transit key does not exist. (key version 3)");
    }
}
