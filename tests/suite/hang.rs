//! Files on a volume that hangs: whoever opens one waits, for as long as the volume does.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use nix::fcntl::AT_FDCWD;
use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags};
use rustix::process::Signal;

use super::handover::{Service, logged, quiet};
use super::load::round;
use super::support::{PATIENCE, Stage, connect, skipped, status_until, until};

/// Everybody who opens this file waits until what is returned is dropped. Only root may do that.
pub(super) fn hang(file: &Path) -> Option<Fanotify> {
    let held = Fanotify::init(InitFlags::FAN_CLASS_CONTENT | InitFlags::FAN_CLOEXEC, EventFFlags::O_RDONLY);
    let held = held.and_then(|held| {
        held.mark(MarkFlags::FAN_MARK_ADD, MaskFlags::FAN_OPEN_PERM, AT_FDCWD, Some(file))?;
        Ok(held)
    });
    held.inspect_err(|error| skipped(&format!("no file can be made to hang: {error}"))).ok()
}

/// What only traces and the admin listener need keeps no call waiting, from the first instant on, and no end either.
#[tokio::test(flavor = "multi_thread")]
async fn trust_of_the_collector_and_of_the_admin_listener_that_hangs_holds_up_no_call() {
    let stage = Stage::set().await;
    let file = stage.write("hangs.pem", &stage.server.ca_pem());
    let Some(_held) = hang(&file) else { return };
    let path = file.display();
    let config = quiet(&stage)
        .replace(
            "telemetry: {",
            &format!("telemetry: {{ traces: {{ otlp: {{ endpoint: \"https://127.0.0.1:1\", caFile: {path} }} }},"),
        )
        .replace(
            &format!("listen: 127.0.0.1:{}", stage.admin),
            &format!(
                "listen: 127.0.0.1:{}, tls: {{ certFile: {path}, keyFile: {path}, clientCaFile: {path} }}",
                stage.admin
            ),
        );
    assert!(config.contains("otlp") && config.contains("clientCaFile"), "{config}");
    let program = stage.serve(&config);
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    for waiting in
        ["they wait for the CA certificates of the collector", "the admin listener waits for the files of admin.tls"]
    {
        program.logged(waiting).await;
    }
    round(&client, &[7; 32]).await.expect("served");
    let (code, log) = tokio::task::block_in_place(|| program.stop());
    assert_eq!(code, Some(0), "{log}");
}

/// A hand-over that is asked for before the socket is open: it waits for it, because a socket that is not there yet cannot be
/// given, and the process before would close it behind itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_hand_over_waits_for_a_socket_that_is_being_opened() {
    let stage = Stage::set().await;
    let file = stage.write("kms.sock.lock", "");
    let Some(held) = hang(&file) else { return };
    let mut service = Service::start(&stage, &quiet(&stage));
    logged(&stage, "\"started\"").await;
    service.signal(Signal::USR2);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let log = std::fs::read_to_string(stage.path("log")).expect("a log");
    assert!(!log.contains("handing_over") && !log.contains("socket_ready"), "{log}");
    drop(held);
    tokio::task::block_in_place(|| service.replaced());
    round(&stage.client().await, &[7; 32]).await.expect("served");
    // A thread of its own writes the log.
    let log = || std::fs::read_to_string(stage.path("log")).expect("a log");
    until("both had the socket", || log().matches("socket_ready").count() >= 2).await;
    assert!(!log().contains("socket_refused"), "{}", log());
    assert_eq!(log().matches("socket_ready").count(), 2, "{}", log());
}

/// More sockets on volumes that hang than the program has threads.
#[tokio::test(flavor = "multi_thread")]
async fn sockets_on_volumes_that_hang_hold_up_no_other_pipeline() {
    let stage = Stage::set().await;
    let names = ["b", "c", "d", "e", "f"];
    let mut held = Vec::new();
    for name in names {
        let lock = stage.write(&format!("{name}.sock.lock"), "");
        let Some(hangs) = hang(&lock) else { return };
        held.push(hangs);
    }
    let config = quiet(&stage);
    let (head, tail) = config.split_once("telemetry:").expect("telemetry");
    let (_, first) = head.split_once("pipelines:\n").expect("pipelines");
    let named = |name| first.replace("name: a", &format!("name: {name}")).replace("kms.sock", &format!("{name}.sock"));
    let config = format!("{head}{}telemetry:{tail}", names.map(named).concat());
    let manager = UnixDatagram::bind(stage.path("notify")).expect("a socket");
    manager.set_read_timeout(Some(PATIENCE)).expect("a time-out");

    let notify = stage.path("notify");
    let program = stage.serve_with(&config, |command| {
        command.env("NOTIFY_SOCKET", &notify);
    });
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    round(&client, &[7; 32]).await.expect("served");
    let mut word = [0; 512];
    loop {
        let length = tokio::task::block_in_place(|| manager.recv(&mut word)).expect("the program becomes ready");
        if word[..length].starts_with(b"READY=1") {
            break;
        }
    }
    for name in names {
        program.logged(&format!("{name}.sock: the volume that holds it does not answer")).await;
    }
    round(&client, &[7; 32]).await.expect("served on");

    drop(held);
    for name in names {
        let client = connect(&stage.path(&format!("{name}.sock"))).await;
        status_until(&client, "ok", |status| status.healthz == "ok").await;
    }
    let (code, log) = tokio::task::block_in_place(|| program.stop());
    assert_eq!(code, Some(0), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_on_a_volume_that_hangs_does_not_keep_the_program_from_ending() {
    let stage = Stage::set().await;
    let lock = stage.write("kms.sock.lock", "");
    let Some(_held) = hang(&lock) else { return };
    let program = stage.serve(&quiet(&stage));
    program.logged("the volume that holds it does not answer").await;
    let (code, log) = tokio::task::block_in_place(|| program.stop());
    assert_eq!(code, Some(0), "{log}");
}
