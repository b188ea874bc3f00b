//! Sockets that somebody opened before us, handed out by name: the service manager, or the process whose place we take.
//! The latter also says what it has seen of each key.

use std::collections::HashMap;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

use super::Source;
use crate::key::Seen;
use crate::telemetry::events;

/// Inherited sockets, and from when on doors may open.
#[derive(Debug)]
pub struct Inherited {
    offers: Mutex<HashMap<String, Offer>>,
    known: Mutex<HashMap<String, Known>>,
    opening: watch::Receiver<bool>,
}

/// A socket and whether a pipeline has asked for it.
#[derive(Debug)]
struct Offer {
    source: Source,
    claimed: bool,
}

/// What the process before us knew of a pipeline's key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Known {
    /// What it had seen.
    pub seen: Seen,
    /// The fingerprint under which it ran: of another key it says nothing.
    pub fingerprint: String,
}

// === impl Inherited ===

impl Inherited {
    /// None.
    pub fn none() -> Self {
        Self::of(HashMap::new(), HashMap::new(), watch::channel(true).1)
    }

    /// These, to be served when `opening` holds true.
    pub fn of(sources: HashMap<String, Source>, known: HashMap<String, Known>, opening: watch::Receiver<bool>) -> Self {
        let offers = sources.into_iter().map(|(name, source)| (name, Offer { source, claimed: false })).collect();
        Self { offers: Mutex::new(offers), known: Mutex::new(known), opening }
    }

    /// Those of `LISTEN_FDS`, `LISTEN_FDNAMES` and `LISTEN_PID`, the first time; none from then on, because each has
    /// one owner.
    pub fn from_environment() -> Self {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        if TAKEN.swap(true, Ordering::SeqCst) {
            return Self::none();
        }
        let mut sources = HashMap::new();
        match sd_notify::listen_fds_with_names() {
            Ok(named) => {
                for (fd, name) in named {
                    let socket = own(fd);
                    if sources.contains_key(&name) {
                        let help = "give each its own FileDescriptorName=: the name of its pipeline";
                        tracing::warn!(
                            event = events::SOCKET_REFUSED,
                            help,
                            "the service manager passes two sockets of the name {name:?}; the second one is not used"
                        );
                        continue;
                    }
                    sources.insert(name, Source::Inherited(socket));
                }
            }
            Err(error) => tracing::warn!(%error, "the service manager's sockets cannot be used"),
        }
        Self::of(sources, HashMap::new(), watch::channel(true).1)
    }

    /// The socket that was opened under this pipeline's name, or the word to bind one. The service manager's is kept as
    /// well: nobody but it can bind that path again, and a reload may come back to it.
    pub fn take(&self, pipeline: &str) -> Source {
        let mut offers = self.offers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Offer { source: Source::Inherited(socket), claimed }) = offers.get_mut(pipeline)
            && let Ok(copy) = socket.try_clone()
        {
            *claimed = true;
            return Source::Inherited(copy);
        }
        offers.remove(pipeline).map_or(Source::Bind, |offer| offer.source)
    }

    /// The names of those that nobody has asked for.
    pub fn unclaimed(&self) -> Vec<String> {
        let offers = self.offers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut names: Vec<String> =
            offers.iter().filter(|(_, offer)| !offer.claimed).map(|(name, _)| name.clone()).collect();
        names.sort();
        names
    }

    /// Lets go of those that nobody took, so that callers meet a closed door instead of one that nobody will open.
    pub fn forget_unclaimed(&self) {
        self.offers.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, offer| offer.claimed);
    }

    /// What the process before us knew of this pipeline's key. Once: to a pipeline that is taken away and comes back it is old.
    pub fn known(&self, pipeline: &str) -> Option<Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(pipeline)
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
