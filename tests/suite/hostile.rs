//! Hostile input, replayed: every seed of the fuzz corpus, whole, cut short, and with single bytes changed.

use std::path::Path;
use std::time::Duration;

use bao_kms_provider::error::Error;
use bao_kms_provider::request::{Request, Response};

use super::puppet::{House, healthy, reverse};

#[path = "../../fuzz/targets.rs"]
mod targets;

/// How many variants of each seed; more of them is what fuzzing is for.
const VARIANTS: usize = 8;

fn seeds(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let entries = std::fs::read_dir(folder).expect("a corpus");
    entries.map(|entry| std::fs::read(entry.expect("an entry").path()).expect("a seed")).collect()
}

/// The seed with one byte changed, or cut there; the same every time.
fn variant(seed: &[u8], number: usize) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    let at = (number + 1) * 2_654_435_761 % bytes.len().max(1);
    match bytes.get_mut(at) {
        Some(byte) if number.is_multiple_of(2) => *byte ^= 1 << (number % 8),
        _ => bytes.truncate(at),
    }
    bytes
}

/// Runs everything of one kind on a thread of its own, so that what hangs is a failure too.
fn replay(name: &'static str) {
    let target = targets::TARGETS.iter().find(|(known, _)| *known == name).expect("a target").1;
    let seeds = seeds(name);
    assert!(seeds.len() >= 10, "{name} has hardly a seed");
    let (done, finished) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        for seed in &seeds {
            target(seed);
            for number in 0..VARIANTS {
                target(&variant(seed, number));
            }
        }
        let _ = done.send(());
    });
    if finished.recv_timeout(Duration::from_secs(240)) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
        panic!("{name}: something never ended");
    }
    thread.join().unwrap_or_else(|_| panic!("{name}: a panic"));
}

#[test]
fn messages() {
    replay("message");
}

#[test]
fn stored_objects() {
    replay("stored");
}

#[test]
fn replies_of_transit() {
    replay("reply");
}

#[test]
fn configuration_files() {
    replay("config");
}

#[test]
fn jwt_files() {
    replay("jwt");
}

#[test]
fn garbage_on_the_socket() {
    replay("socket");
}

#[test]
fn each_kind_has_a_corpus_and_a_fuzz_target() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    for (name, _) in targets::TARGETS {
        assert!(!seeds(name).is_empty(), "{name}");
        let target = std::fs::read_to_string(root.join(format!("fuzz_targets/{name}.rs"))).expect("a fuzz target");
        assert!(target.contains("fuzz_target!"), "{name}");
    }
}

#[tokio::test]
async fn a_caller_with_a_proper_call_is_served_beside_garbage() {
    let key = healthy();
    let mirror = {
        let key = key.clone();
        move |request: Request| std::future::ready(reverse(&key, request) as Result<Response, Error>)
    };
    let house = House::open(key, mirror);
    let client = house.client().await;
    for seed in seeds("socket") {
        let mut stream = tokio::net::UnixStream::connect(house.path()).await.expect("a connection");
        // The door may close it at any byte.
        let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, &seed).await;
        let sealed = client.encrypt(b"seed".to_vec(), "u").await.expect("served");
        assert_eq!(&sealed.ciphertext[..], b"dees");
    }
    house.until("connections", 1.0).await;
}
