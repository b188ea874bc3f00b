//! SIGKILL at any instant: of a start, and of either end of a hand-over. Whatever it leaves, the next start serves.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::handover::{Service, alive, pid, quiet, round};
use super::inherit::{serve, status, write_config};
use super::puppet::folder;
use super::support::{PATIENCE, Stage};

/// Makes each run the same.
const SEED: u64 = 20_260_101;

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_instant_of_its_start_it_leaves_nothing_that_stops_the_next() {
    let folder = folder();
    let file = write_config(folder.path());
    let text = std::fs::read_to_string(&file).expect("the file");
    let run = folder.path().join("run");
    let wanted = format!("{}/kms.sock, createDirectory: true", run.display());
    std::fs::write(&file, text.replace(&format!("{}/kms.sock", folder.path().display()), &wanted)).expect("written");
    let mut random = fastrand::Rng::with_seed(SEED);
    for round in 0..20 {
        let pause = Duration::from_micros(random.u64(0..60_000));
        // Every second time the directory has to be made, too.
        if round % 2 == 0 {
            let _ = std::fs::remove_dir_all(&run);
        }
        let killed = serve(&file, "", None);
        tokio::time::sleep(pause).await;
        drop(killed);
        let _next = serve(&file, "", None);
        assert_eq!(status(&run.join("kms.sock")).await.version, "v2", "killed after {pause:?}, seed {SEED}");
    }
}

/// The children of a process.
fn children(parent: Pid) -> Vec<Pid> {
    let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let of_parent = |number: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{number}/stat")).unwrap_or_default();
        // proc(5): the state and the parent follow the name, which stands in brackets.
        let after = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)).map(str::to_owned);
        after.is_some_and(|number| number == parent.as_raw_pid().to_string())
    };
    numbers.filter(of_parent).map(pid).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_instant_of_a_hand_over_either_end_leaves_the_socket_to_the_other() {
    let stage = Stage::set().await;
    let mut random = fastrand::Rng::with_seed(SEED);
    let config = quiet(&stage);
    for at in 0..12 {
        let _ = std::fs::remove_file(stage.path("notify"));
        let service = Service::start(&stage, &config);
        served(&stage, "the start of a round").await;
        let (kills_the_next, pause) = (at % 2 == 0, Duration::from_micros(random.u64(0..120_000)));
        service.signal(Signal::USR2);
        tokio::time::sleep(pause).await;
        let started = children(service.main);
        let victims = if kills_the_next { started.clone() } else { vec![service.main] };
        for victim in victims {
            let _ = kill_process(victim, Signal::KILL);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        let ours: Vec<Pid> = started.into_iter().chain([service.main]).collect();
        let what = format!("round {at}, {pause:?}, seed {SEED}");
        if !ours.iter().any(|one| alive(*one)) {
            // It died before it had heard of the signal, or its successor was killed when it had left: as after any crash.
            let _ = std::fs::remove_file(stage.path("notify"));
            let next = Service::start(&stage, &config);
            served(&stage, &what).await;
            drop(next);
        } else {
            served(&stage, &what).await;
        }
        let left: Vec<Pid> = children(service.main).into_iter().chain(ours).collect();
        for one in &left {
            let _ = kill_process(*one, Signal::KILL);
        }
        while left.iter().any(|one| alive(*one)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Somebody serves the socket, healthily.
async fn served(stage: &Stage, what: &str) {
    let began = Instant::now();
    loop {
        let outcome = match bao_kms_provider::front::client::Client::connect(stage.socket()).await {
            Ok(client) => match client.status().await {
                Ok(status) if status.healthz == "ok" => {
                    round(&client, &[7; 32]).await.map_err(|error| error.to_string())
                }
                Ok(status) => Err(status.healthz),
                Err(error) => Err(error.to_string()),
            },
            Err(error) => Err(error.to_string()),
        };
        match outcome {
            Ok(()) => return,
            Err(why) => assert!(began.elapsed() < PATIENCE, "nobody serves: {why} ({what})"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
