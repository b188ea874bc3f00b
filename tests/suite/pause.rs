//! A program that stands still for a while, as on a virtual machine that is paused or a node that starves it.

use std::time::Duration;

use rustix::process::Signal;

use super::reload_taken::Steady;
use super::support::{PATIENCE, Stage, eventually, status_until, until};

/// Calls that are made and taken back meanwhile: what an API server has under way at once by default.
const TAKEN_BACK: usize = 600;
/// So many of them get as far as the program at least, whatever the socket's buffers hold: five times what h2 bears of itself.
const IN_THE_WAY: u64 = 100;
/// How long they wait.
const HURRY: Duration = Duration::from_millis(500);

/// Whether every thread is stopped (proc(5)): a signal is only on its way when it has been sent.
fn stands_still(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("threads").flatten();
    let mut states = threads.map(|thread| std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default());
    states.all(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')))
}

/// Whoever takes back what nobody has looked at is no attacker: the connection, and what else is under way on it, stays.
#[tokio::test(flavor = "multi_thread")]
async fn calls_that_are_taken_back_while_the_program_stands_still_cost_no_other_call() {
    let stage = Stage::set().await;
    let program = stage.serve(&stage.config(""));
    let steady = Steady::connect(&stage).await;
    status_until(&stage.client().await, "ok", |status| status.healthz == "ok").await;
    steady.untouched().await;

    program.signal(Signal::STOP);
    until("the program stands still", || stands_still(program.child.id())).await;
    let hurried = (0..TAKEN_BACK).map(|_| {
        let steady = steady.clone();
        tokio::spawn(async move { tokio::time::timeout(HURRY, steady.encrypt()).await.is_err() })
    });
    let hurried: Vec<_> = hurried.collect();
    let patient = tokio::spawn({
        let steady = steady.clone();
        async move { steady.encrypt().await }
    });
    for call in hurried {
        assert!(call.await.expect("a call"), "nobody was there to answer");
    }
    // What says that a call is taken back leaves a moment after it.
    tokio::time::sleep(HURRY).await;
    program.signal(Signal::CONT);
    patient.await.expect("what waited is answered");
    eventually("many were in the way", PATIENCE, || async {
        let seen = stage.metric("bao_kms_hang_ups_total{pipeline=\"a\"}").await;
        if seen > IN_THE_WAY { Ok(()) } else { Err(format!("{seen} of {TAKEN_BACK}")) }
    })
    .await;
    steady.untouched().await;
}
