//! The figures of docs/performance.md: `cargo bench --bench figures --profile dist` measures and prints its table.
//!
//! Everything runs on one machine, so ratios count, not figures: each round measures the baseline and the program one
//! after the other, and the median of the rounds is what the table says. Words after `--` choose parts of the table. A
//! bound that is missed is marked, and the run fails.

mod decrypts;
mod http2;
mod measure;
mod old_callers;
mod program;
mod stage;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use measure::{load, median};
use program::Program;
use stage::{Sealed, Stage};

const ROUNDS: usize = 5;
/// Pairs of programs where one program's chance is to be told from another's.
const PAIRS: usize = 7;
const ONE_AT_A_TIME: usize = 600;
const MANY_AT_A_TIME: usize = 4_000;
/// Calls of ours in a round beside so many bare ones: those take about as long. Each ciphertext comes so often, one after all
/// others.
const TIMES: usize = 4;
/// Calls and seeds of a start-up storm, and of a large cluster's.
const STORM: (usize, usize) = (1_000, 20);
const LARGE_STORM: (usize, usize) = (5_000, 50);

/// Bounds that were missed.
static MISSED: AtomicUsize = AtomicUsize::new(0);

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(run());
    match MISSED.load(Ordering::Relaxed) {
        0 => ExitCode::SUCCESS,
        missed => {
            eprintln!("{missed} bounds were missed");
            ExitCode::FAILURE
        }
    }
}

async fn run() {
    // reqwest asks for a process-wide provider even when it speaks plain HTTP to the admin listener.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let stage = Stage::set().await;
    let program = Program::start(&stage, &stage.url, "").await;
    println!("| figure | measured | bound |");
    println!("|---|---|---|");
    let chosen: Vec<_> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    const PARTS: [&str; 5] = ["latency", "alone", "throughput", "status", "storm"];
    if let Some(unknown) = chosen.iter().find(|word| !PARTS.contains(&word.as_str())) {
        panic!("no part is called {unknown}; there are {}", PARTS.join(", "));
    }
    let wanted = |part: &str| chosen.is_empty() || chosen.iter().any(|word| word == part);
    told("OpenBao behind the figures", stage.openbao.to_owned());
    let binary = program::binary_mb();
    row("binary", format!("{binary:.1} MB"), "< 14 MB", binary < 14.0);
    let mut starts = vec![millis(program.socket_after)];
    while starts.len() < ROUNDS {
        starts.push(millis(Program::start(&stage, &stage.url, "").await.socket_after));
    }
    let start = median(starts);
    row("exec to accepting socket", format!("{start:.1} ms"), "< 20 ms", start < 20.0);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let idle = measure::rss_mib(program.pid());
    row("VmRSS idle", format!("{idle:.1} MiB"), "< 12 MiB", idle < 12.0);
    if wanted("latency") {
        latency(&stage, &program).await;
    }
    if wanted("alone") {
        alone(&stage).await;
    }
    if wanted("throughput") {
        for in_flight in [16, 64, 1_000] {
            throughput(&stage, &program, in_flight).await;
        }
    }
    if wanted("status") {
        status(&program).await;
        old_callers(&program).await;
    }
    if wanted("storm") {
        storms(&stage, program).await;
    }
}

async fn storms(stage: &Stage, program: Program) {
    let near = |storm: &Storm| storm.took < 150.0 && storm.calls <= 5.0 && storm.refused == 0;
    storm(&program, STORM, "", "< 150 ms, <= 5, 0", near).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let left = measure::rss_mib(program.pid());
    row("VmRSS 10 s after the storm", format!("{left:.1} MiB"), "< 30 MiB", left < 30.0);
    drop(program);

    let far = stage.farther(Duration::from_millis(50)).await;
    let program = Program::start(stage, &far, "").await;
    let items = |most: f64| move |storm: &Storm| storm.items <= most && storm.refused == 0;
    storm(&program, STORM, ", OpenBao 50 ms away", "<= 2 items a seed, 0 refused", items(2.0)).await;
    storm(&program, LARGE_STORM, ", OpenBao 50 ms away", "<= 3 items a seed, 0 refused", items(3.0)).await;
}

