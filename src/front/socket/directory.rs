//! The directory of a socket, and every one above it: nobody but root and us may be able to put something else there, by
//! whatever symlinks the path leads.

use std::ffi::OsString;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Gid};

use super::SocketError;
use super::bind::temporary;

const NEW_DIRECTORY: u32 = 0o750;
const STICKY: u32 = 0o1000;
/// An address holds 108 bytes; the temporary name needs five more than the path.
const MAX_PATH: usize = 100;
/// As many as Linux follows itself (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Makes the last component when it is missing and wanted, and judges the whole chain. What is made belongs to `group`, when
/// one is given.
pub(super) fn prepare(socket: &Path, create: bool, group: Option<u32>) -> Result<PathBuf, SocketError> {
    let refuse = |what: &str| Err(SocketError::Unsafe { path: socket.to_owned(), what: what.to_owned() });
    if !socket.is_absolute() || socket.components().any(|part| matches!(part, Component::ParentDir)) {
        return refuse("socket.path must be absolute and without `..`");
    }
    if socket.as_os_str().len() > MAX_PATH {
        return refuse("socket.path is longer than 100 bytes; the system takes little more");
    }
    let Some(parent) = socket.parent().filter(|_| socket.file_name().is_some()) else {
        return refuse("socket.path names no file");
    };
    if create && parent.symlink_metadata().is_err() {
        judge_chain(parent.parent().unwrap_or(Path::new("/")))?;
        make(parent, group)?;
    }
    let meta = look(parent)?;
    if meta.is_symlink() {
        return Err(SocketError::Unsafe {
            path: parent.to_owned(),
            what: "the socket's directory is a symlink".into(),
        });
    }
    judge_chain(parent)?;
    Ok(parent.to_owned())
}

/// Makes a directory that has its mode and group, whatever the umask says, from the moment it has its name: a process that
/// is killed on the way leaves nothing that the next one would take for finished.
fn make(directory: &Path, group: Option<u32>) -> Result<(), SocketError> {
    let io = |step| move |source: io::Error| SocketError::Io { path: directory.to_owned(), step, source };
    let fresh = temporary(directory);
    match std::fs::DirBuilder::new().mode(0o700).create(&fresh) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => judge(&fresh, &look(&fresh)?)?,
        made => made.map_err(io("cannot create the directory"))?,
    }
    if let Some(group) = group {
        rustix::fs::chownat(CWD, &fresh, None, Some(Gid::from_raw(group)), AtFlags::SYMLINK_NOFOLLOW).map_err(
            |error| io("cannot give the directory to its group; this service must be a member of it")(error.into()),
        )?;
    }
    rustix::fs::chmod(&fresh, NEW_DIRECTORY.into())
        .map_err(|error| io("cannot set the mode of the directory")(error.into()))?;
    std::fs::rename(&fresh, directory).map_err(io("cannot put the directory in its place"))
}

/// Judges a directory and everything that the way to it leads through, link by link as the kernel walks it.
fn judge_chain(directory: &Path) -> Result<(), SocketError> {
    let mut at = PathBuf::from("/");
    judge(&at, &look(&at)?)?;
    let mut left = steps(directory);
    let mut links = 0;
    while let Some(step) = left.pop() {
        if step == ".." {
            // No symlink is part of it, so that what is above is what is written before.
            at.pop();
            continue;
        }
        let next = at.join(step);
        let meta = look(&next)?;
        if !meta.is_symlink() {
            judge(&next, &meta)?;
            at = next;
            continue;
        }
        links += 1;
        if links > MAX_LINKS {
            return Err(SocketError::Unsafe { path: next, what: "too many symlinks".to_owned() });
        }
        judge_owner(&next, &meta, "symlink")?;
        let target = next.read_link().map_err(|source| SocketError::Io {
            path: next.clone(),
            step: "cannot read the symlink",
            source,
        })?;
        if target.is_absolute() {
            at = PathBuf::from("/");
        }
        left.extend(steps(&target));
    }
    Ok(())
}

/// The steps of a path, the last one first; what begins at the root is not told from what does not.
fn steps(path: &Path) -> Vec<OsString> {
    let named = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::ParentDir);
    let parts = path.components().filter(|part| named(*part));
    let mut steps: Vec<OsString> = parts.map(|part| part.as_os_str().to_owned()).collect();
    steps.reverse();
    steps
}

fn look(path: &Path) -> Result<Metadata, SocketError> {
    path.symlink_metadata().map_err(|source| SocketError::Io {
        path: path.to_owned(),
        step: "cannot look at the directory",
        source,
    })
}

fn judge(path: &Path, meta: &Metadata) -> Result<(), SocketError> {
    let refuse = |what: String| Err(SocketError::Unsafe { path: path.to_owned(), what });
    if !meta.is_dir() {
        return refuse("is no directory".to_owned());
    }
    judge_owner(path, meta, "directory")?;
    let mode = meta.mode();
    if mode & 0o022 != 0 && mode & STICKY == 0 {
        return refuse(format!("others can write to the directory (mode {:04o})", mode & 0o7777));
    }
    Ok(())
}

fn judge_owner(path: &Path, meta: &Metadata, kind: &str) -> Result<(), SocketError> {
    let us = rustix::process::geteuid().as_raw();
    if meta.uid() == 0 || meta.uid() == us {
        return Ok(());
    }
    let what = format!("the {kind} belongs to uid {}, neither root nor this service", meta.uid());
    Err(SocketError::Unsafe { path: path.to_owned(), what })
}
