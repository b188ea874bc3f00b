//! The directory of a socket, and every one above it: nobody but root and us may be able to put something else there.

use std::fs::Metadata;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::SocketError;

const NEW_DIRECTORY: u32 = 0o750;
const STICKY: u32 = 0o1000;
/// An address holds 108 bytes; the temporary name needs five more than the path.
const MAX_PATH: usize = 100;

/// Makes the last component when it is missing and wanted, and judges the whole chain.
pub(super) fn prepare(socket: &Path, create: bool) -> Result<PathBuf, SocketError> {
    let refuse = |what: &str| Err(SocketError::Unsafe { path: socket.to_owned(), what: what.to_owned() });
    if !socket.is_absolute() || socket.components().any(|part| matches!(part, std::path::Component::ParentDir)) {
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
        let made = std::fs::DirBuilder::new().mode(NEW_DIRECTORY).create(parent);
        made.map_err(|source| SocketError::Io {
            path: parent.to_owned(),
            step: "cannot create the directory",
            source,
        })?;
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

/// Judges a directory and everything above it, with symlinks among the upper ones resolved first.
fn judge_chain(directory: &Path) -> Result<(), SocketError> {
    let resolved = directory.canonicalize().map_err(|source| SocketError::Io {
        path: directory.to_owned(),
        step: "cannot look at the directory",
        source,
    })?;
    // The links themselves lie in directories of the path as written; what they lead to is judged as well.
    for ancestor in directory.ancestors().chain(resolved.ancestors()) {
        let meta = look(ancestor)?;
        if !meta.is_symlink() {
            judge(ancestor, &meta)?;
        }
    }
    Ok(())
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
    let us = rustix::process::geteuid().as_raw();
    if meta.uid() != 0 && meta.uid() != us {
        return refuse(format!("the directory belongs to uid {}, neither root nor this service", meta.uid()));
    }
    let mode = meta.mode();
    if mode & 0o022 != 0 && mode & STICKY == 0 {
        return refuse(format!("others can write to the directory (mode {:04o})", mode & 0o7777));
    }
    Ok(())
}
