//! Getting a socket: bound by us, inherited from the service manager, or handed over by the process before. Whatever is
//! unsafe or unclear is refused with a sentence that says what to do; only a verified-dead socket is replaced.

mod bind;
mod directory;
mod fit;
mod group;
mod inherited;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use super::Config;

pub use fit::fit;

/// Where a listening socket comes from.
#[derive(Debug)]
pub enum Source {
    /// We bind it.
    Bind,
    /// The service manager bound it and passed it to us.
    Inherited(OwnedFd),
    /// The process before us bound it and passes it on with the lock it holds.
    HandedOver {
        /// The listening socket.
        socket: OwnedFd,
        /// The lock file, locked.
        lock: OwnedFd,
    },
}

/// A listening socket, and the lock that says it is ours. The socket file stays when it is dropped: what comes next
/// replaces it.
#[derive(Debug)]
pub struct Socket {
    pub(super) listener: UnixListener,
    /// Held for as long as the socket is served; the file itself is never removed.
    pub(super) lock: Option<File>,
}

/// Why a socket is refused.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process holds the lock.
    #[error("{path}: another process serves this socket")]
    Locked {
        /// The socket's path.
        path: PathBuf,
    },
    /// The lock file was left behind by another user.
    #[error("{path}: the lock file belongs to uid {owner}, and this service may not open it")]
    ForeignLock {
        /// The lock file's path.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// Somebody answers there.
    #[error("{path}: a process that is not ours accepts connections there")]
    Alive {
        /// The socket's path.
        path: PathBuf,
    },
    /// Something else is at the path.
    #[error("{path}: there is {what} in its place")]
    Occupied {
        /// The socket's path.
        path: PathBuf,
        /// What is there.
        what: &'static str,
    },
    /// There is a socket of which nobody can say whether it is served.
    #[error("{path}: cannot tell whether the socket that is there is dead: {source}")]
    Unclear {
        /// The socket's path.
        path: PathBuf,
        /// What a connection attempt met.
        source: std::io::Error,
    },
    /// A directory above it could be changed by others.
    #[error("{path}: {what}")]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The group does not exist.
    #[error("there is no group {name:?} on this node")]
    NoGroup {
        /// The configured name.
        name: String,
    },
    /// What the service manager passed is not the socket that the file names.
    #[error("the inherited socket is not usable: {what}")]
    Inherited {
        /// What it is instead.
        what: String,
    },
    /// The volume that holds it does not answer.
    #[error("{path}: the volume that holds it does not answer")]
    Hangs {
        /// The socket's path.
        path: PathBuf,
    },
    /// The system says no.
    #[error("{path}: {step}: {source}")]
    Io {
        /// The path.
        path: PathBuf,
        /// What was being done.
        step: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

// === impl Socket ===

impl Socket {
    /// The same listener and lock under other descriptors.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn duplicate(&self) -> std::io::Result<Self> {
        let lock = self.lock.as_ref().map(File::try_clone).transpose()?;
        Ok(Self { listener: self.listener.try_clone()?, lock })
    }

    /// Whether we bound it, or the process before us: then mode and group of its file are ours to set. Those of an
    /// inherited one are the service manager's.
    pub fn is_ours(&self) -> bool {
        self.lock.is_some()
    }

    /// The lock of a socket that is ours under another descriptor; none when the process has no descriptors left.
    pub fn lock(&self) -> Option<File> {
        self.lock.as_ref().and_then(|lock| lock.try_clone().ok())
    }

    /// The same socket, to be acquired once more.
    pub fn into_source(self) -> Source {
        match self.lock {
            Some(lock) => Source::HandedOver { socket: self.listener.into(), lock: lock.into() },
            None => Source::Inherited(self.listener.into()),
        }
    }
}

// === impl SocketError ===

impl SocketError {
    /// What the operator does about it.
    pub fn help(&self) -> &'static str {
        match self {
            Self::Locked { .. } => "stop the other instance, or give this pipeline another socket.path",
            Self::ForeignLock { .. } => {
                "make sure that no instance runs as that user any more, and give the lock file to this service with chown"
            }
            Self::Alive { .. } => {
                "find the process with `ss -xlp` and stop it, or choose another socket.path; if it is the service \
                 manager, let FileDescriptorName= of the socket unit be the pipeline's name"
            }
            Self::Unclear { .. } => "find out with `ss -xlp` whether a process holds it, and remove it if none does",
            Self::Occupied { .. } => "look what it is and remove it if nobody needs it; this program never does",
            Self::Unsafe { .. } => "let root or this service own the directory and nobody else write to it",
            Self::NoGroup { .. } => "create the group (deploy/systemd has a sysusers file) or correct socket.group",
            Self::Inherited { .. } => "let ListenStream= of the socket unit be the path in socket.path",
            Self::Hangs { .. } => {
                "find out what the volume waits for; the socket is looked after as soon as it answers"
            }
            Self::Io { .. } => "check that the directory exists, is writable by this service and its disk has room",
        }
    }
}

/// Gets the listening socket that a configuration describes.
///
/// # Errors
/// Whenever it is not certain that the socket is safe and ours.
pub fn acquire(config: &Config, source: Source) -> Result<Socket, SocketError> {
    match source {
        Source::Bind => bind::bind(config),
        Source::Inherited(socket) => inherited::adopt(config, socket, None),
        Source::HandedOver { socket, lock } => inherited::adopt(config, socket, Some(lock)),
    }
}
