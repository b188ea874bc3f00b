//! Faults of OpenBao and of the way to it, a row each: the class and the code that a caller gets, inside the caller's own
//! time; what Status says; and that everything goes on after the repair, without a restart.

use std::path::Path;
use std::time::{Duration, Instant};

use bao_kms_provider::dev::server::{Fault, Flaw, Line};
use bao_kms_provider::front::client::{Client, ClientError};
use tonic::Code;

use super::load::round;
use super::support::{Program, Stage, skipped, status_until};

/// What callers wait: less than any time-out of ours, so that only a deadline that is honoured can answer them.
const CALLER: Duration = Duration::from_secs(1);
/// What callers wait for an answer that is to come before their deadline: long enough for the few attempts that there may be,
/// which take turns with the keeper's once the address is known to fail.
const PATIENT: Duration = Duration::from_secs(5);
/// How soon a healthy Status comes after a repair: two seconds are promised, a slow machine may take twice that.
const REPAIRED: Duration = Duration::from_secs(4);

/// One fault.
pub(super) struct Row {
    pub name: &'static str,
    pub end: End,
    /// What Status says while it lasts; nothing when the fault is none of the whole path's.
    pub status: Option<&'static str>,
}

/// What a call ends with, and with nothing else.
#[derive(Clone, Copy)]
pub(super) enum End {
    /// Its own class and code, ahead of the deadline: it is final, or has been repeated as often as it may be.
    Own(&'static str, Code),
    /// The caller's deadline, and this as what was met all along: it did no work, or there was no answer to repeat it after.
    Late(&'static str),
}

/// The program against a stage, and a sample of what it sealed.
pub(super) struct Scene {
    stage: Stage,
    client: Client,
    program: Program,
}

// === impl Scene ===

impl Scene {
    pub(super) async fn set() -> Self {
        let stage = Stage::set().await;
        let program = stage.serve(&stage.config("    health: { tolerance: 1s }"));
        let client = stage.client().await.with_timeout(CALLER);
        status_until(&client, "ok", |status| status.healthz == "ok").await;
        Self { stage, client, program }
    }

    /// Breaks, looks, repairs, looks again.
    pub(super) async fn play(&self, row: &Row, break_it: impl FnOnce(&Stage), repair: impl FnOnce(&Stage)) {
        let Row { name, end, status } = row;
        let (class, patience) = end.counted();
        let client = &self.client.clone().with_timeout(patience);
        let sealed = client.encrypt(vec![7; 32], "u").await.expect(name);
        let counted = async |call: &str| {
            let series = format!("bao_kms_calls_total{{pipeline=\"a\",call=\"{call}\",class=\"{class}\"}}");
            self.stage.metric(&series).await
        };
        let before = (counted("encrypt").await, counted("decrypt").await);
        break_it(&self.stage);

        let began = Instant::now();
        let write = client.encrypt(vec![8; 32], "u").await.err();
        let took = began.elapsed();
        end.check(&format!("{name}: Encrypt"), &write.expect(name), took);
        assert_eq!(counted("encrypt").await, before.0 + 1, "{name}: counted under its class");
        if status.is_some() {
            let began = Instant::now();
            let read =
                client.decrypt(sealed.ciphertext.to_vec(), "u", &sealed.key_id, sealed.annotations.clone()).await;
            let took = began.elapsed();
            end.check(&format!("{name}: Decrypt"), &read.expect_err(name), took);
            assert_eq!(counted("decrypt").await, before.1 + 1, "{name}: counted under its class");
        }
        if let Some(class) = status {
            let what = format!("{class} while {name}");
            status_until(client, &what, |status| status.healthz == *class && status.key_id.is_empty()).await;
        }

        repair(&self.stage);
        let began = Instant::now();
        status_until(client, "ok", |status| status.healthz == "ok").await;
        assert!(began.elapsed() < REPAIRED, "{name}: recovery took {:?}", began.elapsed());
        round(client, &[9; 32]).await.unwrap_or_else(|error| panic!("{name}: after the repair: {error}"));
    }
}

// === impl End ===

impl End {
    /// The class that such a call is counted under, and for how long its caller waits.
    fn counted(self) -> (&'static str, Duration) {
        match self {
            Self::Own(class, _) => (class, PATIENT),
            Self::Late(_) => ("deadline_exceeded", CALLER),
        }
    }

    /// The answer is ours, and this one.
    pub(super) fn check(self, what: &str, error: &ClientError, took: Duration) {
        let ClientError::Call(status) = error else { panic!("{what}: {error}") };
        let says = status.message();
        let code = match self {
            Self::Own(class, code) => {
                assert!(says.starts_with(&format!("{class}: ")), "{what}: {error}");
                code
            }
            Self::Late(class) => {
                let reason = format!(" (because of {class})");
                assert!(says.starts_with("deadline_exceeded: ") && says.ends_with(&reason), "{what}: {error}");
                assert!(says.contains("(slow part: "), "{what}: {error}");
                Code::DeadlineExceeded
            }
        };
        assert_eq!(status.code(), code, "{what}: {error}");
        let patience = self.counted().1;
        assert!(took < patience, "{what} took {took:?}");
    }
}

/// Repeated a few times, then answered with its own class.
fn row(name: &'static str, class: &'static str, code: Code) -> Row {
    Row { name, end: End::Own(class, code), status: Some(class) }
}

/// Repeated until the caller's time is up.
pub(super) fn late(name: &'static str, class: &'static str) -> Row {
    Row { name, end: End::Late(class), status: Some(class) }
}

fn reply(status: u16, body: &str) -> Fault {
    Fault::Reply { status, body: body.to_owned() }
}

fn errors(status: u16, text: &str) -> Fault {
    reply(status, &format!("{{\"errors\":[\"{text}\"]}}\n"))
}

#[tokio::test(flavor = "multi_thread")]
async fn each_wrong_answer_has_its_class_its_code_and_an_end() {
    let scene = Scene::set().await;
    let html = "<html><body>Bad Gateway</body></html>";
    let elsewhere = Fault::Redirect("https://192.0.2.1:8200".into());
    let rows = [
        (row("a rate limit", "rate_limited", Code::ResourceExhausted), Fault::Limited(None)),
        (row("a rate limit with a wait", "rate_limited", Code::ResourceExhausted), Fault::Limited(Some(60))),
        (row("500", "server_error", Code::Unavailable), errors(500, "internal error")),
        (late("502 of a proxy", "no_leader"), reply(502, html)),
        (late("503 sealed", "sealed"), errors(503, "Vault is sealed")),
        (row("a redirect elsewhere", "redirect_refused", Code::Unavailable), elsewhere),
        (row("an answer too large", "bad_reply", Code::Unavailable), Fault::Huge(2 << 20)),
        (row("half a document", "bad_reply", Code::Unavailable), Fault::Malformed),
        (row("a proxy's page", "bad_reply", Code::Unavailable), reply(200, html)),
        (
            Row { name: "another version", end: End::Own("wrong_version", Code::Internal), status: None },
            Fault::WrongKeyVersion(9),
        ),
    ];
    for (row, fault) in rows {
        scene
            .play(&row, |stage| _ = stage.server.faults().add("transit/", fault), |stage| stage.server.faults().clear())
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_broken_connection_has_its_class_its_code_and_an_end() {
    let scene = Scene::set().await;
    let rows = [
        (row("reset before the answer", "connection_lost", Code::Unavailable), Fault::Reset),
        (row("reset inside the answer", "connection_lost", Code::Unavailable), Fault::ResetMidBody),
    ];
    for (row, fault) in rows {
        scene.play(&row, |stage| _ = stage.server.faults().add("", fault), |stage| stage.server.faults().clear()).await;
    }
}

fn set(stage: &Stage, line: Line) {
    stage.server.set_line(line).expect("a certificate");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_certificate_that_is_no_good_is_tls_until_either_side_puts_it_right() {
    let scene = Scene::set().await;
    let rows = [
        (row("an expired certificate", "tls", Code::Unavailable), Flaw::Expired),
        (row("a certificate of another name", "tls", Code::Unavailable), Flaw::OtherName),
        (row("a certificate of an unknown CA", "tls", Code::Unavailable), Flaw::OtherAuthority),
    ];
    for (row, flaw) in rows {
        scene.play(&row, |stage| set(stage, Line::Shows(flaw)), |stage| set(stage, Line::Open)).await;
    }
    // OpenBao moves to another CA for good; our file follows.
    let row = row("another CA", "tls", Code::Unavailable);
    let pem = std::cell::OnceCell::new();
    let moves = |stage: &Stage| {
        let signer = stage.server.set_line(Line::Shows(Flaw::OtherAuthority)).expect("a certificate");
        pem.set(signer).expect("once");
    };
    let follow = |stage: &Stage| _ = stage.write("ca.pem", pem.get().expect("it has moved"));
    scene.play(&row, moves, follow).await;
    assert!(scene.program.output().contains("signed by an unknown CA; see tls.caFile"), "the log says what is wrong");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_that_openbao_asks_for_is_kept_and_ends_at_the_deadline() {
    let stage = Stage::set().await;
    let _program = stage.serve(&stage.config(""));
    let client = stage.client().await.with_timeout(Duration::from_secs(4));
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    let asked = || stage.server.calls().of("transit/encrypt");

    stage.server.faults().add_times("transit/encrypt", Fault::Limited(Some(1)), 1);
    let (before, began) = (asked(), Instant::now());
    client.encrypt(vec![7; 32], "u").await.expect("after the wait");
    assert!(began.elapsed() >= Duration::from_secs(1), "it asked again after {:?}", began.elapsed());
    assert_eq!(asked() - before, 2);

    // Nobody waits for what cannot come in time, and OpenBao is left alone meanwhile.
    stage.server.faults().add_times("transit/encrypt", Fault::Limited(Some(60)), 1);
    let (before, began) = (asked(), Instant::now());
    let error = client.encrypt(vec![7; 32], "u").await.err().expect("too long").to_string();
    assert!(error.contains("rate_limited"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    assert_eq!(asked() - before, 1);
}

/// The program in a mount namespace of its own, where these files stand in the place of the node's.
fn with_files(config: &Path, files: &[(&Path, &str)]) -> Program {
    let mut script = String::new();
    for (at, (_, target)) in files.iter().enumerate() {
        script.push_str(&format!("mount --bind \"${}\" {target} && ", at + 1));
    }
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "sh", "-c", &format!("{script} exec \"$0\" serve --config \"${}\"", files.len() + 1)]);
    command.arg(env!("CARGO_BIN_EXE_bao-kms-provider")).args(files.iter().map(|(own, _)| own)).arg(config);
    Program::spawn(command)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_does_not_resolve_is_name_resolution_until_it_does() {
    let mut may = std::process::Command::new("unshare");
    may.args(["--mount", "true"]).stderr(std::process::Stdio::null());
    if !may.status().is_ok_and(|status| status.success()) {
        return skipped("a resolver of its own needs a mount namespace, which only root may make");
    }
    let stage = Stage::set().await;
    let hosts = stage.write("hosts", "127.0.0.1 localhost\n");
    // Nothing listens there: a name that is not in the file is asked for in vain, and at once.
    let resolver = stage.write("resolv.conf", "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n");
    let url = format!("https://bao.test:{}", stage.server.port());
    let config = stage
        .config_of(&[url], "    health: { tolerance: 1s }")
        .replace("tls: { caFile:", "tls: { serverName: localhost, caFile:");
    let config = stage.write("config.yaml", &config);
    let _program = with_files(&config, &[(hosts.as_path(), "/etc/hosts"), (resolver.as_path(), "/etc/resolv.conf")]);
    let client = stage.client().await.with_timeout(CALLER);
    status_until(&client, "name_resolution", |status| status.healthz == "name_resolution").await;

    let write = |text: &str| std::fs::write(&hosts, text).expect("written in place");
    for _again in 0..2 {
        write("127.0.0.1 localhost bao.test\n");
        let began = Instant::now();
        status_until(&client, "ok", |status| status.healthz == "ok").await;
        assert!(began.elapsed() < REPAIRED, "recovery took {:?}", began.elapsed());
        round(&client, &[7; 32]).await.expect("it resolves");
        // The name is asked for again by the next connection.
        write("127.0.0.1 localhost\n");
        set(&stage, Line::Open);
        tokio::time::sleep(Duration::from_millis(50)).await;
        let began = Instant::now();
        let error = client.encrypt(vec![7; 32], "u").await.err().expect("no such name");
        End::Late("name_resolution").check("no such name", &error, began.elapsed());
        status_until(&client, "name_resolution", |status| status.healthz == "name_resolution").await;
    }
}
