//! API servers before Kubernetes 1.32 send the escaped path of the socket as `:authority` (`%2Frun%2F...`), which is no
//! authority to the HTTP/2 library, and it resets the call. Here `%` becomes `-` in that one field before the library reads
//! it. In HPACK's Huffman code (RFC 7541, appendix B) both take six bits, so that no length changes anywhere.
//!
//! A connection whose first call needs no repair is looked at no further.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};

mod hpack;

/// What a client sends first (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER: usize = 9;
/// A frame begins with the length of its payload, and its kind follows.
const LENGTH: usize = 3;
const HEADERS: u8 = 1;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// What our side allows a frame to hold; the library refuses a longer one.
const LARGEST_FRAME: usize = 16 * 1024;
/// Read from the socket at once while looking.
const CHUNK: usize = 4 * 1024;

/// The repair of what one connection reads.
#[derive(Debug)]
pub(super) struct Repair {
    /// Read from the socket and not yet handed on.
    held: Vec<u8>,
    /// How many of those may be handed on.
    ready: usize,
    /// How many more belong to a frame that is of no interest.
    passing: usize,
    looks_at: LooksAt,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum LooksAt {
    Preface,
    Frames,
    Nothing,
}

// === impl Repair ===

impl Repair {
    /// `on` false hands everything on as it is.
    pub(super) fn new(on: bool) -> Self {
        let looks_at = if on { LooksAt::Preface } else { LooksAt::Nothing };
        Self { held: Vec::new(), ready: 0, passing: 0, looks_at }
    }

    /// Reads through the repair.
    pub(super) fn poll_read<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        loop {
            if self.ready > 0 {
                self.hand_on(buf);
                return Poll::Ready(Ok(()));
            }
            if self.looks_at == LooksAt::Nothing {
                return Pin::new(stream).poll_read(cx, buf);
            }
            let mut space = [std::mem::MaybeUninit::uninit(); CHUNK];
            let mut chunk = ReadBuf::uninit(&mut space);
            match Pin::new(&mut *stream).poll_read(cx, &mut chunk) {
                Poll::Ready(Ok(())) if chunk.filled().is_empty() => self.give_up(),
                Poll::Ready(Ok(())) => self.take(chunk.filled()),
                other => return other,
            }
        }
    }

    fn hand_on(&mut self, buf: &mut ReadBuf<'_>) {
        let count = self.ready.min(buf.remaining());
        buf.put_slice(&self.held[..count]);
        self.held.drain(..count);
        self.ready -= count;
        if self.held.is_empty() && self.looks_at == LooksAt::Nothing {
            self.held = Vec::new();
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
        while self.advance() {}
    }

    /// Everything goes on as it is from here.
    fn give_up(&mut self) {
        self.looks_at = LooksAt::Nothing;
        self.ready = self.held.len();
    }

    /// Deals with one more part of what is held; false when more has to come first.
    fn advance(&mut self) -> bool {
        let rest = &mut self.held[self.ready..];
        if rest.is_empty() {
            return false;
        }
        if self.passing > 0 {
            let count = self.passing.min(rest.len());
            self.passing -= count;
            self.ready += count;
            return true;
        }
        match self.looks_at {
            LooksAt::Nothing => self.give_up(),
            LooksAt::Preface if !PREFACE.starts_with(&rest[..rest.len().min(PREFACE.len())]) => self.give_up(),
            LooksAt::Preface if rest.len() < PREFACE.len() => return false,
            LooksAt::Preface => {
                self.looks_at = LooksAt::Frames;
                self.passing = PREFACE.len();
            }
            LooksAt::Frames if rest.len() < LENGTH => return false,
            LooksAt::Frames => {
                let length = usize::from(rest[0]) << 16 | usize::from(rest[1]) << 8 | usize::from(rest[2]);
                match rest.get(LENGTH).copied() {
                    // The library refuses it without looking further.
                    _ if length > LARGEST_FRAME => self.give_up(),
                    None => return false,
                    Some(kind) if kind != HEADERS => self.passing = FRAME_HEADER + length,
                    Some(_) if rest.len() < FRAME_HEADER + length => return false,
                    Some(_) if repair_headers(rest[4], &mut rest[FRAME_HEADER..FRAME_HEADER + length]) => {
                        self.passing = FRAME_HEADER + length;
                    }
                    Some(_) => self.give_up(),
                }
            }
        }
        self.looks_at != LooksAt::Nothing
    }
}

/// Repairs the field in a HEADERS frame's payload; false when its `:authority` needs none, and the connection's later
/// ones do not either.
fn repair_headers(flags: u8, payload: &mut [u8]) -> bool {
    let (mut start, mut end) = (0, payload.len());
    if flags & PADDED != 0 {
        let padding = payload.first().copied().map_or(0, usize::from);
        start += 1;
        end = end.saturating_sub(padding);
    }
    if flags & PRIORITY != 0 {
        start += 5;
    }
    match payload.get_mut(start..end) {
        Some(block) => hpack::repair_authority(block),
        None => false,
    }
}

#[cfg(test)]
#[path = "authority/tests.rs"]
mod tests;
