//! Another process in the place of this one, under load: a client that waits for a connection and repeats what the server
//! did not process, as grpc-go does, loses no call.

use std::convert::Infallible;
use std::error::Error as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bao_kms_provider::front::client::{Client, ClientError};
use rustix::process::{Pid, Signal, kill_process};

use super::inherit::{Program, serve, serve_as};
use super::load::Load;
use super::support::{PATIENCE, Stage, status_until};

/// How often the program is replaced.
const TIMES: u64 = 100;
/// Nearly every call is answered earlier.
const OTHERS_AFTER: Duration = Duration::from_millis(250);
/// So many lines of the log are shown when a test fails.
const LAST_WORDS: usize = 40;

/// The program as a service manager sees it: started once, then whatever process it names its main one.
pub(super) struct Service {
    first: Option<Program>,
    pub(super) main: Pid,
    /// Each process that is named the main one.
    named: mpsc::Receiver<Pid>,
    log: PathBuf,
}

impl Service {
    pub(super) fn start(stage: &Stage, config: &str) -> Self {
        Self::start_as(stage, config, env!("CARGO_BIN_EXE_bao-kms-provider"), None)
    }

    /// The program under this path, with a socket of the service manager for pipeline `a`.
    pub(super) fn start_as(stage: &Stage, config: &str, program: &str, socket: Option<OwnedFd>) -> Self {
        let file = stage.write("config.yaml", config);
        let path = stage.path("notify");
        let notify = UnixDatagram::bind(&path).expect("a socket");
        let passed = if socket.is_some() { "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=a" } else { "" };
        let (log, notify_at) = (stage.path("log"), path.display());
        let variables = format!("exec 2>>{}; NOTIFY_SOCKET={notify_at} {passed}", log.display());
        let first = serve_as(program, &file, &variables, socket);
        let main = pid(first.0.id());
        Self { first: Some(first), main, named: listen(notify), log: stage.path("log") }
    }

    pub(super) fn signal(&self, signal: Signal) {
        kill_process(self.main, signal).expect("signalled");
    }

    /// Waits until the service manager is told of another main process, and until the one before has ended.
    pub(super) fn replaced(&mut self) {
        let before = self.named();
        let began = Instant::now();
        while alive(before) {
            assert!(began.elapsed() < PATIENCE, "the process before goes on");
            std::thread::sleep(Duration::from_millis(5));
        }
        if let Some(mut first) = self.first.take() {
            assert_eq!(first.0.wait().expect("it ends").code(), Some(0));
        }
    }

    /// Waits until the service manager is told of another main process; the one before.
    pub(super) fn named(&mut self) -> Pid {
        let next = self.named.recv_timeout(PATIENCE).expect("a word");
        std::mem::replace(&mut self.main, next)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            // A hundred processes wrote it: the end tells, and leaves the panic's own words in sight.
            let from = log.lines().count().saturating_sub(LAST_WORDS);
            eprintln!("{}", log.lines().skip(from).collect::<Vec<_>>().join("\n"));
        }
        let _ = kill_process(self.main, Signal::KILL);
    }
}

/// Hears everything, as a service manager does: words that nobody takes would hold their sender up.
fn listen(notify: UnixDatagram) -> mpsc::Receiver<Pid> {
    let (named, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut message = [0; 512];
        while let Ok(length) = notify.recv(&mut message) {
            let text = String::from_utf8_lossy(&message[..length]).into_owned();
            let number = text.trim().strip_prefix("MAINPID=").and_then(|number| number.parse().ok());
            if number.is_some_and(|number| named.send(pid(number)).is_err()) {
                return;
            }
        }
    });
    receiver
}

pub(super) fn pid(number: u32) -> Pid {
    Pid::from_raw(i32::try_from(number).expect("a number")).expect("not zero")
}

/// Whether it runs: one that has ended may stay in the table until somebody asks for it.
pub(super) fn alive(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid())).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

