//! Status as an API server before Kubernetes 1.32 asks for it, whose authority is repaired, beside the same calls with an
//! authority that needs none.

use std::path::PathBuf;

use crate::http2::{self, Call, Headers};
use crate::measure::Round;

/// The header block of a first call as kube-apiserver 1.30.14 sends it, around `:authority`.
const BEFORE: &str = "8386459763b897cc5f5a0750e62d25a93b8b677310ac6e48d36a3f";
const ESCAPED: &str = "419754586cb6a54584f596a8c675bad2854587ad285d07275f";
const PLAIN: &str = "41096c6f63616c686f7374";
const AFTER: &str = "5f8b1d75d0620d263d4c4d65647a8b9acac8b4c7602bb6f2ecff40027465864d833505b11f408e9acac8b0c842d6958b510f21aa9b839bd9ab40899acac8b24d494f6a7f8613efbe21376f";
/// Every later one refers to it. What changes with each call, the time-out, stays out of the table, so that the numbers of
/// the other fields stay the same for a whole round.
const LATER: &str = "8386c4c3c2c1c0bf0f2f8613efbefba2b7";

/// One connection and this many Status calls, one at a time.
pub async fn round(socket: PathBuf, escaped: bool, calls: usize) -> Round {
    let first = [BEFORE, if escaped { ESCAPED } else { PLAIN }, AFTER].concat();
    let headers = Headers { first: bytes(&first), later: bytes(LATER) };
    let status = [Call { message: vec![0; 5], answer: Vec::new() }];
    tokio::task::spawn_blocking(move || http2::round(&socket, &headers, &status, calls, 1)).await.expect("a caller")
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex")).collect()
}
