//! Sockets that the service manager opened for us: read from the environment once, handed out by name.

use std::collections::HashMap;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use super::Source;

/// Inherited sockets that nobody has taken yet.
#[derive(Debug, Default)]
pub struct Inherited(Mutex<HashMap<String, OwnedFd>>);

// === impl Inherited ===

impl Inherited {
    /// None.
    pub fn none() -> Self {
        Self::default()
    }

    /// Those of `LISTEN_FDS`, `LISTEN_FDNAMES` and `LISTEN_PID`, the first time; none from then on, because each has
    /// one owner.
    pub fn from_environment() -> Self {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        if TAKEN.swap(true, Ordering::SeqCst) {
            return Self::none();
        }
        let named = match sd_notify::listen_fds_with_names() {
            Ok(named) => named.map(|(fd, name)| (name, own(fd))).collect(),
            Err(error) => {
                tracing::warn!(%error, "the service manager's sockets cannot be used");
                HashMap::new()
            }
        };
        Self(Mutex::new(named))
    }

    /// The socket that the service manager opened under this pipeline's name, or the word to bind one.
    pub fn take(&self, pipeline: &str) -> Source {
        let mut named = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        named.remove(pipeline).map_or(Source::Bind, Source::Inherited)
    }
}

/// Takes a descriptor that the service manager gave to this process.
#[allow(unsafe_code)]
fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: LISTEN_PID named this process, so the descriptors from 3 on were passed to it and to nobody else, and
    // `from_environment` gets here once in a process.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
