//! Sockets that go from one process to the next without ever closing: the process before sends each listener and its
//! lock over a pair of connected sockets, whose other end is the standard input of the process after it. The same pair
//! carries "ready" one way and "go" the other, and each end notices at once when the other one dies.

use std::collections::{HashMap, HashSet};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType,
};
use tokio::net::UnixStream;

use super::{Socket, Source};

/// Set for a process that takes over; its value is the format that the process before speaks.
pub const VARIABLE: &str = "BAO_KMS_HAND_OVER";
/// The format below. A process that does not know the other's leaves everything as it is.
pub const FORMAT: &str = "1";

const HEALTHY: u8 = b'h';
const TROUBLED: u8 = b't';
const END: u8 = b'.';
const READY: u8 = b'r';
const GO: u8 = b'g';
/// Longer than any pipeline's name and a byte.
const LONGEST: usize = 512;

/// One pipeline's socket on its way.
#[derive(Debug)]
pub struct Given {
    /// The pipeline's label.
    pub pipeline: String,
    /// Whether Status says `ok` behind it: then it has to say so behind the next process, too.
    pub healthy: bool,
    /// The listener and its lock.
    pub socket: Socket,
}

/// The end of the process that gives its sockets away.
#[derive(Debug)]
pub struct Giver(UnixStream);

/// The end of the process that takes them.
#[derive(Debug)]
pub struct Taker(UnixStream);

/// What the process before sent.
#[derive(Debug, Default)]
pub struct Taken {
    /// Sockets by the labels of their pipelines.
    pub sources: HashMap<String, Source>,
    /// The labels of the pipelines that were healthy behind them.
    pub healthy: HashSet<String>,
}

// === impl Giver ===

impl Giver {
    /// Sends the sockets; the second half of the answer is for the standard input of the process to come.
    ///
    /// # Errors
    /// When the system has no descriptors or memory to spare.
    pub fn give(sockets: &[Given]) -> io::Result<(Self, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        for Given { pipeline, healthy, socket } in sockets {
            let mut text = vec![if *healthy { HEALTHY } else { TROUBLED }];
            text.extend_from_slice(pipeline.as_bytes());
            let mut descriptors = vec![socket.listener.as_fd()];
            descriptors.extend(socket.lock.as_ref().map(AsFd::as_fd));
            send(ours.as_fd(), &text, &descriptors)?;
        }
        send(ours.as_fd(), &[END], &[])?;
        Ok((Self(stream(ours)?), theirs))
    }

    /// Resolves when the other process is ready to serve: true. False when it has ended without being so.
    pub async fn ready(&self) -> bool {
        receive_byte(&self.0).await == Some(READY)
    }

    /// Lets the other process serve from now on.
    pub fn go(&self) {
        // A process that has died meanwhile left its sockets to the next one; nothing can be done for it here.
        let _ = send(self.0.as_fd(), &[GO], &[]);
    }
}

// === impl Taker ===

impl Taker {
    /// What a process before us sent; nothing when there is no such process.
    ///
    /// # Errors
    /// When there is one and what it sent cannot be read.
    pub fn receive() -> io::Result<Option<(Self, Taken)>> {
        match std::env::var(VARIABLE) {
            Err(_) => return Ok(None),
            Ok(format) if format == FORMAT => {}
            Ok(format) => {
                return Err(io::Error::other(format!("the process before speaks another format: {format:?}")));
            }
        }
        let channel = io::stdin().as_fd().try_clone_to_owned()?;
        let taken = receive_all(channel.as_fd())?;
        Ok(Some((Self(stream(channel)?), taken)))
    }

    /// Tells the process before that we are ready, and resolves when it lets us serve or has ended.
    pub async fn ready(self) {
        if send(self.0.as_fd(), &[READY], &[]).is_ok() {
            // Whether it says so or ends: nobody but us serves from now on.
            receive_byte(&self.0).await;
        }
    }

