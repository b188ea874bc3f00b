//! Binding: under a lock, at a temporary name in the same directory, with mode and group right before anybody could
//! connect, then renamed into place. There is no moment with a wrong mode and none without a socket.

use std::fs::{File, Metadata};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FlockOperation, Gid, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::{Socket, SocketError, directory, group};
use crate::front::Config;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

pub(super) fn bind(config: &Config) -> Result<Socket, SocketError> {
    let path = &config.path;
    let group = config.group.as_deref().map(group::resolve).transpose()?;
    directory::prepare(path, config.create_directory, group)?;
    let lock = lock(path)?;
    let known = examine(path)?;
    let listener = listen(config, group, known.as_ref())?;
    Ok(Socket { listener: listener.into(), lock: Some(lock) })
}

/// `<path>.lock`, locked. It is never removed, so that two processes can never lock two files of one name.
pub(super) fn lock(path: &Path) -> Result<File, SocketError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let lock_path = PathBuf::from(name);
    let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(i32::try_from(flags.bits()).unwrap_or(0))
        .open(&lock_path);
    let file = match file {
        Ok(file) if file.metadata().is_ok_and(|meta| meta.is_file()) => file,
        Ok(_) => return Err(SocketError::Occupied { path: lock_path, what: "something that is no regular file" }),
        Err(error) if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {
            return Err(SocketError::Occupied { path: lock_path, what: "a symlink" });
        }
        Err(error) if error.kind() == std::io::ErrorKind::IsADirectory => {
            return Err(SocketError::Occupied { path: lock_path, what: "a directory" });
        }
        Err(source) => {
            let owner = lock_path.symlink_metadata().ok().map(|meta| meta.uid());
            let us = rustix::process::geteuid().as_raw();
            return Err(match owner.filter(|_| source.kind() == std::io::ErrorKind::PermissionDenied) {
                Some(owner) if owner != us => SocketError::ForeignLock { path: lock_path, owner },
                _ => SocketError::Io { path: lock_path, step: "cannot open the lock file", source },
            });
        }
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(SocketError::Locked { path: path.to_owned() }),
        Err(error) => {
            Err(SocketError::Io { path: path.to_owned(), step: "cannot lock the lock file", source: error.into() })
        }
    }
}

/// What is at the path: nothing, or a socket that is proved dead. Everything else is refused.
fn examine(path: &Path) -> Result<Option<Metadata>, SocketError> {
    let meta = match path.symlink_metadata() {
        Ok(meta) => meta,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(SocketError::Io { path: path.to_owned(), step: "cannot look at the socket's place", source });
        }
    };
    let kind = meta.file_type();
    let occupied = |what| Err(SocketError::Occupied { path: path.to_owned(), what });
    if kind.is_symlink() {
        return occupied("a symlink");
    } else if kind.is_dir() {
        return occupied("a directory");
    } else if kind.is_file() {
        return occupied("a regular file");
    } else if !kind.is_socket() {
        return occupied("something that is no socket");
    }
    match knock(path) {
        // A listener whose backlog is full is alive, however little it does.
        Ok(()) | Err(Errno::WOULDBLOCK) => Err(SocketError::Alive { path: path.to_owned() }),
        Err(Errno::CONNREFUSED) => Ok(Some(meta)),
        Err(error) => Err(SocketError::Unclear { path: path.to_owned(), source: error.into() }),
    }
}

/// Connects without waiting: a listener that accepts nothing must not hold up whoever asks.
fn knock(path: &Path) -> rustix::io::Result<()> {
    rustix::net::connect(&stream()?, &SocketAddrUnix::new(path)?)
}

fn stream() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

