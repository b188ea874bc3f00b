//! `probe` as an operator runs it, against doors that do right and doors that do not.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use bao_kms_provider::error::{Class, Error};
use bao_kms_provider::front::v2::key_management_service_server::{KeyManagementService, KeyManagementServiceServer};
use bao_kms_provider::front::v2::{
    DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse,
};
use bao_kms_provider::request::{Operation, Request, Response, secret};
use secrecy::ExposeSecret;
use serde_json::Value;

use super::puppet::{House, healthy, reverse, unseen};

/// A plugin that is not ours and says what it is told to.
#[derive(Clone, Copy)]
struct Stranger {
    status: &'static str,
    encrypt: &'static str,
}

#[tonic::async_trait]
impl KeyManagementService for Stranger {
    async fn status(&self, _: tonic::Request<StatusRequest>) -> Result<tonic::Response<StatusResponse>, tonic::Status> {
        let (version, healthz) = ("v2".to_owned(), "ok".to_owned());
        Ok(tonic::Response::new(StatusResponse { version, healthz, key_id: self.status.to_owned() }))
    }

    async fn encrypt(
        &self,
        _: tonic::Request<EncryptRequest>,
    ) -> Result<tonic::Response<EncryptResponse>, tonic::Status> {
        let (ciphertext, key_id) = (vec![7; 32].into(), self.encrypt.to_owned());
        Ok(tonic::Response::new(EncryptResponse { ciphertext, key_id, annotations: BTreeMap::new() }))
    }

    async fn decrypt(
        &self,
        _: tonic::Request<DecryptRequest>,
    ) -> Result<tonic::Response<DecryptResponse>, tonic::Status> {
        Err(tonic::Status::internal("never asked"))
    }
}

struct Outcome {
    exit: Option<i32>,
    text: String,
}

/// Runs the command; what it prints on either side is kept.
async fn probe(path: &Path, more: &[&str]) -> Outcome {
    ran(Command::new(env!("CARGO_BIN_EXE_bao-kms-provider")), path, &[&["--timeout", "30s"], more].concat()).await
}

async fn ran(mut command: Command, path: &Path, more: &[&str]) -> Outcome {
    command.args(["probe", "--socket"]).arg(path).args(more);
    let output = tokio::task::spawn_blocking(move || command.output()).await.expect("task").expect("it runs");
    let text = [output.stdout, output.stderr].concat();
    Outcome { exit: output.status.code(), text: String::from_utf8(text).expect("text") }
}

async fn steps(path: &Path) -> (Option<i32>, Vec<(String, bool)>, String) {
    let Outcome { exit, text } = probe(path, &["--json"]).await;
    let report: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(report["ok"], exit == Some(0), "{text}");
    let steps = report["steps"].as_array().expect("steps").iter();
    let steps = steps.map(|step| (step["name"].as_str().expect("a name").to_owned(), step["ok"] == true)).collect();
    (exit, steps, text)
}

#[tokio::test]
async fn what_works_is_shown_step_by_step() {
    let key = healthy();
    let (mirrored, seeds) = (key.clone(), Arc::new(std::sync::Mutex::new(Vec::new())));
    let kept = seeds.clone();
    let house = House::open(key, move |request: Request| {
        if let Operation::Encrypt { plaintext } = &request.operation {
            kept.lock().expect("lock").push(plaintext.expose_secret().to_vec());
        }
        let answer = reverse(&mirrored, request);
        async move { answer }
    });
    let Outcome { exit, text } = probe(&house.path(), &[]).await;
    assert_eq!(exit, Some(0), "{text}");
    let words: Vec<_> =
        text.lines().map(|line| line.split_whitespace().take(2).collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(words, ["ok connect", "ok status", "ok encrypt", "ok decrypt"]);
    let (exit, steps, _) = steps(&house.path()).await;
    assert_eq!(exit, Some(0));
    assert_eq!(
        steps.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
        ["connect", "status", "encrypt", "decrypt"]
    );
    let seeds = seeds.lock().expect("lock");
    assert!(seeds.iter().all(|seed| seed.len() == 32) && seeds[0] != seeds[1], "32 random bytes each");
}

#[tokio::test]
async fn a_missing_socket_is_a_failed_check() {
    let folder = super::puppet::folder();
    let (exit, steps, text) = steps(&folder.path().join("kms.sock")).await;
    assert_eq!((exit, steps), (Some(4), vec![("connect".to_owned(), false)]));
    assert!(text.contains("start the service"), "{text}");
}

#[tokio::test]
async fn a_user_who_may_not_connect_is_told_who_may() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    /// Belongs to nobody on a usual machine.
    const STRANGER: u32 = 471_101;
    let house = House::open(healthy(), |_| async { Err(Error::from(Class::Internal)) });
    let program = house.path().with_file_name("probe");
    std::fs::copy(env!("CARGO_BIN_EXE_bao-kms-provider"), &program).expect("where everybody can run it");
    let mut command = Command::new(&program);
    // Without root nobody can be somebody else; a socket that nobody may use refuses its owner too.
    let mode = if rustix::process::geteuid().is_root() {
        command.uid(STRANGER).gid(STRANGER);
        0o660
    } else {
        0o000
    };
    std::fs::set_permissions(house.path(), std::fs::Permissions::from_mode(mode)).expect("its mode");
    let Outcome { exit, text } = ran(command, &house.path(), &[]).await;
    assert_eq!(exit, Some(4), "{text}");
    assert!(text.contains("FAIL connect") && text.contains("Permission denied"), "{text}");
    assert!(text.contains("help: run it as the user that kube-apiserver runs as"), "{text}");
}

