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
    use std::io;
    use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

    /// Enough for nearly everybody; who has more costs a second question.
    const USUAL: usize = 64;

    /// The supplementary groups of the peer at the moment it connected; none when the kernel does not tell.
    pub(super) fn of_peer(stream: &impl AsFd) -> Vec<u32> {
        let fd = stream.as_fd();
        let mut groups = vec![0; USUAL];
        let mut told = ask(fd, &mut groups);
        if let Err(TooFew { needed }) = told
            && needed > groups.len()
        {
            groups.resize(needed, 0);
            told = ask(fd, &mut groups);
        }
        groups.truncate(told.unwrap_or(0));
        groups
    }

    /// No answer; when only the room was short, how many groups there are.
    struct TooFew {
        needed: usize,
    }

    /// How many groups the kernel wrote into the buffer.
    #[allow(unsafe_code)]
    fn ask(fd: BorrowedFd<'_>, groups: &mut [u32]) -> Result<usize, TooFew> {
        let mut bytes = libc::socklen_t::try_from(size_of_val(groups)).unwrap_or(0);
        let (level, name) = (libc::SOL_SOCKET, libc::SO_PEERGROUPS);
        // SAFETY: the pointer and the length in bytes describe one live, writable buffer, and the kernel writes no more
        // than that length, which it replaces by what it wrote or would have to.
        let failed =
            unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, groups.as_mut_ptr().cast(), &raw mut bytes) } != 0;
        let count = bytes as usize / size_of::<u32>();
        if !failed {
            return Ok(count);
        }
        let short = io::Error::last_os_error().raw_os_error() == Some(libc::ERANGE);
        Err(TooFew { needed: if short { count } else { 0 } })
    }
}