/// A figure without a bound.
fn told(figure: &str, measured: String) {
    println!("| {figure} | {measured} |  |");
}

fn row(figure: &str, measured: String, bound: &str, holds: bool) {
    let missed = if holds { "" } else { ", missed" };
    MISSED.fetch_add(usize::from(!holds), Ordering::Relaxed);
    println!("| {figure} | {measured} | {bound}{missed} |");
}

fn millis(span: Duration) -> f64 {
    span.as_secs_f64() * 1e3
}

/// One Decrypt through the socket against one bare Transit call, one at a time.
async fn latency(stage: &Stage, program: &Program) {
    let (mut added, mut ours, mut bare) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let base = bare_round(stage, 1, ONE_AT_A_TIME).await.percentile(0.5);
        let through = our_round(program, 1, ONE_AT_A_TIME).await.percentile(0.5);
        added.push(millis(through) - millis(base));
        ours.push(millis(through));
        bare.push(millis(base));
    }
    let added = median(added);
    let measured = format!("{added:.3} ms ({:.3} over {:.3})", median(ours), median(bare));
    row("added p50 of one Decrypt", measured, "< 0.35 ms", added < 0.35);
}

/// One Decrypt at a time with batches and without them: what waits for nobody must not pay for it. Each pair of programs is
/// a new one and takes turns in both orders, because two processes of one binary differ by more than what is looked for.
async fn alone(stage: &Stage) {
    const TURNS: usize = 8;
    const CALLS: usize = 150;
    let (mut ratios, mut with, mut without) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..PAIRS {
        let programs = [
            Program::start(stage, &stage.url, "layers: { batch: { maxItems: 1 } }").await,
            Program::start(stage, &stage.url, "").await,
        ];
        let mut rounds = [Vec::new(), Vec::new()];
        for turn in 0..TURNS {
            for which in [turn % 2, 1 - turn % 2] {
                rounds[which].extend(our_round(&programs[which], 1, CALLS).await.latencies);
            }
        }
        let [base, through] =
            rounds.map(|latencies| millis(measure::Round::of(latencies, Duration::ZERO).percentile(0.5)));
        ratios.push(through / base);
        with.push(through);
        without.push(base);
    }
    let ratio = median(ratios);
    let measured = format!("{ratio:.2} ({:.3} over {:.3} ms)", median(with), median(without));
    row("p50 of one Decrypt, ratio to the same without batches", measured, "<= 1.05", ratio <= 1.05);
}

/// Calls per second and CPU per Decrypt at a number in flight.
async fn throughput(stage: &Stage, program: &Program, in_flight: usize) {
    let (mut ratios, mut cpu, mut ours, mut bare) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        // More bare connections than this only slow each other down.
        let base = bare_round(stage, in_flight.min(64), MANY_AT_A_TIME).await.rate();
        let before = measure::cpu_time(program.pid());
        let through = our_round(program, in_flight, MANY_AT_A_TIME * TIMES).await.rate();
        let used = measure::cpu_time(program.pid()).saturating_sub(before);
        cpu.push(used.as_secs_f64() * 1e6 / (MANY_AT_A_TIME * TIMES) as f64);
        ratios.push(through / base);
        ours.push(through);
        bare.push(base);
    }
    let (share, cpu) = (median(ratios), median(cpu));
    let measured = format!("{share:.2} ({:.0} of {:.0} a second)", median(ours), median(bare));
    let least = match in_flight {
        16 => 0.85,
        64 => 3.0,
        _ => 4.0,
    };
    let figure = format!("Decrypt at {in_flight} in flight, share of bare calls");
    row(&figure, measured, &format!(">= {least}"), share >= least);
    row(&format!("CPU per Decrypt in our process at {in_flight}"), format!("{cpu:.0} us"), "< 80 us", cpu < 80.0);
}

