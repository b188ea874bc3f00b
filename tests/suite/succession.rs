//! What the next process is told and given, so that it is no worse than the one before: what was seen of the key, the
//! service manager's socket, the configured mode, the admin port.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use bao_kms_provider::dev::server::Fault;
use bao_kms_provider::front::client::Client;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::handover::{Service, alive, logged, quiet, round};
use super::support::{PATIENCE, Stage, status_until};

const KEY: &str = "transit/keys/k8s-etcd";
const PROGRAM: &str = env!("CARGO_BIN_EXE_bao-kms-provider");

/// What OpenBao says of the key now, to be said again later.
async fn metadata(stage: &Stage) -> String {
    stage.bao().call("GET", KEY, &Value::Null).await.expect("asked").text
}

fn reply(body: &str) -> Fault {
    Fault::Reply { status: 200, body: body.to_owned() }
}

/// The next process has asked for the metadata so often.
async fn reads(stage: &Stage, count: u64) {
    let began = Instant::now();
    while stage.server.calls().of("transit/keys") < count {
        assert!(began.elapsed() < PATIENCE, "metadata is not read");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_lags_does_not_move_the_key_id_of_the_next_process_back() {
    let stage = Stage::set().await;
    let mut service = Service::start(&stage, &quiet(&stage));
    let client = stage.client().await;
    let first = status_until(&client, "ok", |status| status.healthz == "ok").await;
    let old = metadata(&stage).await;
    assert!(stage.bao().call("POST", &format!("{KEY}/rotate"), &json!({})).await.expect("asked").is_ok());
    let second = status_until(&client, "of another key_id", |status| status.key_id != first.key_id).await;
    // The one before and the next one are both answered by the standby for a while.
    let lagging = stage.server.faults().add(KEY, reply(&old));
    let before = stage.server.calls().of("transit/keys");
    service.signal(Signal::USR2);
    logged(&stage, "handing_over").await;
    reads(&stage, before + 6).await;
    assert_eq!(stage.client().await.status().await.expect("Status").key_id, second.key_id);
    stage.server.faults().remove(lagging);
    tokio::task::block_in_place(|| service.replaced());
    let status = stage.client().await.status().await.expect("Status");
    assert_eq!((status.healthz.as_str(), status.key_id), ("ok", second.key_id));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_was_recreated_is_noticed_by_the_next_process_and_then_nobody_takes_over() {
    let stage = Stage::set().await;
    // The process before does not look at the key any more while it hands over.
    let seldom = "activationDelay: 120s, metadataInterval: 60s";
    let config = quiet(&stage).replace("activationDelay: 1s, metadataInterval: 500ms", seldom);
    assert!(config.contains(seldom));
    let service = Service::start(&stage, &config);
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    let mut other: Value = serde_json::from_str(&metadata(&stage).await).expect("JSON");
    other["data"]["keys"]["1"] = json!(other["data"]["keys"]["1"].as_u64().expect("a time") + 60);
    stage.server.faults().add(KEY, reply(&other.to_string()));
    service.signal(Signal::USR2);
    logged(&stage, "\"class\":\"key_rolled_back\"").await;
    logged(&stage, "not every pipeline became healthy").await;
    round(&client, &[1; 32]).await.expect("served on");

    // Once it has noticed itself, it does not even try.
    stage.write("config.yaml", &config.replace("rotation:", "layers: { admit: { maxInFlight: 8 } }\n    rotation:"));
    service.signal(Signal::HUP);
    status_until(&client, "key_rolled_back", |status| status.healthz == "key_rolled_back").await;
    service.signal(Signal::USR2);
    logged(&stage, "a new process would not mend that").await;
    assert!(alive(service.main));
}

#[tokio::test(flavor = "multi_thread")]
async fn while_coasting_nobody_takes_over_who_has_no_key_id_to_give() {
    let stage = Stage::set().await;
    let config = quiet(&stage).replace("rotation:", "health: { tolerance: 1s, outage: coast }\n    rotation:");
    let mut service = Service::start(&stage, &config);
    let client = stage.client().await;
    let first = status_until(&client, "ok", |status| status.healthz == "ok").await;
    stage.server.faults().add("", Fault::Reset);
    let coasting = |status: &bao_kms_provider::front::client::StatusResponse| status.healthz != "ok";
    assert_eq!(status_until(&client, "in an outage", coasting).await.key_id, first.key_id);
    service.signal(Signal::USR2);
    logged(&stage, "handing_over").await;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        let status = stage.client().await.status().await.expect("Status");
        assert_eq!(status.key_id, first.key_id, "{}", status.healthz);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stage.server.faults().clear();
    tokio::task::block_in_place(|| service.replaced());
    let status = stage.client().await.status().await.expect("Status");
    assert_eq!((status.healthz.as_str(), status.key_id), ("ok", first.key_id));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_managers_socket_goes_from_process_to_process() {
    let stage = Stage::set().await;
    let manager = UnixListener::bind(stage.socket()).expect("a socket");
    let inode = stage.socket().symlink_metadata().expect("it").ino();
    let passed = manager.try_clone().expect("a copy").into();
    let mut service = Service::start_as(&stage, &quiet(&stage), PROGRAM, Some(passed));
    status_until(&stage.client().await, "ok", |status| status.healthz == "ok").await;
    for at in 0..3 {
        service.signal(Signal::USR2);
        tokio::task::block_in_place(|| service.replaced());
        round(&stage.client().await, &[at; 32]).await.expect("served by the next");
    }
    assert_eq!(stage.socket().symlink_metadata().expect("it").ino(), inode);
    assert!(!stage.path("kms.sock.lock").exists(), "nobody bound it anew");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_process_gives_the_socket_its_own_mode() {
    let stage = Stage::set().await;
    let mut service = Service::start(&stage, &quiet(&stage));
    status_until(&stage.client().await, "ok", |status| status.healthz == "ok").await;
    let seen = || stage.socket().symlink_metadata().map(|meta| (meta.mode() & 0o777, meta.ino())).expect("it");
    let (mode, inode) = seen();
    assert_eq!(mode, 0o600);
    // Within less than the watcher of the files takes, and no signal asks for it.
    stage.write("config.yaml", &quiet(&stage).replace("\"0600\"", "\"0660\""));
    service.signal(Signal::USR2);
    tokio::task::block_in_place(|| service.replaced());
    round(&stage.client().await, &[1; 32]).await.expect("served by the next");
    assert_eq!(seen(), (0o660, inode));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_process_is_the_file_to_which_the_path_leads_by_now() {
    let stage = Stage::set().await;
    let (link, marker) = (stage.path("bao-kms-provider"), stage.path("marker"));
    symlink(PROGRAM, &link).expect("a symlink");
    let mut service = Service::start_as(&stage, &quiet(&stage), link.to_str().expect("text"), None);
    status_until(&stage.client().await, "ok", |status| status.healthz == "ok").await;
    let next = stage.write("next", &format!("#!/bin/sh\ntouch {}\nexec {PROGRAM} \"$@\"\n", marker.display()));
    std::fs::set_permissions(&next, std::fs::Permissions::from_mode(0o700)).expect("mode");
    std::fs::remove_file(&link).expect("removed");
    symlink(&next, &link).expect("a symlink");
    service.signal(Signal::USR2);
    tokio::task::block_in_place(|| service.replaced());
    assert!(marker.exists(), "what the link led to when the program started runs again");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_port_is_the_next_processs_while_the_one_before_ends_its_calls() {
    let stage = Stage::set().await;
    let mut service = Service::start(&stage, &quiet(&stage));
    let client = stage.client().await.with_timeout(Duration::from_secs(20));
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    client.encrypt(vec![7; 32], "u").await.expect("Encrypt");
    let first = "bao_kms_calls_total{pipeline=\"a\",call=\"encrypt\",class=\"ok\"} 1";
    assert!(stage.admin("/metrics").await.1.contains(first));
    stage.server.faults().add_times("transit/encrypt", Fault::Hang, 1);
    let held = tokio::spawn(async move { client.encrypt(vec![8; 32], "u").await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    service.signal(Signal::USR2);
    let before = tokio::task::block_in_place(|| service.named());
    let began = Instant::now();
    while stage.admin("/metrics").await.1.contains(first) {
        assert!(began.elapsed() < PATIENCE, "the process before still answers");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(alive(before) && !held.is_finished(), "the call is still on its way");
    assert!(Client::connect(stage.socket()).await.is_ok());
}

/// A group that the system does not have leaves the socket's file as it is, and callers are served: the next process, which
/// meets that from its beginning, does not end for it as one does that has no socket.
#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_is_served_and_not_as_configured_ends_no_process() {
    /// What a process without a socket has patience for, and more.
    const LONGER: Duration = Duration::from_secs(65);
    let stage = Stage::set().await;
    let mut service = Service::start(&stage, &quiet(&stage));
    status_until(&stage.client().await, "ok", |status| status.healthz == "ok").await;
    stage.write("config.yaml", &quiet(&stage).replace("mode: \"0600\"", "mode: \"0660\", group: nobody-has-this-name"));
    service.signal(Signal::USR2);
    tokio::task::block_in_place(|| service.replaced());
    logged(&stage, "socket_refused").await;
    let (code, report) = stage.admin("/readyz").await;
    assert!(code == 503 && report.contains("nobody-has-this-name"), "{code}: {report}");
    let began = Instant::now();
    while began.elapsed() < LONGER {
        round(&stage.client().await, &[1; 32]).await.expect("served");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert!(alive(service.main));
}
