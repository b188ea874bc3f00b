//! The stable names of log events: the field `event` of every line that an operator may build an alert on.

macro_rules! events {
    ($($constant:ident $name:literal $meaning:literal)+) => {
        $(#[doc = $meaning] pub const $constant: &str = $name;)+
        /// Name and meaning of every event, for the docs.
        pub const ALL: &[(&str, &str)] = &[$(($name, $meaning),)+];
    };
}

events! {
    STARTED "started" "The program runs; sockets follow."
    STOPPING "stopping" "A signal asked for a clean end; calls in flight are finished."
    RELOADED "reloaded" "The configuration was read again and took effect."
    RELOAD_REFUSED "reload_refused" "The configuration was read again and refused; what ran goes on."
    HANDING_OVER "handing_over" "A new process was started to take the sockets over; this one serves until it is ready."
    HANDED_OVER "handed_over" "The new process serves the sockets; the one before finishes its calls and ends."
    HAND_OVER_REFUSED "hand_over_refused" "No new process took the sockets over; the one that served them goes on."
    SOCKET_READY "socket_ready" "A pipeline's socket accepts connections."
    SOCKET_REFUSED "socket_refused" "A pipeline's socket cannot be had; it is tried again."
    PEER_REFUSED "peer_refused" "A connection came from a user that is not allowed."
    STATUS_CHANGED "status_changed" "What Status says has changed."
    VIEW_CHANGED "view_changed" "The active key version or the set of versions has changed."
    WITNESS_MISSING "witness_missing" "`witness.file` says nothing of the key: this start takes it for what it is. Nobody is to be asked at the first start with this file; at a later one ask why."
    WITNESS_TROUBLE "witness_trouble" "`witness.file` cannot be read or written; calls are served all the same."
    KEY_FINDING "key_finding" "A property of the key is remarkable."
    LOGIN_SUCCEEDED "login_succeeded" "A token was obtained."
    LOGIN_FAILED "login_failed" "No token could be obtained; it is tried again."
    TOKEN_RENEWED "token_renewed" "The token's lease was extended."
    TOKEN_REVOKED "token_revoked" "The token was given back at the end."
    CREDENTIAL_FINDING "credential_finding" "The login credential has a remarkable property, such as an expiry that is near."
    TRUST_LOADED "trust_loaded" "Trust roots were loaded; the line says from where."
    CALLS_FAILED "calls_failed" "Summary: how many calls failed with this class in the last minute."
    PANIC "panic" "A defect: a call, what several calls share, or the keeper of a key panicked. Callers were answered with an internal error."
    EXPORTER_TROUBLE "exporter_trouble" "Traces cannot be delivered; calls are not affected."
    LOG_LINES_DROPPED "log_lines_dropped" "Whatever reads the log was slower than it; lines were dropped, and no call waited."
    MEMORY_NOT_LOCKED "memory_not_locked" "`memory.lock` is asked for and cannot be had; calls are served all the same."
    ADMIN_TROUBLE "admin_trouble" "The admin listener cannot be had; it is tried again."
}