#[tokio::test]
async fn a_door_that_does_not_let_one_in_is_a_failed_check_that_says_who_may() {
    let shut = |config: &mut bao_kms_provider::front::Config| config.allow_peers.uids = vec![471_102];
    let house = House::open_with(healthy(), 8192, shut, |_| async { Err(Error::from(Class::Internal)) });
    let (exit, _, text) = steps(&house.path()).await;
    assert_eq!(exit, Some(4), "{text}");
    assert!(text.contains("allowPeers"), "{text}");
}

#[tokio::test]
async fn what_never_answers_is_given_up_after_the_timeout() {
    let folder = super::puppet::folder();
    let path = folder.path().join("kms.sock");
    // Accepted by the kernel alone: nobody ever reads.
    let _listener = std::os::unix::net::UnixListener::bind(&path).expect("a listener");
    let hangs = House::open(healthy(), |_| std::future::pending());
    for (path, step) in [(path, "status"), (hangs.path(), "encrypt")] {
        let began = std::time::Instant::now();
        let command = Command::new(env!("CARGO_BIN_EXE_bao-kms-provider"));
        let Outcome { exit, text } = ran(command, &path, &["--timeout", "300ms"]).await;
        assert_eq!(exit, Some(4), "{text}");
        assert!(text.lines().any(|line| line.starts_with(&format!("FAIL {step}"))), "{text}");
        assert!(text.contains("help: see in the log and in /readyz what is slow"), "{text}");
        assert!(began.elapsed() < super::puppet::PATIENCE, "the timeout is not heard");
    }
}

#[tokio::test]
async fn a_key_id_that_kube_apiserver_would_not_take_is_a_failed_check() {
    for (stranger, step, word) in [
        (Stranger { status: "", encrypt: "" }, "status", "empty"),
        (Stranger { status: "one", encrypt: "" }, "encrypt", "key_id is empty"),
        (Stranger { status: "one", encrypt: "two" }, "encrypt", "key_id is not the one of Status"),
    ] {
        let folder = super::puppet::folder();
        let path = folder.path().join("kms.sock");
        let listener = tokio::net::UnixListener::bind(&path).expect("a listener");
        let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
        let server = tonic::transport::Server::builder().add_service(KeyManagementServiceServer::new(stranger));
        let server = tokio::spawn(server.serve_with_incoming(incoming));
        let (exit, steps, text) = steps(&path).await;
        assert_eq!(exit, Some(4), "{text}");
        assert_eq!(steps.last(), Some(&(step.to_owned(), false)), "{text}");
        assert!(text.contains(word) && text.contains("be sure that this is the socket"), "{text}");
        server.abort();
    }
}

#[tokio::test]
async fn an_unhealthy_status_is_a_failed_check_that_says_why() {
    let house = House::open(unseen(), |_| async { Err(Error::from(Class::Starting)) });
    let (exit, steps, text) = steps(&house.path()).await;
    assert_eq!(exit, Some(4));
    assert_eq!(steps, [("connect".to_owned(), true), ("status".to_owned(), false)]);
    assert!(text.contains("starting") && text.contains("docs/failure.md"), "{text}");
}

#[tokio::test]
async fn answers_that_kube_apiserver_would_throw_away_are_failed_checks() {
    let key = healthy();
    let view = key.peek().expect("a view");
    let good = Response::Encrypt {
        ciphertext: vec![7; 32].into(),
        key_id: view.active().key_id.clone(),
        annotations: view.active().annotations.clone(),
    };
    let altered = |alter: fn(&mut Vec<u8>, &mut BTreeMap<String, Vec<u8>>)| {
        let Response::Encrypt { ciphertext, key_id, annotations } = good.clone() else { unreachable!() };
        let (mut text, mut map) = (ciphertext.to_vec(), (*annotations).clone());
        alter(&mut text, &mut map);
        Response::Encrypt { ciphertext: text.into(), key_id, annotations: map.into() }
    };
    let rows = [
        ("encrypt", "ciphertext", altered(|text, _| text.clear())),
        ("encrypt", "ciphertext", altered(|text, _| text.resize(1025, 7))),
        ("encrypt", "annotations", altered(|_, map| drop(map.insert("no-dots".into(), vec![])))),
        ("encrypt", "annotations", altered(|_, map| drop(map.insert("a.b".into(), vec![7; 33_000])))),
        ("decrypt", "not what was sent", good.clone()),
    ];
    for (step, word, answer) in rows {
        let house = House::open(key.clone(), move |request: Request| {
            let answer = match request.operation {
                Operation::Encrypt { .. } => answer.clone(),
                Operation::Decrypt { .. } => Response::Decrypt { plaintext: secret(b"something else".to_vec()) },
            };
            async move { Ok(answer) }
        });
        let (exit, steps, text) = steps(&house.path()).await;
        assert_eq!(exit, Some(4), "{text}");
        assert_eq!(steps.last(), Some(&(step.to_owned(), false)), "{text}");
        assert!(text.contains(word) && !text.contains("something else"), "{text}");
    }
}

#[tokio::test]
async fn a_command_line_that_makes_no_sense_is_said_to_make_none() {
    assert_eq!(probe(Path::new("/x"), &["--timeout", "soon"]).await.exit, Some(2));
}