    /// Resolves when the process before has ended, although we were not ready yet.
    pub async fn alone(&self) {
        while self.0.readable().await.is_ok() {
            let mut nothing = [0];
            match self.0.try_read(&mut nothing) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                _ => return,
            }
        }
    }
}

fn receive_all(channel: BorrowedFd<'_>) -> io::Result<Taken> {
    let mut taken = Taken::default();
    loop {
        let (text, descriptors) = receive(channel)?;
        let mut descriptors = descriptors.into_iter();
        let (kind, name) = text.split_first().ok_or_else(|| io::Error::other("the process before has ended"))?;
        if *kind == END {
            return Ok(taken);
        }
        let name = String::from_utf8_lossy(name).into_owned();
        let source = match (descriptors.next(), descriptors.next()) {
            (Some(socket), Some(lock)) => Source::HandedOver { socket, lock },
            (Some(socket), None) => Source::Inherited(socket),
            (None, _) => return Err(io::Error::other(format!("no socket came for pipeline {name}"))),
        };
        if *kind == HEALTHY {
            taken.healthy.insert(name.clone());
        }
        taken.sources.insert(name, source);
    }
}

fn send(channel: BorrowedFd<'_>, text: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("more descriptors than a message holds"));
    }
    rustix::net::sendmsg(channel, &[IoSlice::new(text)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive(channel: BorrowedFd<'_>) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut text = vec![0; LONGEST];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(channel, &mut [IoSliceMut::new(&mut text)], &mut control, flags)?;
    text.truncate(received.bytes);
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    Ok((text, descriptors))
}

fn stream(channel: OwnedFd) -> io::Result<UnixStream> {
    UnixStream::from_std(channel.into())
}

async fn receive_byte(channel: &UnixStream) -> Option<u8> {
    let mut byte = [0];
    while channel.readable().await.is_ok() {
        match channel.try_read(&mut byte) {
            Ok(1) => return Some(byte[0]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(_) | Err(_) => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn sockets_and_locks_arrive_under_their_names() {
        let folder = tempfile::tempdir().expect("a folder");
        let given = |name: &str, lock: bool| Given {
            pipeline: name.to_owned(),
            healthy: lock,
            socket: Socket {
                listener: UnixListener::bind(folder.path().join(name)).expect("a socket"),
                lock: lock.then(|| tempfile::tempfile().expect("a file")),
            },
        };
        let sockets = [given("with-a-lock", true), given("without", false)];
        let (giver, theirs) = Giver::give(&sockets).expect("sent");
        let Taken { sources, healthy } = receive_all(theirs.as_fd()).expect("received");
        assert!(matches!(sources["with-a-lock"], Source::HandedOver { .. }));
        assert!(matches!(sources["without"], Source::Inherited(_)));
        assert_eq!(healthy.into_iter().collect::<Vec<_>>(), ["with-a-lock"]);
        let taker = Taker(stream(theirs).expect("a channel"));
        let taking = tokio::spawn(taker.ready());
        assert!(giver.ready().await);
        assert!(!taking.is_finished(), "nobody serves before the word");
        giver.go();
        taking.await.expect("it was let go");
    }

    #[tokio::test]
    async fn each_end_notices_that_the_other_has_gone() {
        let (giver, theirs) = Giver::give(&[]).expect("sent");
        drop(theirs);
        assert!(!giver.ready().await);
        let (giver, theirs) = Giver::give(&[]).expect("sent");
        receive_all(theirs.as_fd()).expect("nothing but the end");
        let taker = Taker(stream(theirs).expect("a channel"));
        drop(giver);
        taker.alone().await;
    }

    #[tokio::test]
    async fn half_a_message_is_an_error() {
        let (giver, theirs) = Giver::give(&[]).expect("sent");
        send(giver.0.as_fd(), b"hname", &[]).expect("sent");
        receive_all(theirs.as_fd()).expect("the end came first");
        receive_all(theirs.as_fd()).expect_err("a pipeline without a socket");
    }
}
