//! Storms of decrypts, and callers that leave in the middle: OpenBao is asked little, nobody is refused, and nothing is left
//! behind, neither in the gauges nor in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bao_kms_provider::dev::server::Fault;
use bao_kms_provider::front::client::{Client, EncryptResponse};
use tokio::task::JoinSet;

use super::load::round;
use super::support::{Holds, PATIENCE, Stage, eventually, status_until, value};

/// What a storm may leave with the process for good, in KiB: buffers of connections, and what the allocator cannot give
/// back. The storm itself holds far more.
const LEFT: u64 = 8 * 1024;

fn quiet(stage: &Stage, more: &str) -> String {
    stage.config(more).replace("level: trace", "level: info")
}

/// Different seeds, each with what it was sealed to.
async fn sealed(client: &Client, count: u32) -> Vec<(EncryptResponse, Vec<u8>)> {
    let mut seeds = Vec::new();
    for at in 0..count {
        let mut seed = vec![0; 32];
        seed[..4].copy_from_slice(&at.to_be_bytes());
        seeds.push((client.encrypt(seed.clone(), "u").await.expect("Encrypt"), seed));
    }
    seeds
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_different_seeds_go_in_few_requests_and_leave_nothing_behind() {
    let stage = Stage::set().await;
    let _program = stage.serve(&quiet(&stage, ""));
    let client = stage.client().await.with_timeout(Duration::from_secs(20));
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    let seeds = sealed(&client, 1_000).await;
    // So long that all have come before the first exchange is over, however slow the machine: requests are what counts.
    stage.server.faults().add("transit/decrypt", Fault::Delay(Duration::from_millis(500)));
    let before = stage.server.calls().of("transit/decrypt");
    let mut callers = tokio::task::JoinSet::new();
    for (sealed, seed) in seeds.clone() {
        let client = client.clone();
        callers.spawn(async move {
            let opened = client.decrypt(sealed.ciphertext.to_vec(), "u", &sealed.key_id, sealed.annotations).await;
            assert_eq!(opened.expect("none is refused"), seed, "each item has its own answer");
        });
    }
    callers.join_all().await;
    let asked = stage.server.calls().of("transit/decrypt") - before;
    assert!(asked <= 16, "{asked} requests for 1,000 seeds");
    stage.server.faults().clear();

    // One that was changed fails alone, in the middle of a batch.
    let mut callers = tokio::task::JoinSet::new();
    for (at, (sealed, seed)) in seeds.into_iter().take(64).enumerate() {
        let client = client.clone();
        callers.spawn(async move {
            let mut text = sealed.ciphertext.to_vec();
            if at == 40 {
                text[30] = if text[30] == b'A' { b'B' } else { b'A' };
            }
            let opened = client.decrypt(text, "u", &sealed.key_id, sealed.annotations).await;
            match at {
                40 => assert!(opened.expect_err("changed").to_string().contains("ciphertext_invalid")),
                _ => assert_eq!(opened.expect("untouched"), seed),
            }
        });
    }
    callers.join_all().await;
    assert_eq!(gauges(&stage).await, [0; 5]);
}

/// `callers` decrypts at once over four connections; every one is answered with its own seed.
async fn storm(stage: &Stage, seeds: &[(EncryptResponse, Vec<u8>)], callers: usize) {
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(stage.client().await.with_timeout(PATIENCE));
    }
    let mut set = JoinSet::new();
    for at in 0..callers {
        let (client, (sealed, seed)) = (clients[at % clients.len()].clone(), seeds[at % seeds.len()].clone());
        set.spawn(async move {
            let opened = client.decrypt(sealed.ciphertext.to_vec(), "u", &sealed.key_id, sealed.annotations).await;
            assert_eq!(opened.expect("none is refused"), seed, "each caller has its own seed");
        });
    }
    set.join_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_decrypts_of_fifty_seeds_ask_little_and_give_their_memory_back() {
    let stage = Stage::set().await;
    let program = stage.serve(&quiet(&stage, ""));
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    let seeds = sealed(&client, 50).await;
    // A first one, so that what follows is compared with a process that has worked.
    storm(&stage, &seeds, 500).await;
    let pid = program.child.id();
    // Two looks of the program at its own heap.
    tokio::time::sleep(Duration::from_secs(7)).await;
    let before = Holds::of(pid);

    let seen = Arc::new(AtomicU64::new(0));
    let sink = seen.clone();
    let watch = tokio::spawn(async move {
        loop {
            sink.fetch_max(Holds::of(pid).kib, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    // The second so far away that three flights of a seed are all there is time for, on a slow machine as well.
    for far in [50, 500].map(Duration::from_millis) {
        stage.server.faults().add("transit/decrypt", Fault::Delay(far));
        let (asked, began) = (stage.server.calls().items("transit/decrypt"), std::time::Instant::now());
        storm(&stage, &seeds, 5_000).await;
        stage.server.faults().clear();
        let items = stage.server.calls().items("transit/decrypt") - asked;
        // One flight of a seed at a time. While the calls come in no slower than OpenBao answers, that is three at most; on a
        // machine that takes longer to send them, as many as follow one another in that time.
        let flights = began.elapsed().div_duration_f64(far).ceil().max(3.0);
        assert!(
            f64::from(u32::try_from(items).expect("few")) <= 50.0 * flights,
            "{items} items, {flights} flights of a seed, {far:?} away"
        );
    }
    watch.abort();
    let peak = seen.load(Ordering::Relaxed);
    // 8,192 calls, the most that come in, at 16 KiB each.
    assert!(peak < before.kib + 128 * 1024, "{peak} KiB at the peak, {before:?} before");
    eventually("memory is given back", PATIENCE, || async {
        let now = Holds::of(pid);
        if now.kib <= before.kib + LEFT {
            Ok(())
        } else {
            Err(format!("{now:?}, {before:?} before, {peak} KiB between"))
        }
    })
    .await;
    assert_eq!(stage.metric("bao_kms_calls_in_flight{pipeline=\"a\",call=\"decrypt\"}").await, 0);
}

/// What says that calls are under way, of both kinds and at each place where they may wait.
const GAUGES: [&str; 5] = [
    "bao_kms_calls_in_flight{pipeline=\"a\",call=\"encrypt\"}",
    "bao_kms_calls_in_flight{pipeline=\"a\",call=\"decrypt\"}",
    "bao_kms_queued{pipeline=\"a\"}",
    "bao_kms_gathering{pipeline=\"a\"}",
    "bao_kms_slots_used{pipeline=\"a\"}",
];

/// All of them at one instant.
async fn gauges(stage: &Stage) -> Vec<u64> {
    let page = stage.admin("/metrics").await.1;
    GAUGES.map(|gauge| value(&page, gauge)).to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_that_hang_up_leave_nothing_behind() {
    let stage = Stage::set().await;
    // Few slots, so that calls stand at every place; and small batches, so that they gather for as long as it takes to see it.
    let layers = "    layers: { admit: { maxInFlight: 4 }, batch: { maxItems: 2 } }";
    let _program = stage.serve(&quiet(&stage, layers));
    let client = stage.client().await.with_timeout(PATIENCE);
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    let seeds = sealed(&client, 24).await;
    stage.server.faults().add("transit/encrypt", Fault::Hang);
    stage.server.faults().add("transit/decrypt", Fault::Hang);
    let before = stage.metric("bao_kms_hang_ups_total{pipeline=\"a\"}").await;
    for cut in [false, true] {
        // With a runtime of its own a connection can end between two frames, as that of a killed process does.
        let theirs = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let theirs = theirs.expect("a runtime");
        let path = stage.socket();
        let caller = theirs.spawn(async { Client::connect(path).await.expect("connected").with_timeout(PATIENCE) });
        let caller = caller.await.expect("a connection");
        let mut set = JoinSet::new();
        for (sealed, seed) in seeds.clone() {
            let (reader, writer) = (caller.clone(), caller.clone());
            let read = async move {
                let opened = reader.decrypt(sealed.ciphertext.to_vec(), "u", &sealed.key_id, sealed.annotations).await;
                panic!("answered: {}", opened.is_ok());
            };
            let write = async move {
                let sealed = writer.encrypt(seed, "u").await;
                panic!("answered: {}", sealed.is_ok());
            };
            set.spawn_on(read, theirs.handle());
            set.spawn_on(write, theirs.handle());
        }
        eventually("calls stand at every place", PATIENCE, || async {
            let now = gauges(&stage).await;
            let all = now[..2] == [24, 24] && now[2..].iter().all(|value| *value > 0);
            if all { Ok(()) } else { Err(format!("{now:?}")) }
        })
        .await;
        if cut {
            theirs.shutdown_background();
        } else {
            set.abort_all();
            while set.join_next().await.is_some() {}
            theirs.shutdown_background();
        }
        eventually("nothing is left", Duration::from_secs(10), || async {
            let now = gauges(&stage).await;
            if now == [0; 5] { Ok(()) } else { Err(format!("cut {cut}: {now:?}")) }
        })
        .await;
    }
    let counted = stage.metric("bao_kms_hang_ups_total{pipeline=\"a\"}").await - before;
    assert_eq!(counted, 2 * 2 * 24, "each caller that left is counted once");
    stage.server.faults().clear();
    round(&client, &[7; 32]).await.expect("and everything goes on");
}
