//! Hostile input, replayed: every seed of the fuzz corpus, whole, cut short, and with single bytes changed. A panic fails
//! the replay wherever it happens, also in a task whose caller only sees an error.

use std::panic;
use std::path::Path;
use std::sync::{Mutex, Once, PoisonError};
use std::time::Duration;

use bao_kms_provider::error::{Class, Error};
use bao_kms_provider::front::client::Client;
use bao_kms_provider::request::{Request, Response};

use super::puppet::{House, PATIENCE, healthy, reverse};

#[path = "../../fuzz/targets.rs"]
mod targets;

/// How many variants of each seed; more of them is what fuzzing is for.
const VARIANTS: usize = 8;

/// Threads whose panics are kept bear a name that begins so; other tests of this process panic on purpose.
const OURS: &str = "hostile-";

/// Thread and words of each panic of ours.
static PANICS: Mutex<Vec<(String, String)>> = Mutex::new(Vec::new());

/// From now on panics are kept. The door answers one with an error and tokio keeps one to itself, but both only after the
/// hook has seen it.
fn watch() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let thread = std::thread::current();
            if let Some(name) = thread.name().filter(|name| name.starts_with(OURS)) {
                let mut panics = PANICS.lock().unwrap_or_else(PoisonError::into_inner);
                panics.push((name.to_owned(), info.to_string()));
            }
            before(info);
        }));
    });
}

/// The panics of one kind so far.
fn panics(name: &str) -> Vec<String> {
    let panics = PANICS.lock().unwrap_or_else(PoisonError::into_inner);
    let of = panics.iter().filter(|(thread, _)| thread.strip_prefix(OURS) == Some(name));
    of.map(|(_, words)| words.clone()).collect()
}

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
    watch();
    let target = targets::TARGETS.iter().find(|(known, _)| *known == name).expect("a target").1;
    let seeds = seeds(name);
    assert!(seeds.len() >= 10, "{name} has hardly a seed");
    let (done, finished) = std::sync::mpsc::channel();
    let run = move || {
        for seed in &seeds {
            target(seed);
            for number in 0..VARIANTS {
                target(&variant(seed, number));
            }
        }
        let _ = done.send(());
    };
    let thread = std::thread::Builder::new().name(format!("{OURS}{name}")).spawn(run).expect("a thread");
    if finished.recv_timeout(Duration::from_secs(240)) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
        panic!("{name}: something never ended");
    }
    thread.join().unwrap_or_else(|_| panic!("{name}: {:?}", panics(name)));
    assert_eq!(panics(name), Vec::<String>::new(), "{name}: a task panicked and nobody was told");
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

#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_the_socket() {
    tokio::task::spawn_blocking(|| replay("socket")).await.expect("replayed");
    let door = targets::door();
    let client = Client::connect(&door.path).await.expect("a connection").with_timeout(PATIENCE);
    assert_eq!(client.status().await.expect("the door still answers").healthz, "ok");
    // What came last may have been under way when the replay ended.
    assert_eq!(panics("socket"), Vec::<String>::new());
    let defects: Vec<_> =
        door.metrics.failures().into_iter().filter(|(_, class, _)| *class == Class::Internal).collect();
    assert_eq!(defects, Vec::new(), "garbage that is a call all the same is no defect of ours");
}

/// What the checks above rest on: the panic of a task that nobody waits for is seen.
#[test]
fn a_panic_that_nobody_is_told_of_fails_the_replay() {
    watch();
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            drop(tokio::spawn(async { panic!("on purpose") }));
            tokio::task::yield_now().await;
        });
    };
    let thread = std::thread::Builder::new().name(format!("{OURS}purpose")).spawn(run).expect("a thread");
    thread.join().expect("the thread itself ends well");
    assert_eq!(panics("purpose").len(), 1);
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
