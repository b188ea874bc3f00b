//! Mode and group of a socket that is there already: the process before was configured otherwise, or a reload changed them.
//! On the way nobody may connect who may neither under the old configuration nor under the new one.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Gid};
use rustix::io::Errno;

use super::{SocketError, group};
use crate::front::Config;

const SET_GROUP: u32 = 0o2000;

/// Gives the socket at the configured path the configured mode and group. Only for a socket that is ours.
///
/// # Errors
/// When there is no such group, no socket, or the system says no. Whoever could connect can do so still.
pub fn fit(config: &Config) -> Result<(), SocketError> {
    let path = &config.path;
    let io = |step| move |source: std::io::Error| SocketError::Io { path: path.clone(), step, source };
    let meta = path.symlink_metadata().map_err(io("cannot look at the socket"))?;
    if !meta.file_type().is_socket() {
        return Err(SocketError::Occupied { path: path.clone(), what: "something that is no socket" });
    }
    let wanted = match &config.group {
        Some(name) => group::resolve(name)?,
        None => of_a_new_one(path),
    };
    let (is, mode) = (meta.mode() & 0o7777, config.mode.bits());
    if (is, meta.gid()) == (mode, wanted) {
        return Ok(());
    }
    let chmod = |bits: u32| {
        let set = rustix::fs::chmod(path, bits.into());
        set.map_err(|error: Errno| io("cannot set the mode of the socket")(error.into()))
    };
    chmod(is & mode)?;
    rustix::fs::chownat(CWD, path, None, Some(Gid::from_raw(wanted)), AtFlags::SYMLINK_NOFOLLOW).map_err(|error| {
        // What it was is better than what neither configuration says.
        let _ = chmod(is);
        io("cannot give the socket to its group; this service must be a member of it")(error.into())
    })?;
    chmod(mode)
}

/// The group that a file made at this place gets.
fn of_a_new_one(path: &Path) -> u32 {
    let own = rustix::process::getegid().as_raw();
    match path.parent().and_then(|parent| parent.metadata().ok()) {
        Some(parent) if parent.mode() & SET_GROUP != 0 => parent.gid(),
        _ => own,
    }
}
