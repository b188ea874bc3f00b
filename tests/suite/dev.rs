//! `dev` as somebody runs it on a laptop: it shows the calls that are made, and leaves nothing behind however it is ended.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bao_kms_provider::front::client::Client;
use rustix::process::{Pid, Signal, kill_process};

use super::support::PATIENCE;

/// The story, with a temporary directory of its own; killed when dropped.
struct Story {
    child: Child,
    told: Arc<Mutex<String>>,
    temp: tempfile::TempDir,
}

impl Story {
    fn start() -> Self {
        let temp = tempfile::tempdir().expect("a folder");
        let mut command = Command::new(env!("CARGO_BIN_EXE_bao-kms-provider"));
        command.arg("dev").env("TMPDIR", temp.path()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let (told, stdout) = (Arc::<Mutex<String>>::default(), child.stdout.take().expect("piped"));
        let sink = told.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let mut text = sink.lock().expect("lock");
                text.push_str(&line);
                text.push('\n');
            }
        });
        Self { child, told, temp }
    }

    fn told(&self) -> String {
        self.told.lock().expect("lock").clone()
    }

    /// Waits for something to be true of the text and gives what was found.
    async fn until<T>(&self, what: &str, find: impl Fn(&str) -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            if let Some(found) = find(&self.told()) {
                return found;
            }
            assert!(began.elapsed() < PATIENCE * 2, "never {what}:\n{}", self.told());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Ends it with a signal; its exit code, and what is left in the temporary directory.
    fn end(mut self, signal: Signal) -> (Option<i32>, Vec<std::path::PathBuf>) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid")).expect("not zero");
        kill_process(pid, signal).expect("signalled");
        let code = self.child.wait().expect("it ends").code();
        (code, entries(self.temp.path()))
    }
}

impl Drop for Story {
    fn drop(&mut self) {
        // A process that has ended already is as good as killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn entries(folder: &Path) -> Vec<std::path::PathBuf> {
    std::fs::read_dir(folder).expect("a folder").flatten().map(|entry| entry.path()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_shows_each_call_with_its_outcome_until_ctrl_c_and_leaves_nothing() {
    let story = Story::start();
    let socket = story
        .until("staying up", |text| {
            let rest = text.split("It stays up").nth(1)?;
            Some(rest.split_once("--socket ")?.1.split('`').next()?.to_owned())
        })
        .await;
    let shown = |text: &str| text.split("It stays up").nth(1).unwrap_or_default().lines().skip(1).collect::<String>();
    let mut probe = Command::new(env!("CARGO_BIN_EXE_bao-kms-provider"));
    let probed = probe.args(["probe", "--socket", &socket]).output().expect("it runs");
    assert!(probed.status.success(), "{probed:?}");
    for call in ["status   ok", "encrypt  ok", "decrypt  ok"] {
        story.until(call, |text| shown(text).contains(call).then_some(())).await;
    }
    let client = Client::connect(&socket).await.expect("a connection");
    client.decrypt(vec![7; 32], "u", "no-key-id", Default::default()).await.expect_err("refused");
    story.until("a refused call", |text| shown(text).contains("decrypt  key_id_malformed").then_some(())).await;
    // Metadata is read each second; that is not what somebody watches for.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(!shown(&story.told()).contains("/v1/"), "{}", story.told());
    assert_eq!(story.end(Signal::INT), (Some(0), vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn ended_in_the_middle_it_takes_its_credential_along() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let story = Story::start();
        let began = Instant::now();
        while !entries(story.temp.path()).iter().any(|folder| folder.join("identity.jwt").exists()) {
            assert!(began.elapsed() < PATIENCE, "no credential yet:\n{}", story.told());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(!story.told().contains("It stays up"), "too late to be in the middle");
        assert_eq!(story.end(signal), (Some(0), vec![]), "{signal:?}");
    }
}
