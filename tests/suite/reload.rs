//! A configuration that changes while the program serves: what it leaves open, what it carries along, and that nobody waits
//! for it.

use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use bao_kms_provider::dev::server::Fault;
use bao_kms_provider::front::client::Client;
use rustix::process::Signal;

use super::handover::{Service, quiet, round};
use super::hang::hang;
use super::owners::some_group;
use super::support::{PATIENCE, Program, Stage, status_until};

/// The base configuration with another `socket` section; `more` follows its path.
fn with_socket(stage: &Stage, more: &str) -> String {
    let section = format!("path: {}, mode: \"0600\"", stage.socket().display());
    let config = quiet(stage);
    assert!(config.contains(&section), "{config}");
    config.replace(&section, more)
}

/// Writes the configuration and waits until it has taken effect for the `times`th time.
async fn reloaded(stage: &Stage, program: &Program, config: &str, times: usize) {
    stage.write("config.yaml", config);
    program.signal(Signal::HUP);
    let began = Instant::now();
    while program.output().matches("\"event\":\"reloaded\"").count() < times {
        assert!(began.elapsed() < PATIENCE, "never reloaded:\n{}", program.output());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_door_asks_changes_behind_the_service_managers_socket_and_the_view_stays() {
    let stage = Stage::set().await;
    let manager = UnixListener::bind(stage.socket()).expect("a socket");
    let passed = manager.try_clone().expect("a copy").into();
    let service = Service::start_as(&stage, &quiet(&stage), env!("CARGO_BIN_EXE_bao-kms-provider"), Some(passed));
    let client = stage.client().await;
    let first = status_until(&client, "ok", |status| status.healthz == "ok").await;
    // Whoever forgets the key learns nothing of it now.
    stage.server.faults().add("transit/keys", Fault::Hang);
    let uid = rustix::process::geteuid().as_raw();
    let path = stage.socket().display().to_string();
    let socket = format!("path: {path}, mode: \"0666\", escapedAuthority: false, allowPeers: {{ uids: [ {uid} ] }}");
    let config =
        with_socket(&stage, &socket).replace("rotation:", "layers: { limits: { maxCalls: 100 } }\n    rotation:");
    stage.write("config.yaml", &config);
    service.signal(Signal::HUP);
    super::handover::logged(&stage, "\"event\":\"reloaded\"").await;
    super::handover::logged(&stage, "keeps its mode and group").await;
    for at in 0..20 {
        let fresh = Client::connect(stage.socket()).await.expect("a listener").with_timeout(Duration::from_secs(2));
        for one in [&client, &fresh] {
            let status = one.status().await.expect("the door is open");
            assert_eq!((status.healthz.as_str(), &status.key_id), ("ok", &first.key_id), "{at}");
        }
        round(&client, &[at; 32]).await.expect("the same connection");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // A pipeline that goes and comes back finds the service manager's socket again.
    stage.server.faults().clear();
    stage.write("config.yaml", &config.replace("name: a", "name: other").replace(&path, &format!("{path}.other")));
    service.signal(Signal::HUP);
    until("another pipeline", async || Client::connect(stage.path("kms.sock.other")).await.is_ok()).await;
    stage.write("config.yaml", &config);
    service.signal(Signal::HUP);
    status_until(&stage.client().await.with_timeout(PATIENCE), "ok", |status| status.healthz == "ok").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mode_group_and_callers_follow_on_the_socket_that_is_there() {
    let stage = Stage::set().await;
    let program = stage.serve(&quiet(&stage));
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    let logins = stage.server.calls().of("auth/login");
    let inode = stage.socket().symlink_metadata().expect("it").ino();
    let (path, uid) = (stage.socket().display().to_string(), rustix::process::geteuid().as_raw());
    let section = |mode: &str, group: &str, uid: u32| {
        with_socket(
            &stage,
            &format!("path: {path}, mode: \"{mode}\", group: \"{group}\", allowPeers: {{ uids: [ {uid} ] }}"),
        )
    };
    let group = some_group().to_string();
    let seen = || stage.socket().symlink_metadata().map(|meta| (meta.mode() & 0o777, meta.gid())).expect("it");

    reloaded(&stage, &program, &section("0660", &group, uid + 1), 1).await;
    until("mode and group", async || seen() == (0o660, some_group())).await;
    assert!(client.status().await.is_err(), "whoever is shut out is so on the connection that it has");
    // The system accepts another one; whoever shakes hands on it meets the closed door here or with its first call.
    if let Ok(refused) = Client::connect(stage.socket()).await {
        assert!(refused.status().await.is_err(), "and on another one");
    }

    reloaded(&stage, &program, &section("0666", "no such group", uid), 2).await;
    until("the reason", async || stage.admin("/readyz").await.1.contains("no such group")).await;
    round(&stage.client().await, &[1; 32]).await.expect("served all the same");
    assert_eq!(seen(), (0o660, some_group()), "nothing by halves");

    reloaded(&stage, &program, &section("0600", &group, uid), 3).await;
    until("mode and group", async || seen() == (0o600, some_group())).await;
    until("the end of the reason", async || stage.admin("/readyz").await.0 == 200).await;
    round(&stage.client().await, &[1; 32]).await.expect("served");
    assert_eq!(stage.socket().symlink_metadata().expect("it").ino(), inode, "the same socket all along");
    assert_eq!(stage.server.calls().of("auth/login"), logins, "a door that changes needs no other token");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_path_takes_along_what_is_known_of_the_key() {
    let stage = Stage::set().await;
    let program = stage.serve(&quiet(&stage));
    let client = stage.client().await;
    let first = status_until(&client, "ok", |status| status.healthz == "ok").await;
    stage.server.faults().add("transit/keys", Fault::Hang);
    let moved = stage.path("moved.sock");
    let config = quiet(&stage).replace(&stage.socket().display().to_string(), &moved.display().to_string());
    reloaded(&stage, &program, &config, 1).await;
    until("the socket at the new path", async || UnixStream::connect(&moved).is_ok()).await;
    let status = Client::connect(&moved).await.expect("a listener").status().await.expect("Status");
    assert_eq!((status.healthz.as_str(), status.key_id), ("ok", first.key_id));
    until("a closed door at the old path", async || UnixStream::connect(stage.socket()).is_err()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_under_load_fails_no_call_of_the_stack_that_it_replaces() {
    let stage = Stage::set().await;
    let admit = |slots: u8| {
        let layers =
            format!("layers: {{ admit: {{ maxInFlight: {slots} }}, batch: {{ maxItems: 1 }} }}\n    rotation:");
        quiet(&stage).replace("rotation:", &layers)
    };
    let program = stage.serve(&admit(2));
    let client = stage.client().await.with_timeout(Duration::from_secs(25));
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    stage.server.faults().add("transit/encrypt", Fault::Delay(Duration::from_millis(200)));
    let calls: Vec<_> = (0..24)
        .map(|at| {
            let client = client.clone();
            tokio::spawn(async move { client.encrypt(vec![at; 32], "u").await })
        })
        .collect();
    until("calls in the queue", async || stage.server.calls().of("transit/encrypt") > 1).await;
    reloaded(&stage, &program, &admit(4), 1).await;
    assert!(calls.iter().filter(|call| !call.is_finished()).count() > 8, "a reload after the load shows nothing");
    for call in calls {
        call.await.expect("task").expect("it ends in the stack that it entered");
    }
    program.logged("token_revoked").await;
    let live = stage.server.state().live_tokens();
    assert_eq!(live, 2, "root's and the new session's");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_a_restart_puts_in_force_is_named_and_nobody_waits_for_calls_that_leave() {
    let stage = Stage::set().await;
    let config = quiet(&stage);
    let (start, end) = (config.find("  - name: a").expect("a pipeline"), config.find("telemetry:").expect("the next"));
    let leaving = config[start..end].replace("name: a", "name: b").replace("kms.sock", "second.sock");
    let program = stage.serve(&format!("{}{leaving}{}", &config[..end], &config[end..]));
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    let other =
        Client::connect(stage.path("second.sock")).await.expect("a listener").with_timeout(Duration::from_secs(15));
    status_until(&other, "ok", |status| status.healthz == "ok").await;
    stage.server.faults().add_times("transit/encrypt", Fault::Hang, 1);
    let held = tokio::spawn(async move { other.encrypt(vec![7; 32], "u").await });
    until("the call at OpenBao", async || stage.admin("/metrics").await.1.contains("slots_used{pipeline=\"b\"} 1"))
        .await;

    // The pipeline goes while a call of it is on its way; the next reload and the others do not wait for that one.
    reloaded(&stage, &program, &config, 1).await;
    let text = config
        .replace("level: info", "level: info, format: text")
        .replace("rotation:", "layers: { limits: { maxCalls: 20000 }, deadline: { max: 10m } }\n    rotation:");
    reloaded(&stage, &program, &text, 2).await;
    round(&client, &[1; 32]).await.expect("the other pipeline serves");
    assert!(!held.is_finished(), "nothing was waited for");

    program.logged("except for what only a restart puts in force").await;
    let paths = ["telemetry.logs.format", "pipelines.a.layers.limits.maxCalls", "pipelines.a.layers.deadline.max"];
    assert!(stage.admin("/metrics").await.1.contains("bao_kms_config_restart_needed 3"));
    let report: serde_json::Value = serde_json::from_str(&stage.admin("/readyz").await.1).expect("JSON");
    assert_eq!(report["restartNeeded"], serde_json::json!(paths));
    reloaded(&stage, &program, &config, 3).await;
    assert!(stage.admin("/metrics").await.1.contains("bao_kms_config_restart_needed 0"));
    assert!(!stage.admin("/readyz").await.1.contains("restartNeeded"));
}

/// A call whose message never ends, frame by frame (RFC 9113): nothing of ours has a deadline for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_waits_for_calls_no_longer_than_the_longest_one_may_take() {
    use std::io::Write;
    let stage = Stage::set().await;
    let config = quiet(&stage).replace("rotation:", "layers: { deadline: { max: 1s, default: 1s } }\n    rotation:");
    let program = stage.serve(&config);
    status_until(&stage.client().await, "ok", |status| status.healthz == "ok").await;
    let literal =
        |name: &[u8], value: &str| [name, &[u8::try_from(value.len()).expect("short")], value.as_bytes()].concat();
    let head = [
        // :method POST, :scheme http, then :path, :authority and content-type with their values.
        vec![0x83, 0x86],
        literal(&[0x04], "/v2.KeyManagementService/Encrypt"),
        literal(&[0x01], "localhost"),
        literal(&[0x0f, 0x10], "application/grpc"),
    ]
    .concat();
    let length = u8::try_from(head.len()).expect("short");
    let mut stream = UnixStream::connect(stage.socket()).expect("a connection");
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").expect("written");
    // HEADERS with END_HEADERS and without END_STREAM, on stream 1.
    stream.write_all(&[0, 0, length, 1, 4, 0, 0, 0, 1]).expect("written");
    stream.write_all(&head).expect("written");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let began = Instant::now();
    let (code, log) = tokio::task::spawn_blocking(|| program.stop()).await.expect("task");
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("are given up"), "{log}");
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_on_a_volume_that_hangs_holds_up_nothing_but_its_reload() {
    let stage = Stage::set().await;
    let program = stage.serve(&quiet(&stage));
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    let replace = |config: &str| {
        let next = stage.write("next.yaml", config);
        let held = hang(&next);
        std::fs::rename(next, stage.path("config.yaml")).expect("replaced");
        held
    };
    let Some(held) = replace(&quiet(&stage).replace("level: info", "level: debug")) else { return };
    program.signal(Signal::HUP);
    let began = Instant::now();
    while !program.output().contains("the volume of a file hangs") {
        assert!(began.elapsed() < PATIENCE, "never said:\n{}", program.output());
        round(&client, &[7; 32]).await.expect("served");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (_, report) = stage.admin("/readyz").await;
    let file = stage.path("config.yaml").display().to_string();
    assert!(report.contains(&file) && report.contains("the volume of a file hangs"), "{report}");
    drop(held);
    program.logged("\"event\":\"reloaded\"").await;
    let (_, report) = stage.admin("/readyz").await;
    assert!(!report.contains("hangs"), "{report}");

    let _held = replace(&quiet(&stage)).expect("as before");
    program.signal(Signal::HUP);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (code, log) = tokio::task::block_in_place(|| program.stop());
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("the token was given back"), "{log}");
}
