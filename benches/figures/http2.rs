//! A caller that costs next to nothing: HTTP/2 frames by hand over a blocking socket, so that on two cores the figures are
//! those of the program and not of a gRPC client beside it. It knows as much of HTTP/2 as a caller of this socket meets.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::measure::Round;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Settings, and a window that the answers of a round do not fill.
const OPENING: [u8; 22] = [0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 4, 8, 0, 0, 0, 0, 0, 0x3f, 0xff, 0xff, 0xff];
const FRAME_HEADER: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GO_AWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
/// What each side may send before it is told of more (RFC 9113, section 6.9.2).
const FIRST_WINDOW: usize = 65_535;

/// The header block of a connection's first call and of its later ones, which refer to what the first one said.
pub struct Headers {
    pub first: Vec<u8>,
    pub later: Vec<u8>,
}

/// One call: its gRPC message, and what its answer must be (empty: anything).
pub struct Call {
    pub message: Vec<u8>,
    pub answer: Vec<u8>,
}

struct Connection {
    stream: UnixStream,
    /// Read and not yet looked at: from `at` on.
    held: Vec<u8>,
    at: usize,
    out: Vec<u8>,
    window: usize,
}

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: std::ops::Range<usize>,
}

/// Makes so many calls over one connection, as an API server does, with `in_flight` of them under way at each moment; those
/// there are one after the other, and again from the first.
pub fn round(socket: &Path, headers: &Headers, calls: &[Call], total: usize, in_flight: usize) -> Round {
    let mut connection = Connection::open(socket);
    let call = |at: usize| &calls[at % calls.len()];
    let mut latencies = Vec::with_capacity(total);
    // By stream: when each was sent. Streams are numbered 1, 3, 5, ... in the order of the calls.
    let mut sent = Vec::with_capacity(total);
    let started = Instant::now();
    while latencies.len() < total {
        while sent.len() < total.min(latencies.len() + in_flight) && connection.has_room(call(sent.len())) {
            let block = if sent.is_empty() { &headers.first } else { &headers.later };
            connection.push_call(sent.len(), block, call(sent.len()));
            sent.push(Instant::now());
        }
        connection.flush();
        connection.fill();
        while let Some(frame) = connection.next() {
            let at = (frame.stream as usize).wrapping_sub(1) / 2;
            match frame.kind {
                DATA => assert!(
                    call(at).answer.is_empty() || connection.held[frame.payload.clone()] == call(at).answer,
                    "another answer"
                ),
                HEADERS if frame.flags & END_STREAM != 0 => latencies.push(sent[at].elapsed()),
                HEADERS => {}
                RESET | GO_AWAY => panic!("call {at} was reset: {:?}", &connection.held[frame.payload.clone()]),
                _ => connection.answer(&frame),
            }
        }
    }
    Round::of(latencies, started.elapsed())
}

// === impl Connection ===

impl Connection {
    fn open(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a time-out");
        let out = [PREFACE, &OPENING].concat();
        Self { stream, held: Vec::new(), at: 0, out, window: FIRST_WINDOW }
    }

    fn has_room(&self, call: &Call) -> bool {
        self.window >= call.message.len()
    }

    fn push_call(&mut self, number: usize, block: &[u8], call: &Call) {
        let stream = u32::try_from(2 * number + 1).expect("few calls");
        self.push(HEADERS, END_HEADERS, stream, block);
        self.push(DATA, END_STREAM, stream, &call.message);
        self.window -= call.message.len();
    }

    fn push(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        self.out.extend_from_slice(&[length[1], length[2], length[3], kind, flags]);
        self.out.extend_from_slice(&stream.to_be_bytes());
        self.out.extend_from_slice(payload);
    }

    fn flush(&mut self) {
        self.stream.write_all(&self.out).expect("sent");
        self.out.clear();
    }

    /// Waits for more bytes.
    fn fill(&mut self) {
        self.held.drain(..self.at);
        self.at = 0;
        let length = self.held.len();
        self.held.resize(length + 64 * 1024, 0);
        let count = self.stream.read(&mut self.held[length..]).expect("an answer within 30 s");
        assert!(count > 0, "the connection was closed");
        self.held.truncate(length + count);
    }

    /// The next whole frame of what was read.
    fn next(&mut self) -> Option<Frame> {
        let rest = &self.held[self.at..];
        let header = rest.get(..FRAME_HEADER)?;
        let length = usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]);
        if rest.len() < FRAME_HEADER + length {
            return None;
        }
        let stream = u32::from_be_bytes([header[5], header[6], header[7], header[8]]);
        let (kind, flags) = (header[3], header[4]);
        let payload = self.at + FRAME_HEADER..self.at + FRAME_HEADER + length;
        self.at = payload.end;
        Some(Frame { kind, flags, stream, payload })
    }

    /// What the connection itself wants.
    fn answer(&mut self, frame: &Frame) {
        let payload = self.held[frame.payload.clone()].to_vec();
        match frame.kind {
            SETTINGS if frame.flags & ACK == 0 => self.push(SETTINGS, ACK, 0, &[]),
            PING if frame.flags & ACK == 0 => self.push(PING, ACK, 0, &payload),
            WINDOW_UPDATE if frame.stream == 0 => {
                let more = u32::from_be_bytes(payload.try_into().expect("four bytes"));
                self.window += more as usize;
            }
            _ => {}
        }
    }
}
