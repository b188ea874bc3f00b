//! Who may connect: the kernel says who is on the other end, and the configured lists decide.

use std::os::fd::AsFd;

use super::AllowPeers;

/// Whether the peer of this connection may stay. Empty lists let the socket's mode decide alone.
pub(super) fn allowed(stream: &impl AsFd, lists: &AllowPeers) -> bool {
    if lists.uids.is_empty() && lists.gids.is_empty() {
        return true;
    }
    let Ok(peer) = rustix::net::sockopt::socket_peercred(stream) else {
        return false;
    };
    lists.uids.contains(&peer.uid.as_raw())
        || lists.gids.contains(&peer.gid.as_raw())
        || (!lists.gids.is_empty() && groups::of_peer(stream).iter().any(|gid| lists.gids.contains(gid)))
}

/// `SO_PEERGROUPS`, which the safe wrappers do not have.
mod groups {
    use std::os::fd::{AsFd, AsRawFd};

    /// More groups than a user of a node has; a peer with more of them keeps its primary group alone.
    const MOST: usize = 1024;

    /// The supplementary groups of the peer at the moment it connected; none when the kernel does not tell.
    #[allow(unsafe_code)]
    pub(super) fn of_peer(stream: &impl AsFd) -> Vec<u32> {
        let mut groups = vec![0_u32; MOST];
        let mut bytes = libc::socklen_t::try_from(size_of_val(groups.as_slice())).unwrap_or(0);
        let fd = stream.as_fd().as_raw_fd();
        // SAFETY: the pointer and the length in bytes describe one live, writable buffer, and the kernel writes no more
        // than that length, which it replaces by what it wrote.
        let failed = unsafe {
            libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERGROUPS, groups.as_mut_ptr().cast(), &raw mut bytes)
        } != 0;
        groups.truncate(if failed { 0 } else { bytes as usize / size_of::<u32>() });
        groups
    }
}
