//! Faults of OpenBao and of the way to it, a row each: the class and the code that a caller gets, inside the caller's own
//! time; what Status says; and that everything goes on after the repair, without a restart.

use std::path::Path;
use std::time::{Duration, Instant};

use bao_kms_provider::dev::server::{Fault, Flaw, Line};
use bao_kms_provider::front::client::{Client, ClientError};
use tonic::Code;

use super::load::round;
use super::support::{Program, Stage, status_until};

/// What callers wait: less than any time-out of ours, so that only a deadline that is honoured can answer them.
const CALLER: Duration = Duration::from_secs(1);
/// How soon a healthy Status comes after a repair: two seconds are promised, a slow machine may take twice that.
const REPAIRED: Duration = Duration::from_secs(4);

/// One fault.
pub(super) struct Row {
    pub name: &'static str,
    pub class: &'static str,
    pub code: Code,
    /// What Status says while it lasts; nothing when the fault is none of the whole path's.
    pub status: Option<&'static str>,
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
        let Row { name, class, status, .. } = row;
        let client = &self.client;
        let sealed = client.encrypt(vec![7; 32], "u").await.expect(name);
        let classes = std::collections::BTreeSet::from([*class, "deadline_exceeded"]);
        let counted = async |call: &str| {
            let mut count = 0;
            for class in &classes {
                let series = format!("bao_kms_calls_total{{pipeline=\"a\",call=\"{call}\",class=\"{class}\"}}");
                count += self.stage.metric(&series).await;
            }
            count
        };
        let before = (counted("encrypt").await, counted("decrypt").await);
        break_it(&self.stage);

        let began = Instant::now();
        let write = client.encrypt(vec![8; 32], "u").await.err();
        let took = began.elapsed();
        self.check(row, "Encrypt", write.expect(name), took);
        assert_eq!(counted("encrypt").await, before.0 + 1, "{name}: counted under its class");
        if status.is_some() {
            let began = Instant::now();
            let read =
                client.decrypt(sealed.ciphertext.to_vec(), "u", &sealed.key_id, sealed.annotations.clone()).await;
            let took = began.elapsed();
            self.check(row, "Decrypt", read.expect_err(name), took);
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

    fn check(&self, row: &Row, call: &str, error: ClientError, took: Duration) {
        let what = format!("{}: {call}", row.name);
        answered(&what, &error, row.class, row.code);
        assert!(took < CALLER, "{what} took {took:?}");
    }
}

/// The answer is ours, of this class and under this code. What is repeated until the caller's time is up says so, and what
/// it met all along.
fn answered(what: &str, error: &ClientError, class: &str, code: Code) {
    let ClientError::Call(status) = error else { panic!("{what}: {error}") };
    let says = status.message();
    let late = says.starts_with("deadline_exceeded: ") && says.ends_with(&format!("(because of {class})"));
    assert!(late || says.starts_with(&format!("{class}: ")), "{what}: {error}");
    let code = if late { Code::DeadlineExceeded } else { code };
    assert_eq!(status.code(), code, "{what}: {error}");
    assert!(code != Code::DeadlineExceeded || says.contains("(slow part: "), "{what}: {error}");
}

fn row(name: &'static str, class: &'static str, code: Code) -> Row {
    Row { name, class, code, status: Some(class) }
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
        (row("502 of a proxy", "no_leader", Code::Unavailable), reply(502, html)),
        (row("503 sealed", "sealed", Code::Unavailable), errors(503, "Vault is sealed")),
        (row("a redirect elsewhere", "redirect_refused", Code::Unavailable), elsewhere),
        (row("an answer too large", "bad_reply", Code::Unavailable), Fault::Huge(2 << 20)),
        (row("half a document", "bad_reply", Code::Unavailable), Fault::Malformed),
        (row("a proxy's page", "bad_reply", Code::Unavailable), reply(200, html)),
        (
            Row { name: "another version", class: "wrong_version", code: Code::Internal, status: None },
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
        eprintln!("skipped: a resolver of its own needs a mount namespace, which only root may make");
        return;
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
        let error = client.encrypt(vec![7; 32], "u").await.err().expect("no such name");
        answered("no such name", &error, "name_resolution", Code::Unavailable);
        status_until(&client, "name_resolution", |status| status.healthz == "name_resolution").await;
    }
}