fn listen(config: &Config, group: Option<u32>, known: Option<&Metadata>) -> Result<OwnedFd, SocketError> {
    let path = &config.path;
    // The lock makes the name ours: nobody else binds for this path, and what is there was left behind.
    let fresh = temporary(path);
    let io = |step| move |error: Errno| SocketError::Io { path: path.clone(), step, source: error.into() };
    let socket = stream().map_err(io("cannot make a socket"))?;
    // Linux gives the file the mode of the socket's own inode, less the umask; both are set again below, before anybody
    // could connect: nobody knows the temporary name, and nothing listens yet.
    rustix::fs::fchmod(&socket, config.mode.bits().into()).map_err(io("cannot set the mode"))?;
    let address = SocketAddrUnix::new(&fresh).map_err(io("the path is too long for a socket"))?;
    if examine(&fresh)?.is_some() {
        // From a process that was killed between bind and rename.
        rustix::fs::unlink(&fresh).map_err(io("cannot remove a temporary socket that was left behind"))?;
    }
    let (bound, known) = match (rustix::net::bind(&socket, &address), known) {
        // No room for a second one: what is dead makes room for it.
        (Err(Errno::NOSPC | Errno::DQUOT), Some(dead)) if is_still(path, dead) => {
            rustix::fs::unlink(path).map_err(io("cannot remove a dead socket from a full disk"))?;
            (rustix::net::bind(&socket, &address), None)
        }
        bound => bound,
    };
    bound.map_err(io("cannot bind"))?;
    let placed = place(config, group, known, &fresh, &socket);
    if placed.is_err() {
        // The error that matters is the one above; a temporary name that stays is replaced next time.
        let _ = std::fs::remove_file(&fresh);
    }
    placed.map(|()| socket)
}

fn place(
    config: &Config,
    group: Option<u32>,
    known: Option<&Metadata>,
    fresh: &Path,
    socket: &OwnedFd,
) -> Result<(), SocketError> {
    let path = &config.path;
    let io = |step| move |error: Errno| SocketError::Io { path: path.clone(), step, source: error.into() };
    if let Some(group) = group {
        rustix::fs::chownat(CWD, fresh, None, Some(Gid::from_raw(group)), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(io("cannot give the socket to its group; this service must be a member of it"))?;
    }
    rustix::fs::chmod(fresh, config.mode.bits().into()).map_err(io("cannot set the mode"))?;
    rustix::net::listen(socket, BACKLOG).map_err(io("cannot listen"))?;
    let same = match known {
        Some(known) => is_still(path, known),
        None => path.symlink_metadata().is_err(),
    };
    if !same {
        return Err(SocketError::Occupied { path: path.clone(), what: "something that appeared a moment ago" });
    }
    rustix::fs::rename(fresh, path).map_err(io("cannot put the socket in its place"))
}

/// Whether what is at the path is what was there before.
fn is_still(path: &Path, known: &Metadata) -> bool {
    path.symlink_metadata().is_ok_and(|now| (known.dev(), known.ino()) == (now.dev(), now.ino()))
}

/// The name a socket is bound under before it is moved to its place. Its address says so for ever.
pub(super) fn temporary(path: &Path) -> PathBuf {
    path.with_file_name(format!(".{}.new", path.file_name().unwrap_or_default().to_string_lossy()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_appears_between_the_look_and_the_rename_is_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("kms.sock");
        let config: Config = serde_json::from_value(serde_json::json!({ "path": path })).expect("a config");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("a dead socket"));
        let known = examine(&path).expect("dead").expect("there");
        std::fs::rename(&path, folder.path().join("moved")).expect("moved");
        for known in [None, Some(&known)] {
            std::fs::write(&path, "precious").expect("a file");
            let error = listen(&config, None, known).expect_err("refused");
            assert!(matches!(error, SocketError::Occupied { .. }), "{error}");
            assert_eq!(std::fs::read(&path).expect("still there"), b"precious");
            assert!(folder.path().join(".kms.sock.new").symlink_metadata().is_err(), "nothing is left behind");
        }
        std::fs::remove_file(&path).expect("removed");
        assert!(listen(&config, None, Some(&known)).is_err(), "what was there a moment ago has gone");
        listen(&config, None, None).expect("nothing was there and nothing is");
    }
}
