//! Mixed load with a fault every few seconds, from a seeded schedule: no wrong plaintext, no leak, and no failure that no
//! fault explains. Short by default; `BAO_KMS_SOAK_SECONDS` makes it as long as one likes, `BAO_KMS_SOAK_SEED` repeats one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bao_kms_provider::dev::server::Fault;

use super::support::{PATIENCE, Program, Stage, status_until};

const CALLERS: usize = 8;
/// What fails this long after a fault is over is no longer its doing.
const AFTERMATH: Duration = Duration::from_secs(2);
/// Between two faults: longer than the aftermath, so that there is always a time without excuse.
const BETWEEN: Duration = Duration::from_secs(4);
/// The same in a run of ten minutes and more.
const BETWEEN_LONG: Duration = Duration::from_secs(20);

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Numbers that a seed fixes (Marsaglia's xorshift).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// Injects one fault, leaves it for a while, takes it away again.
async fn fault(stage: &Stage, numbers: &mut Numbers) -> &'static str {
    let (server, state) = (&stage.server, stage.server.state());
    let path = ["transit/encrypt", "transit/decrypt", "transit", ""][numbers.below(4) as usize];
    let reply = |status, text: &str| Fault::Reply { status, body: format!("{{\"errors\":[\"{text}\"]}}") };
    let (name, fault) = match numbers.below(10) {
        0 => ("503", Some(reply(503, "node is not active"))),
        1 => ("429", Some(reply(429, "rate limit quota exceeded"))),
        2 => ("500", Some(reply(500, "internal error"))),
        3 => ("reset", Some(Fault::Reset)),
        4 => ("reset mid body", Some(Fault::ResetMidBody)),
        5 => ("delay", Some(Fault::Delay(Duration::from_millis(200)))),
        6 => ("malformed", Some(Fault::Malformed)),
        7 => ("hang", Some(Fault::Hang)),
        8 => {
            state.seal();
            ("seal", None)
        }
        _ => {
            state.revoke_all_tokens();
            ("revocation", None)
        }
    };
    if let Some(fault) = fault {
        server.faults().add(path, fault);
    }
    tokio::time::sleep(Duration::from_millis(100 + numbers.below(900))).await;
    server.faults().clear();
    state.unseal();
    name
}

/// Resident memory that is no file's, in KiB, and open descriptors (proc(5)).
fn holds(program: &Program) -> (u64, usize) {
    let proc = format!("/proc/{}", program.child.id());
    let status = std::fs::read_to_string(format!("{proc}/status")).expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("a line");
    let kib = line.trim().trim_end_matches(" kB").parse().expect("a number");
    // Only root may look at the descriptors of a process that cannot be dumped.
    let open = std::fs::read_dir(format!("{proc}/fd")).map_or(0, Iterator::count);
    (kib, open)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_wrong_nothing_leaks_and_every_failure_has_its_fault() {
    let length = Duration::from_secs(setting("BAO_KMS_SOAK_SECONDS", 12));
    let between = if length < Duration::from_secs(600) { BETWEEN } else { BETWEEN_LONG };
    let seed = setting("BAO_KMS_SOAK_SEED", u64::from(std::process::id()) + 1);
    let stage = Stage::set().await;
    let quiet = stage.config("    health: { tolerance: 1s }").replace("level: trace", "level: info");
    let program = stage.serve(&quiet);
    let client = stage.client().await.with_timeout(Duration::from_secs(5));
    status_until(&client, "ok", |status| status.healthz == "ok").await;

    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut callers = tokio::task::JoinSet::new();
    for at in 0..CALLERS {
        let (client, stop, done) = (client.clone(), stop.clone(), done.clone());
        callers.spawn(async move {
            let (mut failures, seed) = (Vec::new(), vec![at as u8; 32]);
            while !stop.load(Ordering::Relaxed) {
                let began = Instant::now();
                let round = async {
                    let sealed = client.encrypt(seed.clone(), "u").await?;
                    client.decrypt(sealed.ciphertext.to_vec(), "u", &sealed.key_id, sealed.annotations).await
                };
                match round.await {
                    Ok(opened) => assert_eq!(opened, seed, "another plaintext"),
                    Err(error) => failures.push((began, Instant::now(), error.to_string())),
                }
                done.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            failures
        });
    }

    tokio::time::sleep(Duration::from_secs(1)).await;
    let (mut numbers, mut faults, began) = (Numbers(seed), Vec::new(), Instant::now());
    while began.elapsed() < length {
        let start = Instant::now();
        let name = fault(&stage, &mut numbers).await;
        faults.push((start, Instant::now(), name));
        tokio::time::sleep(between).await;
    }
    stop.store(true, Ordering::Relaxed);
    let failures: Vec<_> = callers.join_all().await.into_iter().flatten().collect();
    let unexplained: Vec<_> = failures
        .iter()
        .filter(|(from, to, _)| !faults.iter().any(|(start, end, _)| from <= &(*end + AFTERMATH) && to >= start))
        .map(|(_, _, text)| text)
        .collect();
    let names: Vec<_> = faults.iter().map(|(_, _, name)| *name).collect();
    assert!(unexplained.is_empty(), "seed {seed}, {names:?}: {unexplained:?}");
    status_until(&client, "ok", |status| status.healthz == "ok").await;

    // Once more everything works at the first try, and what the load held is given back.
    for at in 0..CALLERS {
        client.encrypt(vec![at as u8; 32], "u").await.expect("Encrypt");
    }
    let quiet = Instant::now();
    loop {
        let metrics = stage.admin("/metrics").await.1;
        let (kib, open) = holds(&program);
        let idle = [
            "calls_in_flight{pipeline=\"a\",call=\"decrypt\"} 0",
            "slots_used{pipeline=\"a\"} 0",
            "gathering{pipeline=\"a\"} 0",
        ];
        if idle.iter().all(|line| metrics.contains(line)) && kib < 24 * 1024 && open < 120 {
            break;
        }
        assert!(quiet.elapsed() < PATIENCE, "seed {seed}: {kib} KiB and {open} descriptors are still held:\n{metrics}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let (code, log) = program.stop();
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("\"event\":\"panic\""), "{log}");
    let done = done.load(Ordering::Relaxed);
    eprintln!("seed {seed}: {done} rounds, {} faults, {} failures, each explained", faults.len(), failures.len());
    assert!(done > 100, "{done} rounds are no load");
}