pub(super) async fn logged(stage: &Stage, text: &str) {
    let began = Instant::now();
    loop {
        let log = std::fs::read_to_string(stage.path("log")).unwrap_or_default();
        if log.contains(text) {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "never logged {text:?}:\n{log}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Whether the server said, or the connection shows, that it has not begun with the call.
fn not_processed(error: &ClientError) -> bool {
    let ClientError::Call(status) = error else {
        return true;
    };
    let mut cause = status.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            return error.is_remote() && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM));
        }
        if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Callers with a connection each that repeat what was not processed.
pub(super) async fn load(path: &Path, callers: usize) -> Load {
    let mut clients = Vec::new();
    for _ in 0..callers {
        clients.push(Client::connect(path).await.expect("a connection"));
    }
    Load::of(callers, Duration::from_millis(2), |at| {
        let (client, seed) = (clients[at].clone(), vec![at as u8; 32]);
        move || {
            let (client, seed) = (client.clone(), seed.clone());
            async move { round(&client, &seed).await.map_err(|error| format!("{error:?}")) }
        }
    })
}

pub(super) async fn round(client: &Client, seed: &[u8]) -> Result<(), ClientError> {
    let (kms, plaintext) = (client.clone(), seed.to_vec());
    let sealed = repeated(client, move || {
        let (kms, plaintext) = (kms.clone(), plaintext.clone());
        async move { kms.encrypt(plaintext, "u").await }
    });
    let (kms, sealed) = (client.clone(), sealed.await?);
    let opened = repeated(client, move || {
        let (kms, sealed) = (kms.clone(), sealed.clone());
        async move { kms.decrypt(sealed.ciphertext.to_vec(), "u", &sealed.key_id, sealed.annotations).await }
    });
    assert_eq!(opened.await?, seed, "another plaintext");
    Ok(())
}

/// Makes the call until the server has processed it, within the API server's time.
pub(super) async fn repeated<T, F>(client: &Client, call: impl Fn() -> F) -> Result<T, ClientError>
where
    F: Future<Output = Result<T, ClientError>>,
{
    let began = Instant::now();
    loop {
        match beside_others(client, call()).await {
            Err(error) if not_processed(&error) && began.elapsed() < Duration::from_secs(3) => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            outcome => return outcome,
        }
    }
}

/// Makes a call on a channel that others use as well. In Rust's client a call that is queued in the instant in which its
/// connection ends is neither sent nor refused until the next call of the channel finds the connection gone; grpc-go has no
/// such queue. On a connection that lives, a call that the server has lost stays lost. One that only stands still until the
/// next frame comes would be seen by the loads that have no others.
async fn beside_others<T>(client: &Client, call: impl Future<Output = T>) -> T {
    tokio::select! {
        biased;
        outcome = call => outcome,
        never = others(client) => match never {},
    }
}

async fn others(client: &Client) -> Infallible {
    loop {
        tokio::time::sleep(OTHERS_AFTER).await;
        // Made for the sake of the one that waits.
        let _ = client.status().await;
    }
}

pub(super) fn quiet(stage: &Stage) -> String {
    stage.config("").replace("level: trace", "level: info")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_hand_overs_under_load_lose_no_call() {
    let stage = Stage::set().await;
    let mut service = Service::start(&stage, &quiet(&stage));
    let client = stage.client().await;
    let first = status_until(&client, "ok", |status| status.healthz == "ok").await;
    let load = load(&stage.socket(), 8).await;
    for _ in 0..TIMES {
        service.signal(Signal::USR2);
        tokio::task::block_in_place(|| service.replaced());
        // A new connection meets a process that is ready: whatever was healthy stays so.
        let status = Client::connect(stage.socket()).await.expect("a listener").status().await.expect("Status");
        assert_eq!((status.healthz.as_str(), &status.key_id), ("ok", &first.key_id));
    }
    load.end().await.assert_clean(500, "hand-overs");
    let logins = stage.server.calls().of("auth/login");
    assert!(logins <= TIMES + 3, "{logins} logins of {TIMES} processes");
    let live = stage.server.state().live_tokens();
    assert!(live <= 3, "{live} tokens: each process gives its own back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_restarts_behind_the_service_managers_socket_lose_no_call() {
    let stage = Stage::set().await;
    let file = stage.write("config.yaml", &quiet(&stage));
    let manager = UnixListener::bind(stage.socket()).expect("a socket");
    let start = || {
        let passed = manager.try_clone().expect("a copy");
        serve(&file, "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=a", Some(passed.into()))
    };
    let mut program = start();
    status_until(&stage.client().await, "ok", |status| status.healthz == "ok").await;
    let load = load(&stage.socket(), 8).await;
    for _ in 0..TIMES {
        kill_process(pid(program.0.id()), Signal::TERM).expect("signalled");
        let ended = tokio::task::block_in_place(|| program.0.wait()).expect("it ends");
        assert_eq!(ended.code(), Some(0));
        program = start();
        // A process that has not come to its signals yet would die of the next one.
        status_until(&stage.client().await, "an answer", |_| true).await;
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    status_until(&stage.client().await, "ok", |status| status.healthz == "ok").await;
    load.end().await.assert_clean(300, "restarts");
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_keeps_the_next_process_from_serving_the_one_before_goes_on() {
    let stage = Stage::set().await;
    let good = quiet(&stage);
    let mut service = Service::start(&stage, &good);
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;

    stage.write("config.yaml", "configVersion: v1\nnonsense: true\n");
    service.signal(Signal::USR2);
    logged(&stage, "the new process ended before it was ready").await;
    round(&client, &[1; 32]).await.expect("served on");

    // It comes up and can never log in.
    stage.write("config.yaml", &good);
    stage.write("identity.jwt", "no.jwt.at-all");
    service.signal(Signal::USR2);
    logged(&stage, "not every pipeline became healthy").await;
    round(&client, &[1; 32]).await.expect("served on");

    stage.issue_jwt(3_600);
    service.signal(Signal::USR2);
    tokio::task::block_in_place(|| service.replaced());
    round(&stage.client().await, &[1; 32]).await.expect("served by the next");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_dies_in_the_middle_leaves_its_sockets_to_the_next() {
    let stage = Stage::set().await;
    let service = Service::start(&stage, &quiet(&stage));
    status_until(&stage.client().await, "ok", |status| status.healthz == "ok").await;
    stage.write("identity.jwt", "no.jwt.at-all");
    service.signal(Signal::USR2);
    logged(&stage, "handing_over").await;
    let log = std::fs::read_to_string(stage.path("log")).expect("a log");
    let next = log.split("pid").nth(1).expect("its number").chars().skip_while(|c| !c.is_ascii_digit());
    let next: String = next.take_while(char::is_ascii_digit).collect();
    let next =
        Service { first: None, main: pid(next.parse().expect(&log)), named: mpsc::channel().1, log: stage.path("log") };
    service.signal(Signal::KILL);
    while alive(service.main) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let client = stage.client().await;
    assert_ne!(client.status().await.expect("Status").healthz, "ok", "it has nothing to seal with yet");
    stage.issue_jwt(3_600);
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    round(&client, &[1; 32]).await.expect("served by the next");
    drop(next);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_that_the_next_process_does_not_have_leaves_a_closed_door() {
    let stage = Stage::set().await;
    let config = quiet(&stage);
    let (gone, pipelines) = (stage.path("gone.sock"), config.find("  - name: a").expect("a pipeline"));
    let end = config.find("telemetry:").expect("the next section");
    let second = config[pipelines..end]
        .replace("name: a", "name: b")
        .replace(&stage.socket().display().to_string(), &gone.display().to_string());
    let both = format!("{}{second}{}", &config[..end], &config[end..]);
    let mut service = Service::start(&stage, &both);
    status_until(&stage.client().await, "ok", |status| status.healthz == "ok").await;
    status_until(&Client::connect(&gone).await.expect("both are served"), "ok", |status| status.healthz == "ok").await;
    stage.write("config.yaml", &config);
    service.signal(Signal::USR2);
    tokio::task::block_in_place(|| service.replaced());
    round(&stage.client().await, &[1; 32]).await.expect("the one that stays is served");
    let refused = std::os::unix::net::UnixStream::connect(&gone).expect_err("nobody listens");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}
