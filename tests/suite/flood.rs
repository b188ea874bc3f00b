//! Frames without end on the socket of the running program: its memory stays bounded while they come and is given back
//! after them, and a caller with a proper call is served beside them.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::puppet::{House, healthy};
use super::support::{PATIENCE, Program, Stage, status_until};

/// Half of the connections that the door lets in; the others are for whoever means it.
const CONNECTIONS: usize = 8;
/// What the program may hold more than before, in KiB, while it is flooded: a quarter of what is sent as large frames, and
/// far less than a queue that keeps each small one.
const MORE: u64 = 16 * 1024;
/// The same for calls that begin and never go on: six KiB, as a build for tests needs, for each that a connection may have
/// open, which is 8,192 and some. Of what is sent a tenth may be open at once.
const MORE_CALLS: u64 = CONNECTIONS as u64 * 8_500 * 6;
/// When a flood that still gets through has lasted long enough.
const LONG_ENOUGH: Duration = Duration::from_secs(5);

/// What comes at this position of a flood.
type Piece = fn(u32) -> Vec<u8>;

/// Name, bytes for each connection, what it may cost, and the pieces: the kinds that HTTP/2 servers have fallen for.
const FLOODS: [(&str, usize, u64, Piece); 5] = [
    ("pings", 1 << 20, MORE, |_| frame(6, 0, 0, &[7; 8])),
    ("settings", 1 << 20, MORE, |at| frame(4, 0, 0, &[&[0, 3][..], &at.to_be_bytes()].concat())),
    ("headers that never end", 8 << 20, MORE, |at| match at {
        0 => frame(1, 0, 1, &[0x83, 0x86]),
        _ => frame(9, 0, 1, &[&[0, 1, b'x', 100][..], &[b'y'; 100]].concat().repeat(100)),
    }),
    ("calls that are taken back", 1 << 20, MORE, |at| {
        [headers(2 * at + 1), frame(3, 0, 2 * at + 1, &8_u32.to_be_bytes())].concat()
    }),
    ("calls that never go on", 8 << 20, MORE_CALLS, |at| headers(2 * at + 1)),
];

/// A frame of RFC 9113, section 4.1.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The head of an Encrypt, with names from the static table of RFC 7541 and nothing compressed.
fn headers(stream: u32) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).expect("short")][..], text.as_bytes()].concat();
    let block = [
        vec![0x83, 0x86, 0x04],
        text("/v2.KeyManagementService/Encrypt"),
        vec![0x01],
        text("localhost"),
        vec![0x0f, 0x10],
        text("application/grpc"),
        vec![0x00],
        text("te"),
        text("trailers"),
    ];
    frame(1, 4, stream, &block.concat())
}

/// What a caller says first.
fn opening() -> Vec<u8> {
    [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(4, 0, 0, &[])].concat()
}

/// Writes a flood and reads nothing, until the program takes no more; the connection stays open with what is returned.
fn flood(path: &Path, bytes: usize, piece: Piece) -> UnixStream {
    let mut stream = UnixStream::connect(path).expect("a connection");
    stream.set_write_timeout(Some(Duration::from_millis(500))).expect("a time-out");
    let (began, mut written) = (Instant::now(), 0);
    let mut text = opening();
    for at in 0.. {
        text.extend(piece(at));
        if text.len() > 16 * 1024 {
            written += text.len();
            // Closed, or not read any more: both are answers.
            if stream.write_all(&text).is_err() || written > bytes || began.elapsed() > LONG_ENOUGH {
                break;
            }
            text.clear();
        }
    }
    stream
}

/// Resident memory that is no file's, in KiB (proc(5)).
fn held(program: &Program) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", program.child.id())).expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_without_end_cost_bounded_memory_and_keep_nobody_waiting() {
    let stage = Stage::set().await;
    // A line for each frame would be what is measured.
    let program = stage.serve(&stage.config("").replace("level: trace", "level: info"));
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    client.encrypt(vec![7; 32], "u").await.expect("Encrypt");
    let path: PathBuf = stage.socket();
    for (name, bytes, more, piece) in FLOODS {
        let (before, path) = (held(&program), path.clone());
        let mut most = before;
        let floods: Vec<_> = (0..CONNECTIONS)
            .map(|_| {
                let path = path.clone();
                std::thread::spawn(move || flood(&path, bytes, piece))
            })
            .collect();
        while !floods.iter().all(std::thread::JoinHandle::is_finished) {
            most = most.max(held(&program));
            let refused = client.encrypt(vec![7; 32], "u").await.err();
            assert!(refused.is_none(), "{name}: {refused:?}");
        }
        let open: Vec<_> = floods.into_iter().map(|flood| flood.join().expect("it ends")).collect();
        most = most.max(held(&program));
        assert!(most < before + more, "{name}: {before} KiB before, {most} at most");
        assert_eq!(client.status().await.expect("Status").healthz, "ok", "{name}");
        drop(open);
        let gone = Instant::now();
        while held(&program) > before + MORE {
            assert!(gone.elapsed() < PATIENCE, "{name}: {} KiB are kept after the flood", held(&program));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Its caller names no time-out, and the stack, which has one of its own, has not heard of the call.
#[tokio::test(start_paused = true)]
async fn a_call_whose_message_never_comes_ends_all_the_same() {
    let house = House::open(healthy(), |_| std::future::pending());
    let mut caller = tokio::net::UnixStream::connect(house.path()).await.expect("a connection");
    caller.write_all(&[opening(), headers(1)].concat()).await.expect("sent");
    let began = tokio::time::Instant::now();
    loop {
        let mut head = [0; 9];
        caller.read_exact(&mut head).await.expect("the connection stays");
        let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
        caller.read_exact(&mut payload).await.expect("a whole frame");
        // A caller that does not answer pings is gone sooner.
        if (head[3], head[4]) == (6, 0) {
            caller.write_all(&frame(6, 1, 0, &payload)).await.expect("sent");
        }
        // HEADERS or RST_STREAM of the call.
        if matches!(head[3], 1 | 3) && head[8] == 1 {
            break;
        }
    }
    let took = began.elapsed();
    assert!((Duration::from_secs(31)..=Duration::from_secs(301)).contains(&took), "{took:?}");
    assert_eq!(house.calls.load(std::sync::atomic::Ordering::SeqCst), 0);
}
