//! A socket that another process opened: it must be listening, of our kind, and at the configured path.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::net::{AddressFamily, SocketType, sockopt};

use super::bind::temporary;
use super::{Socket, SocketError};
use crate::front::Config;

pub(super) fn adopt(config: &Config, socket: OwnedFd, lock: Option<OwnedFd>) -> Result<Socket, SocketError> {
    let refuse = |what: &str| Err(SocketError::Inherited { what: what.to_owned() });
    let kind = (sockopt::socket_domain(&socket), sockopt::socket_type(&socket));
    if kind != (Ok(AddressFamily::UNIX), Ok(SocketType::STREAM)) {
        return refuse("it is no stream socket of the Unix family");
    }
    if sockopt::socket_acceptconn(&socket) != Ok(true) {
        return refuse("it does not listen");
    }
    let listener = std::os::unix::net::UnixListener::from(socket);
    let address = listener.local_addr().ok();
    let path = address.as_ref().and_then(|address| address.as_pathname()).unwrap_or(Path::new(""));
    // One of ours was bound under another name and moved, which its address does not show; its lock does.
    let moved = lock.is_some() && path == temporary(&config.path);
    if path != config.path && !moved {
        return refuse(&format!("it listens at {:?}, not at {}", path, config.path.display()));
    }
    listener.set_nonblocking(true).map_err(|source| SocketError::Io {
        path: config.path.clone(),
        step: "cannot make the inherited socket non-blocking",
        source,
    })?;
    Ok(Socket { listener, lock: lock.map(File::from) })
}
