//! Decrypt as kube-apiserver asks for it: over one connection, with header fields that refer to those of the first call,
//! and the answer compared with the seed.

use std::path::PathBuf;
use std::sync::Arc;

use bao_kms_provider::front::v2::{DecryptRequest, DecryptResponse};
use prost::Message;

use crate::http2::{self, Call, Headers};
use crate::measure::Round;
use crate::stage::Sealed;

/// Calls that are ready to be sent: one for each sealed seed.
pub fn calls(sealed: &[Sealed]) -> Vec<Call> {
    let call = |sealed: &Sealed| {
        let request = DecryptRequest {
            ciphertext: sealed.ciphertext.clone().into(),
            uid: "7f4d0fbe-2f0e-4f0a-8a1e-3d9c5b6a7e21".into(),
            key_id: sealed.key_id.clone(),
            annotations: sealed.annotations.clone(),
        };
        let answer = DecryptResponse { plaintext: sealed.seed.clone() };
        Call { message: framed(&request.encode_to_vec()), answer: framed(&answer.encode_to_vec()) }
    };
    sealed.iter().map(call).collect()
}

/// A round of these calls, on a thread of its own.
pub async fn round(socket: PathBuf, calls: Arc<Vec<Call>>, total: usize, in_flight: usize) -> Round {
    let round = move || http2::round(&socket, &headers(), &calls, total, in_flight);
    tokio::task::spawn_blocking(round).await.expect("a caller")
}

/// A gRPC message without compression.
fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).expect("short").to_be_bytes();
    [&[0], &length[..], message].concat()
}

/// What grpc-go sends, as RFC 7541 encodes it without Huffman codes: each field goes into the table with the first call.
fn headers() -> Headers {
    const POST: u8 = 0x83;
    const HTTP: u8 = 0x86;
    let named = |name: u8, value: &str| [&[0x40 | name, value.len() as u8], value.as_bytes()].concat();
    let new = |name: &str, value: &str| {
        [&[0x40, name.len() as u8], name.as_bytes(), &[value.len() as u8], value.as_bytes()].concat()
    };
    let fields = [
        named(4, "/v2.KeyManagementService/Decrypt"),
        named(1, "localhost"),
        named(31, "application/grpc"),
        named(58, "grpc-go/1.79.3"),
        new("te", "trailers"),
        new("grpc-timeout", "3000000u"),
    ];
    let newest = 62_u8;
    let later = (newest..newest + fields.len() as u8).rev().map(|index| 0x80 | index);
    Headers {
        first: [&[POST, HTTP], &*fields.concat()].concat(),
        later: [POST, HTTP].into_iter().chain(later).collect(),
    }
}