/// Status against an empty tonic handler on a socket of the same kind, 16 callers.
async fn status(program: &Program) {
    let empty = stage::EmptyServer::start().await;
    let before = program.openbao_attempts().await;
    let (mut ratios, mut ours, mut bare) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let base = status_round(empty.client.clone()).await.percentile(0.99);
        let through = status_round(program.client.clone()).await.percentile(0.99);
        ratios.push(through.as_secs_f64() / base.as_secs_f64());
        ours.push(millis(through));
        bare.push(millis(base));
    }
    let calls = program.openbao_attempts().await - before;
    let ratio = median(ratios);
    let measured = format!("{ratio:.2} ({:.2} over {:.2} ms), {calls} OpenBao calls", median(ours), median(bare));
    row("Status p99 at 16, ratio to an empty handler", measured, "<= 1.3, 0", ratio <= 1.3 && calls == 0);
}

/// What the repair of an escaped authority costs a call.
async fn old_callers(program: &Program) {
    let (mut ratios, mut repaired, mut plain) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let base = old_callers::round(program.socket.clone(), false, 2_000).await.percentile(0.5);
        let through = old_callers::round(program.socket.clone(), true, 2_000).await.percentile(0.5);
        ratios.push(through.as_secs_f64() / base.as_secs_f64());
        repaired.push(millis(through));
        plain.push(millis(base));
    }
    let measured = format!("{:.2} ({:.3} over {:.3} ms)", median(ratios), median(repaired), median(plain));
    told("Status p50 of an API server before 1.32, ratio to a later one", measured);
}

async fn status_round(client: program::Client) -> measure::Round {
    load(16, 8_000, move |_| {
        let client = client.clone();
        async move {
            client.status().await.expect("Status");
        }
    })
    .await
}

/// The medians of a storm: milliseconds, Transit calls and items for each seed; and how many calls were refused in all.
struct Storm {
    took: f64,
    calls: f64,
    items: f64,
    refused: usize,
}

/// Many decrypts of few seeds at once.
async fn storm(
    program: &Program,
    (calls_at_once, distinct): (usize, usize),
    what: &str,
    bound: &str,
    holds: impl Fn(&Storm) -> bool,
) {
    let (mut took, mut calls, mut items) = (Vec::new(), Vec::new(), Vec::new());
    let refused = Arc::new(AtomicUsize::new(0));
    for _ in 0..ROUNDS {
        let seeds = program.wrap(distinct).await;
        let before = (program.decrypt_attempts().await, program.decrypt_items().await);
        let started = Instant::now();
        let callers: Vec<_> = (0..calls_at_once)
            .map(|at| {
                let (client, seed, refused) = (program.client.clone(), seeds[at % distinct].clone(), refused.clone());
                tokio::spawn(async move {
                    if open(&client, &seed).await.is_err() {
                        refused.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        for caller in callers {
            caller.await.expect("a caller");
        }
        took.push(millis(started.elapsed()));
        calls.push((program.decrypt_attempts().await - before.0) as f64 / distinct as f64);
        items.push((program.decrypt_items().await - before.1) as f64 / distinct as f64);
    }
    let refused = refused.load(Ordering::Relaxed);
    let storm = Storm { took: median(took), calls: median(calls), items: median(items), refused };
    let Storm { took, calls, items, .. } = &storm;
    let measured = format!("{took:.0} ms, {calls:.1} Transit calls and {items:.1} items a seed, {refused} refused");
    row(&format!("{calls_at_once} decrypts of {distinct} seeds at once{what}"), measured, bound, holds(&storm));
}

async fn open(client: &program::Client, sealed: &Sealed) -> Result<Vec<u8>, program::ClientError> {
    client.decrypt(sealed.ciphertext.clone(), "bench", &sealed.key_id, sealed.annotations.clone()).await
}

async fn our_round(program: &Program, in_flight: usize, total: usize) -> measure::Round {
    let calls = program.calls(total.min(MANY_AT_A_TIME)).await;
    decrypts::round(program.socket.clone(), calls, total, in_flight).await
}

async fn bare_round(stage: &Stage, in_flight: usize, total: usize) -> measure::Round {
    let bodies = stage.bodies(total).await;
    let bare = stage.bare();
    load(in_flight, total, move |at| {
        let (bare, bodies) = (bare.clone(), bodies.clone());
        async move { bare.decrypt(&bodies[at]).await }
    })
    .await
}
