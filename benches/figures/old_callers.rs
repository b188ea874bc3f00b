//! Status as an API server before Kubernetes 1.32 asks for it, whose authority is repaired, beside the same calls with an
//! authority that needs none: frames by hand, because no client library sends the former.

use std::path::Path;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::measure::Round;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Settings, and a window that the answers of a round do not fill.
const OPENING: [u8; 22] = [0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 4, 8, 0, 0, 0, 0, 0, 0x3f, 0xff, 0xff, 0xff];
/// The header block of a first call as kube-apiserver 1.30.14 sends it, around `:authority`.
const BEFORE: &str = "8386459763b897cc5f5a0750e62d25a93b8b677310ac6e48d36a3f";
const ESCAPED: &str = "419754586cb6a54584f596a8c675bad2854587ad285d07275f";
const PLAIN: &str = "41096c6f63616c686f7374";
const AFTER: &str = "5f8b1d75d0620d263d4c4d65647a8b9acac8b4c7602bb6f2ecff40027465864d833505b11f408e9acac8b0c842d6958b510f21aa9b839bd9ab40899acac8b24d494f6a7f8613efbe21376f";
/// Every later one refers to it.
const LATER: &str = "8386c4c3c2c1c0bf7e8613efbefba2b7";

/// One connection and this many Status calls, one at a time.
pub async fn round(socket: &Path, escaped: bool, calls: u32) -> Round {
    let mut stream = UnixStream::connect(socket).await.expect("a connection");
    stream.write_all(PREFACE).await.expect("sent");
    stream.write_all(&OPENING).await.expect("sent");
    let first = [BEFORE, if escaped { ESCAPED } else { PLAIN }, AFTER].concat();
    let mut latencies: Vec<Duration> = Vec::with_capacity(calls as usize);
    let started = Instant::now();
    for call in 0..calls {
        let number = 2 * call + 1;
        let mut frames = frame(1, 4, number, &bytes(if call == 0 { &first } else { LATER }));
        frames.extend(frame(0, 1, number, &[0; 5]));
        let began = Instant::now();
        stream.write_all(&frames).await.expect("sent");
        answered(&mut stream, number).await;
        latencies.push(began.elapsed());
    }
    latencies.sort_unstable();
    Round { latencies, took: started.elapsed() }
}

/// Reads until the trailers of a stream.
async fn answered(stream: &mut UnixStream, number: u32) {
    loop {
        let mut header = [0; 9];
        stream.read_exact(&mut header).await.expect("a frame");
        let mut payload = vec![0; usize::from(header[1]) << 8 | usize::from(header[2])];
        stream.read_exact(&mut payload).await.expect("its payload");
        let about = u32::from_be_bytes(header[5..9].try_into().expect("four bytes"));
        assert!(header[3] != 3, "the call was reset");
        if about == number && header[3] == 1 && header[4] & 1 == 1 {
            return;
        }
    }
}

fn frame(kind: u8, flags: u8, number: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend_from_slice(&number.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex")).collect()
}
