//! Sockets that go from one process to the next without ever closing: the process before sends each listener and its
//! lock over a pair of connected sockets, whose other end is the standard input of the process after it. The same pair
//! carries "ready" one way and "go" the other, and each end notices at once when the other one dies. Beside each socket goes
//! what was seen of the key, so that the next process can neither move a key_id backwards nor miss a rollback.

use std::collections::{HashMap, HashSet};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType,
};
use tokio::net::UnixStream;

use super::{Known, Socket, Source};
use crate::key::Seen;

/// Set for a process that takes over; its value is the format that the process before speaks.
pub const VARIABLE: &str = "BAO_KMS_HAND_OVER";
/// The format below. A process that does not know the other's leaves everything as it is.
pub const FORMAT: &str = "2";

const ANNOUNCING: u8 = b'a';
const SILENT: u8 = b's';
const END: u8 = b'.';
const READY: u8 = b'r';
const GO: u8 = b'g';
/// Longer than any message: a byte, four numbers, a fingerprint and a pipeline's name, a line each.
const LONGEST: usize = 1024;

/// One pipeline's socket on its way.
#[derive(Debug)]
pub struct Given {
    /// The pipeline's label.
    pub pipeline: String,
    /// Whether Status gives a key_id behind it: then it has to do so behind the next process, too.
    pub announces: bool,
    /// What was seen of its key, if anything was.
    pub seen: Option<Seen>,
    /// The fingerprint of what runs.
    pub fingerprint: String,
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
    /// The labels of the pipelines behind which Status gave a key_id.
    pub announcing: HashSet<String>,
    /// What was seen of their keys.
    pub known: HashMap<String, Known>,
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
        for Given { pipeline, announces, seen, fingerprint, socket } in sockets {
            let seen = seen.map(|seen| seen.to_string()).unwrap_or_default();
            let mut text = vec![if *announces { ANNOUNCING } else { SILENT }];
            text.extend_from_slice(format!("{seen}\n{fingerprint}\n{pipeline}").as_bytes());
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
        let (kind, text) = text.split_first().ok_or_else(|| io::Error::other("the process before has ended"))?;
        if *kind == END {
            return Ok(taken);
        }
        let text = String::from_utf8_lossy(text);
        let mut lines = text.splitn(3, '\n');
        let (Some(seen), Some(fingerprint), Some(name)) = (lines.next(), lines.next(), lines.next()) else {
            return Err(io::Error::other("the process before sent something else than a pipeline"));
        };
        let source = match (descriptors.next(), descriptors.next()) {
            (Some(socket), Some(lock)) => Source::HandedOver { socket, lock },
            (Some(socket), None) => Source::Inherited(socket),
            (None, _) => return Err(io::Error::other(format!("no socket came for pipeline {name}"))),
        };
        if *kind == ANNOUNCING {
            taken.announcing.insert(name.to_owned());
        }
        if let Some(seen) = Seen::parse(seen) {
            taken.known.insert(name.to_owned(), Known { seen, fingerprint: fingerprint.to_owned() });
        }
        taken.sources.insert(name.to_owned(), source);
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
        let seen = Seen { active: (9, 900), latest: (10, 1_000) };
        let given = |name: &str, lock: bool| Given {
            pipeline: name.to_owned(),
            announces: lock,
            seen: lock.then_some(seen),
            fingerprint: "obf1.x.y".to_owned(),
            socket: Socket {
                listener: UnixListener::bind(folder.path().join(name)).expect("a socket"),
                lock: lock.then(|| tempfile::tempfile().expect("a file")),
            },
        };
        let sockets = [given("with-a-lock", true), given("without", false)];
        let (giver, theirs) = Giver::give(&sockets).expect("sent");
        let Taken { sources, announcing, known } = receive_all(theirs.as_fd()).expect("received");
        assert!(matches!(sources["with-a-lock"], Source::HandedOver { .. }));
        assert!(matches!(sources["without"], Source::Inherited(_)));
        assert_eq!(announcing.into_iter().collect::<Vec<_>>(), ["with-a-lock"]);
        assert_eq!(known, HashMap::from([("with-a-lock".into(), Known { seen, fingerprint: "obf1.x.y".into() })]));
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
        receive_all(theirs.as_fd()).expect("nothing but the end");
        for text in [&b"a1 1 1 1\nobf1\nname"[..], b"aname"] {
            send(giver.0.as_fd(), text, &[]).expect("sent");
            receive_all(theirs.as_fd()).expect_err("a pipeline without a socket, and half of one");
        }
    }
}
