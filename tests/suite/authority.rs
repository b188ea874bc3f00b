//! API servers before Kubernetes 1.32 and their `:authority`, with the bytes that one of them sent.

use bao_kms_provider::error::{Class, Error};
use bao_kms_provider::front::v2::StatusResponse;
use bao_kms_provider::request::{Request, Response};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::puppet::{House, PATIENCE, healthy};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
/// Two Status calls of kube-apiserver 1.30.14; the second refers to fields of the first.
const CALLS: [&str; 2] = [
    "8386459763b897cc5f5a0750e62d25a93b8b677310ac6e48d36a3f419754586cb6a54584f596a8c675bad2854587ad285d07275f5f8b1d75d0620d263d4c4d65647a8b9acac8b4c7602bb6f2ecff40027465864d833505b11f408e9acac8b0c842d6958b510f21aa9b839bd9ab40899acac8b24d494f6a7f8613efbe21376f",
    "8386c4c3c2c1c0bf7e8613efbefba2b7",
];

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex")).collect()
}

async fn send(stream: &mut UnixStream, kind: u8, flags: u8, number: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend_from_slice(&number.to_be_bytes());
    frame.extend_from_slice(payload);
    stream.write_all(&frame).await.expect("sent");
}

/// The next frame of a stream that says anything of how a call went.
async fn answer(stream: &mut UnixStream, wanted: u32) -> (u8, Vec<u8>) {
    loop {
        let mut header = [0; 9];
        tokio::time::timeout(PATIENCE, stream.read_exact(&mut header)).await.expect("in time").expect("a frame");
        let mut payload = vec![0; usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2])];
        stream.read_exact(&mut payload).await.expect("its payload");
        let number = u32::from_be_bytes(header[5..9].try_into().expect("four bytes"));
        if number == wanted && matches!(header[3], DATA | RESET) {
            return (header[3], payload);
        }
    }
}

/// Status never comes here.
async fn nobody(_: Request) -> Result<Response, Error> {
    Err(Class::Internal.into())
}

async fn connect(house: &House) -> UnixStream {
    let mut stream = UnixStream::connect(house.path()).await.expect("a connection");
    stream.write_all(PREFACE).await.expect("sent");
    send(&mut stream, SETTINGS, 0, 0, &[]).await;
    stream
}

/// Sends a captured call with an empty message.
async fn call(stream: &mut UnixStream, number: u32, headers: &str) {
    const END_HEADERS: u8 = 4;
    const END_STREAM: u8 = 1;
    send(stream, HEADERS, END_HEADERS, number, &bytes(headers)).await;
    send(stream, DATA, END_STREAM, number, &[0; 5]).await;
}

#[tokio::test]
async fn an_api_server_before_1_32_is_answered() {
    let house = House::open(healthy(), nobody);
    let mut stream = connect(&house).await;
    for (number, headers) in [1, 3].into_iter().zip(CALLS) {
        call(&mut stream, number, headers).await;
        let (kind, payload) = answer(&mut stream, number).await;
        assert_eq!(kind, DATA, "call {number}");
        let status = StatusResponse::decode(&payload[5..]).expect("a Status");
        assert_eq!((status.version.as_str(), status.healthz.as_str()), ("v2", "ok"));
    }
}

#[tokio::test]
async fn without_the_repair_its_calls_are_reset() {
    let edit = |config: &mut bao_kms_provider::front::Config| config.escaped_authority = false;
    let house = House::open_with(healthy(), 8192, edit, nobody);
    let mut stream = connect(&house).await;
    call(&mut stream, 1, CALLS[0]).await;
    assert_eq!(answer(&mut stream, 1).await.0, RESET);
}
