//! The log as a process writes it: it holds nobody up when nobody reads it, and has no line for a single call.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bao_kms_provider::front::client::Client;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::support::{PATIENCE, Stage, status_until};

/// More than the pipe and the queue hold together.
const REFUSED: usize = 12_000;

/// The program with a standard error that nobody reads yet; killed when dropped.
struct Unread(Child);

impl Unread {
    fn start(stage: &Stage) -> Self {
        let file = stage.write("config.yaml", &stage.config(""));
        let mut command = Command::new(env!("CARGO_BIN_EXE_bao-kms-provider"));
        command.args(["serve", "--config"]).arg(file).stderr(Stdio::piped());
        Self(command.spawn().expect("the program starts"))
    }

    fn terminate(&self) {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).expect("a pid")).expect("not zero");
        kill_process(pid, Signal::TERM).expect("signalled");
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        // A process that has ended already is as good as killed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Makes calls that are refused at the door, each with a line at level trace, until the reader's pipe and the queue are full.
async fn fill(client: &Client) {
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..16 {
        let client = client.clone();
        callers.spawn(async move {
            for _ in 0..REFUSED / 16 {
                let refused = client.decrypt(vec![7; 32], &format!("u{caller}"), "no-key-id", Default::default()).await;
                let text = refused.expect_err("no key_id of ours").to_string();
                assert!(!text.contains("deadline"), "answered, not parked: {text}");
            }
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller.expect("every call is answered");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_nobody_reads_holds_up_no_call_and_says_what_it_lost() {
    let stage = Stage::set().await;
    let mut program = Unread::start(&stage);
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    fill(&client).await;
    assert_eq!(client.status().await.expect("Status answers").healthz, "ok");
    let sealed = client.encrypt(vec![7; 32], "u").await.expect("Encrypt");
    client.decrypt(sealed.ciphertext.to_vec(), "u", &sealed.key_id, sealed.annotations).await.expect("Decrypt");

    // The reader comes back: the log goes on with whole lines, and with the number of those that are missing.
    let mut stderr = program.0.stderr.take().expect("piped");
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        stderr.read_to_string(&mut text).map(|_| text)
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    program.terminate();
    assert_eq!(program.0.wait().expect("it ends").code(), Some(0));
    let text = reader.join().expect("the reader").expect("text");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("whole lines")).collect();
    let told = lines.iter().rfind(|line| line["event"] == "log_lines_dropped").expect("it is told");
    let dropped = told["dropped"].as_u64().expect("a number");
    let kept = lines.iter().filter(|line| line["class"] == "key_id_malformed").count() as u64;
    assert!(dropped > 0 && kept > 0, "{dropped} {kept}");
    assert!(lines.iter().any(|line| line["event"] == "stopping"), "the last lines are there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_nobody_reads_does_not_keep_the_program_from_ending() {
    let stage = Stage::set().await;
    let mut program = Unread::start(&stage);
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    fill(&client).await;
    program.terminate();
    let began = Instant::now();
    let code = loop {
        if let Some(status) = program.0.try_wait().expect("ours") {
            break status.code();
        }
        assert!(began.elapsed() < PATIENCE, "it waits for its reader");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(code, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_default_level_no_call_has_a_line_of_its_own() {
    let stage = Stage::set().await;
    let program = stage.serve(&stage.config("").replace("level: trace", "level: info"));
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    program.logged("status_changed").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = program.output();
    for at in 0..100 {
        let sealed = client.encrypt(vec![7; 32], &format!("u{at}")).await.expect("Encrypt");
        client.decrypt(sealed.ciphertext.to_vec(), "u", &sealed.key_id, sealed.annotations).await.expect("Decrypt");
        client.decrypt(vec![7; 32], "u", "no-key-id", Default::default()).await.expect_err("refused");
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let after = program.output();
    assert_eq!(after.strip_prefix(&before), Some(""), "lines for single calls");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_text_format_is_for_people_and_has_no_colours_in_a_file() {
    let stage = Stage::set().await;
    let program = stage.serve(&stage.config("").replace("level: trace", "format: text, level: info"));
    program.logged("socket_ready").await;
    let (code, text) = program.stop();
    assert_eq!(code, Some(0));
    let line = text.lines().find(|line| line.contains("socket_ready")).expect("it was logged");
    assert!(line.contains("INFO") && serde_json::from_str::<Value>(line).is_err(), "{line}");
    assert!(!text.contains('\u{1b}'), "{text:?}");
}
