//! The program as a process, over a real socket and real TLS, with faults injected into the embedded OpenBao.

use std::time::{Duration, Instant};

use bao_kms_provider::dev::server::{Fault, Options, Server};
use bao_kms_provider::front::client::{Client, ClientError};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::support::{Stage, status_until};

const KEY: &str = "transit/keys/k8s-etcd";

fn code(error: &ClientError) -> tonic::Code {
    match error {
        ClientError::Call(status) => status.code(),
        other => panic!("{other}"),
    }
}

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
    assert!(began.elapsed() < Duration::from_secs(10), "recovery took {:?}", began.elapsed());
    assert_eq!(stage.admin("/readyz").await.0, 200);
    let sealed = client.encrypt(vec![7; 32], "u").await.expect("Encrypt");

    // OpenBao goes away altogether, for longer than the tolerance, and comes back at the same address.
    server.faults().add("", Fault::Reset);
    status_until(&client, "not ok", |status| status.healthz != "ok" && status.key_id.is_empty()).await;
    server.faults().clear();
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    let opened = client.decrypt(sealed.ciphertext.to_vec(), "u", &sealed.key_id, sealed.annotations.clone()).await;
    assert_eq!(opened.expect("Decrypt"), vec![7; 32]);
    assert_ne!(port, 0);
    assert_eq!(program.stop().0, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn trouble_with_the_key_shows_at_once_and_heals() {
    let stage = Stage::set().await;
    let _program = stage.serve(&stage.config(""));
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    let bao = stage.bao();
    assert!(bao.call("DELETE", &format!("{KEY}/soft-delete"), &Value::Null).await.expect("asked").is_ok());
    status_until(&client, "key_soft_deleted", |status| {
        status.healthz == "key_soft_deleted" && status.key_id.is_empty()
    })
    .await;
    assert!(bao.call("POST", &format!("{KEY}/soft-delete-restore"), &json!({})).await.expect("asked").is_ok());
    status_until(&client, "ok", |status| status.healthz == "ok").await;

    let policy = stage.setup.policy_text();
    let put = |text: String| {
        let bao = stage.bao();
        async move { bao.call("POST", "sys/policies/acl/kms", &json!({ "policy": text })).await.expect("asked") }
    };
    assert!(put("path \"x\" { capabilities = [\"read\"] }".into()).await.is_ok());
    status_until(&client, "token_rejected", |status| status.healthz == "token_rejected").await;
    assert!(put(policy).await.is_ok());
    status_until(&client, "ok", |status| status.healthz == "ok").await;
}

/// A lagging standby's metadata is passed over for some seconds; a key that stays behind was restored from a snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_was_rolled_back_seals_nothing_and_opens_what_it_can() {
    let stage = Stage::set().await;
    let _program = stage.serve(&stage.config(""));
    let client = stage.client().await;
    let first = status_until(&client, "ok", |status| status.healthz == "ok").await;
    let bao = stage.bao();
    let old = bao.call("GET", KEY, &Value::Null).await.expect("asked").text;
    assert!(bao.call("POST", &format!("{KEY}/rotate"), &json!({})).await.expect("asked").is_ok());
    let second =
        status_until(&client, "rotated", |status| status.key_id != first.key_id && status.healthz == "ok").await;
    let sealed = client.encrypt(vec![7; 32], "u").await.expect("Encrypt");
    let reads = || stage.server.calls().of("transit/keys");

    // A few answers of a node that lags: nothing moves, least of all backwards.
    let (before, lagging) = (reads(), Fault::Reply { status: 200, body: old.clone() });
    stage.server.faults().add_times(KEY, lagging.clone(), 2);
    let began = Instant::now();
    while reads() < before + 4 {
        let status = client.status().await.expect("Status");
        assert_eq!((status.healthz.as_str(), &status.key_id), ("ok", &second.key_id));
        assert!(began.elapsed() < Duration::from_secs(20), "metadata is not read any more");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    stage.server.faults().add(KEY, lagging);
    status_until(&client, "key_rolled_back", |status| status.healthz == "key_rolled_back" && status.key_id.is_empty())
        .await;
    let refused = client.encrypt(vec![7; 32], "u").await.err().expect("nothing is sealed");
    assert!(refused.to_string().contains("key_rolled_back"), "{refused}");
    assert_eq!(code(&refused), tonic::Code::FailedPrecondition);
    let open = || client.decrypt(sealed.ciphertext.to_vec(), "u", &sealed.key_id, sealed.annotations.clone());
    assert_eq!(open().await.expect("what opens is still opened"), vec![7; 32]);
    stage.server.faults().clear();
    let healed = status_until(&client, "ok", |status| status.healthz == "ok").await;
    assert_eq!(healed.key_id, second.key_id);

    // A version under the same number that was made at another time is another key, at once.
    let mut other: Value =
        serde_json::from_str(&bao.call("GET", KEY, &Value::Null).await.expect("asked").text).expect("json");
    other["data"]["keys"]["2"] = json!(other["data"]["keys"]["2"].as_u64().expect("a time") + 60);
    stage.server.faults().add(KEY, Fault::Reply { status: 200, body: other.to_string() });
    let began = Instant::now();
    status_until(&client, "key_rolled_back", |status| status.healthz == "key_rolled_back").await;
    assert!(began.elapsed() < Duration::from_secs(8), "no lag explains it");
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
async fn reload_takes_what_is_good_and_keeps_what_runs_otherwise() {
    let stage = Stage::set().await;
    let program = stage.serve(&stage.config(""));
    let client = stage.client().await;
    let before = status_until(&client, "ok", |status| status.healthz == "ok").await;
    stage.write("config.yaml", "configVersion: v9");
    program.signal(Signal::HUP);
    program.logged("reload_refused").await;
    client.encrypt(vec![7; 32], "u").await.expect("what ran goes on");
    assert!(stage.admin("/metrics").await.1.contains("bao_kms_config_refused 1"));
    let (code, report) = stage.admin("/readyz").await;
    assert!(code == 200 && report.contains("configRefused") && report.contains("configVersion"), "{report}");

    stage.write("config.yaml", &stage.config("").replace("clusterId: c", "clusterId: d"));
    program.signal(Signal::HUP);
    program.logged("identity.clusterId cannot change while it runs").await;

    stage.write("config.yaml", &stage.config("    layers: { admit: { maxInFlight: 8 } }"));
    program.signal(Signal::HUP);
    program.logged("\"event\":\"reloaded\"").await;
    assert_eq!(client.status().await.expect("the same connection").key_id, before.key_id);
    client.encrypt(vec![7; 32], "u").await.expect("the new stack serves");
    assert!(stage.admin("/metrics").await.1.contains("bao_kms_config_refused 0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_change_are_taken_over_without_a_signal() {
    let stage = Stage::set().await;
    let program = stage.serve(&stage.config(""));
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    stage.write("config.yaml", &stage.config("    layers: { batch: { maxItems: 0 } }"));
    program.logged("reload_refused").await;
    client.encrypt(vec![7; 32], "u").await.expect("what ran goes on");
    // A second pipeline beside the first, whose connection stays.
    let second = stage.config("").replace("name: a", "name: b").replace("kms.sock", "second.sock");
    let pipeline = second.split("pipelines:\n").nth(1).and_then(|rest| rest.split("telemetry:").next()).expect("one");
    stage.write("config.yaml", &stage.config("").replace("telemetry:", &format!("{pipeline}telemetry:")));
    program.logged("\"event\":\"reloaded\"").await;
    let began = std::time::Instant::now();
    while Client::connect(stage.path("second.sock")).await.is_err() {
        assert!(began.elapsed() < Duration::from_secs(10), "the second pipeline never came");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    client.encrypt(vec![7; 32], "u").await.expect("the same connection");
    assert_eq!(program.output().matches("reload_refused").count(), 1, "each content is tried once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_up_storm_asks_openbao_a_few_times() {
    let stage = Stage::set().await;
    let _program = stage.serve(&stage.config(""));
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    let mut seeds = Vec::new();
    for at in 0..20 {
        seeds.push(client.encrypt(vec![at; 32], "u").await.expect("Encrypt"));
    }
    stage.server.faults().add("transit/decrypt", Fault::Delay(Duration::from_millis(50)));
    let before = stage.server.calls().of("transit/decrypt");
    let callers: Vec<_> = (0..1_000)
        .map(|at| {
            let (client, seed) = (client.clone().with_timeout(Duration::from_secs(20)), seeds[at % 20].clone());
            tokio::spawn(
                async move { client.decrypt(seed.ciphertext.to_vec(), "u", &seed.key_id, seed.annotations).await },
            )
        })
        .collect();
    for (at, caller) in callers.into_iter().enumerate() {
        assert_eq!(caller.await.expect("task").expect("none is refused"), vec![(at % 20) as u8; 32]);
    }
    let asked = stage.server.calls().of("transit/decrypt") - before;
    assert!(asked <= 200, "{asked} Transit calls for 20 seeds");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_secret_is_written_anywhere() {
    let stage = Stage::set().await;
    let program = stage.serve(&stage.config(""));
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    let seed = b"a-seed-that-must-not-be-seen-32b".to_vec();
    let sealed = client.encrypt(seed.clone(), "u").await.expect("Encrypt");
    client.decrypt(sealed.ciphertext.to_vec(), "u", &sealed.key_id, sealed.annotations.clone()).await.expect("Decrypt");
    stage.server.faults().add_times("transit/decrypt", Fault::Malformed, 3);
    let _ = client.decrypt(sealed.ciphertext.to_vec(), "u", &sealed.key_id, sealed.annotations.clone()).await;
    stage.server.state().revoke_all_tokens();
    client.encrypt(seed.clone(), "u").await.expect("Encrypt");
    let metrics = stage.admin("/metrics").await.1 + &stage.admin("/readyz").await.1;
    let log = program.stop().1 + &metrics;
    use base64::Engine;
    let mut secrets = stage.secrets.lock().expect("lock").clone();
    secrets.push(String::from_utf8(seed.clone()).expect("text"));
    secrets.push(base64::engine::general_purpose::STANDARD.encode(&seed));
    secrets.push(String::from_utf8(sealed.ciphertext[9..40].to_vec()).expect("text"));
    secrets.extend(stage.server.root_token().split('.').next_back().map(str::to_owned));
    for secret in secrets {
        assert!(!log.contains(&secret), "{secret} stands in the output");
    }
    assert!(!log.contains("\"s."), "a token stands in the output");
    assert!(log.contains("login_succeeded") && log.contains("status_changed"), "{log}");
}

/// proc(5): the limit on core files, `NoNewPrivs`, and, as an undumpable process shows it, files that belong to root.
#[tokio::test(flavor = "multi_thread")]
async fn the_process_denies_itself_core_dumps_and_privileges() {
    use std::os::unix::fs::MetadataExt;
    let stage = Stage::set().await;
    let program = stage.serve(&stage.config(""));
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    let proc = std::path::PathBuf::from(format!("/proc/{}", program.child.id()));
    let read = |name: &str| std::fs::read_to_string(proc.join(name));
    let root = rustix::process::geteuid().is_root();
    match read("limits") {
        Ok(limits) => {
            let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a limit");
            assert!(core.split_whitespace().nth(4) == Some("0"), "{core}");
        }
        Err(error) => assert!(!root, "{error}"),
    }
    assert!(read("status").expect("status").contains("NoNewPrivs:\t1"));
    assert_eq!(std::fs::metadata(proc.join("environ")).expect("there").uid(), 0, "not dumpable");
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_tell_what_happened() {
    let stage = Stage::set().await;
    let _program = stage.serve(&stage.config(""));
    let client = stage.client().await;
    let status = status_until(&client, "ok", |status| status.healthz == "ok").await;
    client.encrypt(vec![7; 32], "u").await.expect("Encrypt");
    let (code, text) = stage.admin("/metrics").await;
    assert_eq!(code, 200);
    use std::fmt::Write;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, status.key_id.as_bytes());
    let hash = digest.as_ref().iter().fold("sha256:".to_owned(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string");
        text
    });
    for wanted in [
        "bao_kms_calls_total{pipeline=\"a\",call=\"encrypt\",class=\"ok\"} 1",
        "bao_kms_status{pipeline=\"a\",reason=\"ok\"} 1",
        "bao_kms_active_key_version{pipeline=\"a\"} 1",
        "bao_kms_openbao_attempts_total{pipeline=\"a\",purpose=\"login\",endpoint=\"0\",class=\"ok\"} 1",
        "bao_kms_calls_in_flight{pipeline=\"a\",call=\"encrypt\"} 0",
        &format!("key_id_hash=\"{hash}\""),
    ] {
        assert!(text.contains(wanted), "{wanted}\n{text}");
    }
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

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_locked_when_asked_for_or_the_log_says_why_not() {
    let stage = Stage::set().await;
    let program = stage.serve(&format!("{}memory: {{ lock: true }}\n", stage.config("")));
    status_until(&stage.client().await, "ok", |status| status.healthz == "ok").await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", program.child.id())).expect("status");
    let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:")).expect("a line").trim() != "0 kB";
    assert!(locked != program.output().contains("memory is not locked"), "{status}\n{}", program.output());
}
