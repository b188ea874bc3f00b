//! Faults that only show in what does not come: a caller whose OpenBao hangs gets our answer, with the slow part named,
//! before its own runtime gives up; and a node that has no leader is not called sealed.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use bao_kms_provider::dev::server::{Fault, Line};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::faults::{End, Row, Scene, late};
use super::load::round;
use super::support::{Stage, status_until};

#[tokio::test(flavor = "multi_thread")]
async fn silence_after_the_request_is_the_callers_deadline_with_the_slow_part_named() {
    let scene = Scene::set().await;
    let rows = [
        (late("silence after the request", "timeout"), Fault::Hang),
        (late("silence inside the answer", "timeout"), Fault::HangMidBody),
    ];
    for (row, fault) in rows {
        scene.play(&row, |stage| _ = stage.server.faults().add("", fault), |stage| stage.server.faults().clear()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_open_connection_is_the_callers_deadline_with_the_slow_part_named() {
    let scene = Scene::set().await;
    let rows = [
        (Row { status: Some("unreachable"), ..late("silence before TLS", "timeout") }, Line::SilentBeforeTls),
        (late("silence after TLS", "timeout"), Line::SilentAfterTls),
    ];
    for (row, line) in rows {
        let set = |line: Line| move |stage: &Stage| _ = stage.server.set_line(line).expect("a line");
        scene.play(&row, set(line), set(Line::Open)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_openbao_without_a_leader_is_no_leader_and_not_sealed() {
    let scene = Scene::set().await;
    for text in ["node is not active", "no active Vault instance found"] {
        let row = late(text, "no_leader");
        let fault = Fault::Reply { status: 503, body: format!("{{\"errors\":[\"{text}\"]}}\n") };
        scene
            .play(&row, |stage| _ = stage.server.faults().add("transit/", fault), |stage| stage.server.faults().clear())
            .await;
    }
}

/// A listener whose backlog is full: what is sent to it meets silence. Holds what fills it.
struct BlackHole {
    _listener: OwnedFd,
    _waiting: Vec<OwnedFd>,
}

// === impl BlackHole ===

impl BlackHole {
    fn at(port: u16) -> Self {
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        let socket = || {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).expect("a socket")
        };
        let listener = socket();
        rustix::net::sockopt::set_socket_reuseaddr(&listener, true).expect("an option");
        rustix::net::bind(&listener, &address).expect("the port");
        rustix::net::listen(&listener, 0).expect("listening");
        let waiting = (0..4).map(|_| {
            let socket = socket();
            // It is on its way, or waits for a place that never gets free.
            let _ = rustix::net::connect(&socket, &address);
            socket
        });
        let waiting = waiting.collect();
        Self { _listener: listener, _waiting: waiting }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_black_holed_address_costs_bounded_time_and_heals() {
    let stage = Stage::set().await;
    let node = stage.node(0).await;
    let (port, url) = (node.port(), node.url());
    let _program = stage.serve(&stage.config_of(&[url], "    health: { tolerance: 1s }"));
    let client = stage.client().await.with_timeout(Duration::from_secs(1));
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    let sealed = client.encrypt(vec![7; 32], "u").await.expect("Encrypt");
    node.shutdown().await;
    let hole = BlackHole::at(port);
    let lost = async |what: &str| {
        let began = Instant::now();
        let write = async { (client.encrypt(vec![8; 32], "u").await.err(), began.elapsed()) };
        let open = client.decrypt(sealed.ciphertext.to_vec(), "u", &sealed.key_id, sealed.annotations.clone());
        let read = async { (open.await.err(), began.elapsed()) };
        let (write, read) = tokio::join!(write, read);
        for (call, (error, took)) in [("Encrypt", write), ("Decrypt", read)] {
            let (what, error) = (format!("{what}: {call}"), error.expect("nobody is there"));
            // Whoever tries it meets silence, whoever waits behind that one is told what was known.
            let known = error.to_string().ends_with("(because of unreachable)");
            End::Late(if known { "unreachable" } else { "timeout" }).check(&what, &error, took);
        }
    };
    lost("at once").await;
    lost("again").await;
    status_until(&client, "unreachable", |status| status.healthz == "unreachable" && status.key_id.is_empty()).await;
    lost("when it is known").await;
    drop(hole);
    let _node = stage.node(port).await;
    let began = Instant::now();
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    assert!(began.elapsed() < Duration::from_secs(4), "recovery took {:?}", began.elapsed());
    let opened = client.decrypt(sealed.ciphertext.to_vec(), "u", &sealed.key_id, sealed.annotations.clone()).await;
    assert_eq!(opened.expect("without a restart"), vec![7; 32]);
    round(&client, &[7; 32]).await.expect("without a restart");
}
