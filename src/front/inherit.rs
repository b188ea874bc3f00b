//! Sockets that somebody opened before us: the service manager, or the process whose place we take. Handed out by name.

use std::collections::HashMap;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

use super::Source;

/// Inherited sockets that nobody has taken yet, and from when on doors may open.
#[derive(Debug)]
pub struct Inherited {
    sources: Mutex<HashMap<String, Source>>,
    opening: watch::Receiver<bool>,
}

// === impl Inherited ===

impl Inherited {
    /// None.
    pub fn none() -> Self {
        Self::of(HashMap::new(), watch::channel(true).1)
    }

    /// These, to be served when `opening` holds true.
    pub fn of(sources: HashMap<String, Source>, opening: watch::Receiver<bool>) -> Self {
        Self { sources: Mutex::new(sources), opening }
    }

    /// Those of `LISTEN_FDS`, `LISTEN_FDNAMES` and `LISTEN_PID`, the first time; none from then on, because each has
    /// one owner.
    pub fn from_environment() -> Self {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        if TAKEN.swap(true, Ordering::SeqCst) {
            return Self::none();
        }
        let named = match sd_notify::listen_fds_with_names() {
            Ok(named) => named.map(|(fd, name)| (name, Source::Inherited(own(fd)))).collect(),
            Err(error) => {
                tracing::warn!(%error, "the service manager's sockets cannot be used");
                HashMap::new()
            }
        };
        Self::of(named, watch::channel(true).1)
    }

    /// The socket that was opened under this pipeline's name, or the word to bind one.
    pub fn take(&self, pipeline: &str) -> Source {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        sources.remove(pipeline).unwrap_or(Source::Bind)
    }

    /// Lets go of those that nobody took, so that callers meet a closed door instead of one that nobody will open.
    pub fn forget(&self) {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Holds true from when on doors may open.
    pub fn opening(&self) -> watch::Receiver<bool> {
        self.opening.clone()
    }
}

/// Takes a descriptor that the service manager gave to this process.
#[allow(unsafe_code)]
fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: LISTEN_PID named this process, so the descriptors from 3 on were passed to it and to nobody else, and
    // `from_environment` gets here once in a process.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
