//! SIGKILL at any instant: of a start, and of either end of a hand-over. Whatever it leaves, the next start serves.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use bao_kms_provider::front::client::Client;
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::UnixStream;

use super::handover::{Service, pid, quiet, round};
use super::inherit::{serve, status, write_config};
use super::puppet::folder;
use super::support::{PATIENCE, Stage};

/// Makes each run draw the same.
const SEED: u64 = 20_260_101;
/// How often it is measured and tried: a machine that becomes slower in between keeps every kill in one phase.
const TRIES: usize = 3;

/// One instant of each part of what takes this long undisturbed, and of a fifth more, so that its end is met as well.
fn instants(random: &mut fastrand::Rng, undisturbed: Duration, parts: u32) -> Vec<Duration> {
    let part = undisturbed.mul_f64(1.2) / parts;
    (0..parts).map(|at| part * at + part.mul_f64(random.f64())).collect()
}

/// What stands at this path: another socket under the same number was made at another time.
fn there(path: &Path) -> Option<(u64, i64, i64)> {
    path.symlink_metadata().ok().map(|meta| (meta.ino(), meta.ctime(), meta.ctime_nsec()))
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_instant_of_its_start_it_leaves_nothing_that_stops_the_next() {
    let folder = folder();
    let file = write_config(folder.path());
    let text = std::fs::read_to_string(&file).expect("the file");
    let run = folder.path().join("run");
    let wanted = format!("{}/kms.sock, createDirectory: true", run.display());
    std::fs::write(&file, text.replace(&format!("{}/kms.sock", folder.path().display()), &wanted)).expect("written");
    let socket = run.join("kms.sock");
    let mut random = fastrand::Rng::with_seed(SEED);
    let (mut without, mut with) = (0, 0);
    for _ in 0..TRIES {
        let undisturbed = start_takes(&file, &socket).await;
        for (round, pause) in instants(&mut random, undisturbed, 20).into_iter().enumerate() {
            // Every second time the directory has to be made, too.
            if round % 2 == 0 {
                let _ = std::fs::remove_dir_all(&run);
            }
            let before = there(&socket);
            let killed = serve(&file, "", None);
            tokio::time::sleep(pause).await;
            drop(killed);
            let after = there(&socket);
            if after.is_some() && after != before {
                with += 1
            } else {
                without += 1
            }
            let _next = serve(&file, "", None);
            let what = format!("killed after {pause:?} of {undisturbed:?}, seed {SEED}");
            assert_eq!(status(&socket).await.version, "v2", "{what}");
        }
        if without > 0 && with > 0 {
            return;
        }
    }
    panic!("killed {without} times before its socket and {with} times after");
}

/// How long a start takes until Status is answered.
async fn start_takes(file: &Path, socket: &Path) -> Duration {
    let began = Instant::now();
    let _program = serve(file, "", None);
    while UnixStream::connect(socket).await.is_err() {
        assert!(began.elapsed() < PATIENCE, "nobody listens");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    status(socket).await;
    began.elapsed()
}

/// Every process that was started with this stage's file, whoever its parent is by now.
fn ours(stage: &Stage) -> Vec<Pid> {
    let file = stage.path("config.yaml").display().to_string();
    let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    // proc(5): a process that has ended has no command line.
    let with_file = |number: &u32| {
        let line = std::fs::read(format!("/proc/{number}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).split('\0').any(|word| word == file)
    };
    numbers.filter(with_file).map(pid).collect()
}

/// How far a hand-over came, by what was logged of it.
fn phase(log: &str) -> usize {
    ["\"event\":\"handing_over\"", "\"event\":\"handed_over\""].iter().filter(|event| log.contains(**event)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_instant_of_a_hand_over_either_end_leaves_the_socket_to_the_other() {
    let stage = Stage::set().await;
    let config = quiet(&stage);
    let log = || std::fs::read_to_string(stage.path("log")).unwrap_or_default();
    let mut random = fastrand::Rng::with_seed(SEED);
    'kinds: for kills_the_next in [true, false] {
        // Before another process was started, before it served, and after.
        let mut phases = [0; 3];
        for _ in 0..TRIES {
            let undisturbed = hand_over_takes(&stage, &config).await;
            for pause in instants(&mut random, undisturbed, 8) {
                let service = start(&stage, &config).await;
                let told = log().len();
                service.signal(Signal::USR2);
                tokio::time::sleep(pause).await;
                for victim in ours(&stage) {
                    if (victim == service.main) != kills_the_next {
                        // It has ended meanwhile.
                        let _ = kill_process(victim, Signal::KILL);
                    }
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
                phases[phase(&log()[told..])] += 1;
                let what = format!("kills the next: {kills_the_next}, {pause:?} of {undisturbed:?}, seed {SEED}");
                left_to_somebody(&stage, &config, &what).await;
                end_all(&stage).await;
            }
            if phases[1] > 0 && phases[2] > 0 {
                continue 'kinds;
            }
        }
        panic!("kills the next: {kills_the_next}: {phases:?} times before it started, before it served and after");
    }
}

/// How long a hand-over takes until the process before has ended.
async fn hand_over_takes(stage: &Stage, config: &str) -> Duration {
    let mut service = start(stage, config).await;
    let began = Instant::now();
    service.signal(Signal::USR2);
    service.replaced();
    let took = began.elapsed();
    end_all(stage).await;
    took
}

/// Whoever is left serves; nobody is when one was killed before it had heard of the signal, or when the other one had gone:
/// then the service is started anew, as after any crash.
async fn left_to_somebody(stage: &Stage, config: &str, what: &str) {
    let began = Instant::now();
    while let Err(why) = serves(stage).await {
        assert!(began.elapsed() < PATIENCE, "nobody serves: {why} ({what})");
        if ours(stage).is_empty() {
            drop(start(stage, config).await);
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A service that is healthy.
async fn start(stage: &Stage, config: &str) -> Service {
    // There is none before the first.
    let _ = std::fs::remove_file(stage.path("notify"));
    let (service, began) = (Service::start(stage, config), Instant::now());
    while let Err(why) = serves(stage).await {
        assert!(began.elapsed() < PATIENCE, "a start: {why}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    service
}

/// Nobody is left.
async fn end_all(stage: &Stage) {
    let began = Instant::now();
    loop {
        let left = ours(stage);
        if left.is_empty() {
            return;
        }
        for one in left {
            // It has ended meanwhile.
            let _ = kill_process(one, Signal::KILL);
        }
        assert!(began.elapsed() < PATIENCE, "they go on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether somebody serves the socket, healthily.
async fn serves(stage: &Stage) -> Result<(), String> {
    let client = Client::connect(stage.socket()).await.map_err(|error| error.to_string())?;
    let status = client.status().await.map_err(|error| error.to_string())?;
    match status.healthz.as_str() {
        "ok" => round(&client, &[7; 32]).await.map_err(|error| error.to_string()),
        _ => Err(status.healthz),
    }
}
