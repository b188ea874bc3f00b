//! The program as a process, over a real socket and real TLS: the story of a seed, and what a node may come to without
//! losing it.

use std::time::{Duration, Instant};

use bao_kms_provider::dev::server::{Fault, Options, Server};
use serde_json::json;

use super::support::{KEY, Program, Stage, code, connect, status_until, until};

/// How soon a healthy Status comes after a repair: two seconds are promised, a slow machine may take twice that.
const REPAIRED: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread")]
async fn a_seed_goes_round_and_a_rotation_is_announced() {
    let stage = Stage::set().await;
    let program = stage.serve(&stage.config(""));
    let client = stage.client().await;
    let first = status_until(&client, "ok", |status| status.healthz == "ok").await;
    let sealed = client.encrypt(vec![7; 32], "u1").await.expect("Encrypt");
    assert_eq!(sealed.key_id, first.key_id);
    assert_eq!(sealed.ciphertext.len(), 89);
    let open = || client.decrypt(sealed.ciphertext.to_vec(), "u2", &sealed.key_id, sealed.annotations.clone());
    assert_eq!(open().await.expect("Decrypt"), vec![7; 32]);

    assert!(stage.bao().call("POST", &format!("{KEY}/rotate"), &json!({})).await.expect("asked").is_ok());
    let second =
        status_until(&client, "of another key_id", |status| status.key_id != first.key_id && status.healthz == "ok")
            .await;
    let fresh = client.encrypt(vec![8; 32], "u3").await.expect("Encrypt");
    assert_eq!(fresh.key_id, second.key_id);
    assert!(fresh.ciphertext.starts_with(b"vault:v2:"));
    assert_eq!(open().await.expect("the old version still opens"), vec![7; 32]);

    let raised = stage.bao().call("POST", &format!("{KEY}/config"), &json!({"min_decryption_version": 2})).await;
    assert!(raised.expect("asked").is_ok());
    let began = Instant::now();
    let refused = loop {
        match open().await {
            Err(error) => break error,
            Ok(_) => assert!(began.elapsed() < Duration::from_secs(20), "the raised minimum is never noticed"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(
        refused.to_string().contains("version_too_old") && refused.to_string().contains("key version 1"),
        "{refused}"
    );
    assert_eq!(code(&refused), tonic::Code::FailedPrecondition);
    let (exit, log) = program.stop();
    assert_eq!(exit, Some(0), "{log}");
    assert!(log.contains("token_revoked"), "{log}");
    assert_eq!(stage.server.state().live_tokens(), 1, "only the root token is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tampered_object_never_reaches_openbao() {
    let stage = Stage::set().await;
    let _program = stage.serve(&stage.config(""));
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    let sealed = client.encrypt(vec![7; 32], "u").await.expect("Encrypt");
    let before = stage.server.calls().of("transit/decrypt");
    for name in sealed.annotations.keys().filter(|name| !name.starts_with("plugin-version")) {
        let mut annotations = sealed.annotations.clone();
        annotations.get_mut(name).expect("there")[0] ^= 1;
        let error = client.decrypt(sealed.ciphertext.to_vec(), "u", &sealed.key_id, annotations).await.expect_err(name);
        assert_eq!(code(&error), tonic::Code::InvalidArgument, "{name}: {error}");
    }
    let other = sealed.key_id.replacen("obk2.", "obk1.", 1);
    assert!(client.decrypt(sealed.ciphertext.to_vec(), "u", &other, sealed.annotations.clone()).await.is_err());
    let v9 = [b"vault:v9:", &sealed.ciphertext[9..]].concat();
    assert!(client.decrypt(v9, "u", &sealed.key_id, sealed.annotations.clone()).await.is_err());
    for empty in [
        client.encrypt(vec![], "u").await.map(|_| ()),
        client.decrypt(vec![], "u", &other, sealed.annotations.clone()).await.map(|_| ()),
    ] {
        assert_eq!(code(&empty.expect_err("refused")), tonic::Code::InvalidArgument);
    }
    assert_eq!(stage.server.calls().of("transit/decrypt"), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_answers_while_openbao_is_away_and_recovers_alone() {
    let stage = Stage::set().await;
    let (state, port) = (stage.server.state().clone(), stage.server.port());
    let config = stage.config("    health: { tolerance: 1s }");
    let Stage { server, .. } = &stage;
    state.seal();
    let program = stage.serve(&config);
    let client = stage.client().await;
    status_until(&client, "sealed", |status| status.healthz == "sealed" && status.key_id.is_empty()).await;
    let (ready, report) = stage.admin("/readyz").await;
    assert_eq!(ready, 503);
    assert!(report.contains("\"sealed\""), "{report}");
    assert_eq!(stage.admin("/livez").await.0, 200);
    state.unseal();
    let began = Instant::now();
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    assert!(began.elapsed() < REPAIRED, "recovery took {:?}", began.elapsed());
    assert_eq!(stage.admin("/readyz").await.0, 200);
    let sealed = client.encrypt(vec![7; 32], "u").await.expect("Encrypt");

    // OpenBao goes away altogether, for longer than the tolerance, and comes back at the same address.
    server.faults().add("", Fault::Reset);
    status_until(&client, "not ok", |status| status.healthz != "ok" && status.key_id.is_empty()).await;
    server.faults().clear();
    let began = Instant::now();
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    assert!(began.elapsed() < REPAIRED, "the second recovery took {:?}", began.elapsed());
    let opened = client.decrypt(sealed.ciphertext.to_vec(), "u", &sealed.key_id, sealed.annotations.clone()).await;
    assert_eq!(opened.expect("Decrypt"), vec![7; 32]);
    assert_ne!(port, 0);
    assert_eq!(program.stop().0, Some(0));
}

/// Less than the first login takes to fail: whoever waited for it before opening the door would be late.
const AT_ONCE: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn status_is_answered_at_once_while_the_first_login_hangs() {
    let stage = Stage::set().await;
    // The system takes the connection, and nobody ever reads from it.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("https://{}", silent.local_addr().expect("an address"));
    let began = Instant::now();
    let program = stage.serve(&stage.config_of(&[url], "    health: { tolerance: 1s }"));
    let client = stage.client().await.with_timeout(AT_ONCE);
    let status = client.status().await.expect("Status");
    assert!(began.elapsed() < AT_ONCE, "Status took {:?}", began.elapsed());
    assert!(!program.output().contains("login_failed"), "the first login is over already");
    assert_eq!(status.key_id, "", "{}", status.healthz);
    assert_ne!(status.healthz, "ok");
    // A call does not wait for the login any longer than its caller does.
    let began = Instant::now();
    let error = client.with_timeout(Duration::from_secs(1)).encrypt(vec![7; 32], "u").await.err().expect("no token");
    assert_eq!(code(&error), tonic::Code::DeadlineExceeded, "{error}");
    assert!(began.elapsed() < Duration::from_secs(1), "Encrypt took {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_credential_is_a_reason_and_not_an_exit() {
    let stage = Stage::set().await;
    std::fs::remove_file(stage.path("identity.jwt")).expect("removed");
    let _program = stage.serve(&stage.config(""));
    let client = stage.client().await;
    status_until(&client, "credential_unavailable", |status| status.healthz == "credential_unavailable").await;
    stage.issue_jwt(-600);
    status_until(&client, "login_refused", |status| status.healthz == "login_refused").await;
    stage.issue_jwt(120);
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    // Revoked tokens: the next call logs in again, and nobody notices.
    stage.server.state().revoke_all_tokens();
    client.encrypt(vec![7; 32], "u").await.expect("Encrypt after revocation");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pinned_fingerprint_that_differs_refuses_to_serve() {
    let stage = Stage::set().await;
    let pinned = "obf1.AAAAAAAAAAAAAAAAAAAAAAAA.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    let config = stage.config("").replace("keyLineageId: l", &format!("keyLineageId: l, fingerprint: {pinned}"));
    let program = stage.serve(&config);
    let client = stage.client().await;
    status_until(&client, "fingerprint_mismatch", |status| status.healthz == "fingerprint_mismatch").await;
    let error = client.encrypt(vec![7; 32], "u").await.err().expect("refused");
    assert_eq!(code(&error), tonic::Code::FailedPrecondition);
    program.logged("identity.clusterId").await;
    assert_eq!(stage.server.calls().of("auth/login"), 0, "OpenBao is not asked at all");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_instance_and_a_dead_socket() {
    let stage = Stage::set().await;
    let first = stage.serve(&stage.config(""));
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    let second = stage.serve(&stage.config(""));
    second.logged("another process serves this socket").await;
    client.status().await.expect("the first one goes on");
    drop(second);
    drop(first);
    assert!(stage.socket().exists(), "a killed process leaves its socket file");
    let _third = stage.serve(&stage.config(""));
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_address_takes_over() {
    let stage = Stage::set().await;
    let options = Options { state: Some(stage.server.state().clone()), ..Options::default() };
    let other = Server::start(options).await.expect("a second node");
    let config = stage
        .config("")
        .replace(&format!("\"{}\"", stage.server.url()), &format!("\"{}\", \"{}\"", stage.server.url(), other.url()));
    let _program = stage.serve(&config);
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    stage.server.faults().add("", Fault::Reset);
    for at in 0..20 {
        client.encrypt(vec![at; 32], "u").await.expect("the other node answers");
    }
    assert!(other.calls().of("transit/encrypt") >= 20);
}

/// A key_id that is looked up after the fact would name a version that did not seal.
#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_in_the_middle_of_an_encrypt_changes_nothing_about_it() {
    let stage = Stage::set().await;
    let _program = stage.serve(&stage.config(""));
    let client = stage.client().await;
    let first = status_until(&client, "ok", |status| status.healthz == "ok").await;
    let before = stage.server.calls().of("transit/encrypt");
    // OpenBao carries the question out at the end of the delay, when it has version 2 already.
    stage.server.faults().add_times("transit/encrypt", Fault::Delay(Duration::from_secs(5)), 1);
    let patient = client.clone().with_timeout(Duration::from_secs(20));
    let sealing = tokio::spawn(async move { patient.encrypt(vec![7; 32], "u").await });
    until("OpenBao is asked", || stage.server.calls().of("transit/encrypt") > before).await;
    assert!(stage.bao().call("POST", &format!("{KEY}/rotate"), &json!({})).await.expect("asked").is_ok());
    status_until(&client, "of another key_id", |status| status.key_id != first.key_id && status.healthz == "ok").await;
    assert!(!sealing.is_finished(), "the new key_id is announced while the old version still seals");
    let sealed = sealing.await.expect("task").expect("Encrypt");
    assert_eq!(sealed.key_id, first.key_id);
    assert!(sealed.ciphertext.starts_with(b"vault:v1:"));
    let opened = client.decrypt(sealed.ciphertext.to_vec(), "u", &sealed.key_id, sealed.annotations.clone()).await;
    assert_eq!(opened.expect("Decrypt"), vec![7; 32]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_lost_everything_but_its_files_goes_on_with_the_same_key_id() {
    let stage = Stage::set().await;
    let program = stage.serve(&stage.config(""));
    let client = stage.client().await;
    let first = status_until(&client, "ok", |status| status.healthz == "ok").await;
    let mut sealed = vec![client.encrypt(vec![1; 32], "u").await.expect("Encrypt")];
    assert!(stage.bao().call("POST", &format!("{KEY}/rotate"), &json!({})).await.expect("asked").is_ok());
    let second =
        status_until(&client, "rotated", |status| status.key_id != first.key_id && status.healthz == "ok").await;
    sealed.push(client.encrypt(vec![2; 32], "u").await.expect("Encrypt"));
    assert_eq!(program.stop().0, Some(0));

    // What an operator brings to a new node: the file, the credential and the CA.
    let node = tempfile::tempdir().expect("a folder");
    let text = stage.config("").replace(&stage.dir.path().display().to_string(), &node.path().display().to_string());
    for name in ["identity.jwt", "ca.pem", "config.yaml"] {
        std::fs::copy(stage.path(name), node.path().join(name)).expect("copied");
    }
    std::fs::write(node.path().join("config.yaml"), text).expect("written");
    std::fs::remove_dir_all(stage.dir.path()).expect("the old node is gone");
    let _program = Program::start(&node.path().join("config.yaml"), |_| {});
    let client = connect(&node.path().join("kms.sock")).await;
    let status = status_until(&client, "ok", |status| status.healthz == "ok").await;
    assert_eq!(status.key_id, second.key_id);
    for (at, one) in sealed.into_iter().enumerate() {
        let opened = client.decrypt(one.ciphertext.to_vec(), "u", &one.key_id, one.annotations).await;
        assert_eq!(opened.expect("Decrypt"), vec![at as u8 + 1; 32]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_in_the_environment_is_not_asked() {
    let stage = Stage::set().await;
    let dead = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let _program = stage.serve_with(&stage.config(""), |command| {
        for name in ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
            command.env(name, format!("http://{dead}"));
        }
        command.env_remove("NO_PROXY").env_remove("no_proxy");
    });
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    client.encrypt(vec![7; 32], "u").await.expect("Encrypt");
}
