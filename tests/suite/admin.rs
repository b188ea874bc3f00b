//! The admin listener: only for whom it is meant, and never a reason not to serve.

use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustix::process::Signal;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::support::{PATIENCE, Stage, status_until};

pub(super) type Authority = CertifiedIssuer<'static, KeyPair>;

pub(super) fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).expect("params");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority")
}

/// Certificate and key for a name, both PEM.
pub(super) fn leaf(authority: &Authority, name: &str) -> (String, String) {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec![name.to_owned()]).expect("params");
    (params.signed_by(&key, authority).expect("signed").pem(), key.serialize_pem())
}

/// Writes what the admin listener shows and whom it lets in.
fn identify(stage: &Stage, servers: &Authority, clients: &Authority) {
    let (cert, key) = leaf(servers, "localhost");
    for (name, text) in [("admin.key", &key), ("admin.pem", &cert), ("clients.pem", &clients.pem())] {
        stage.write(name, text);
    }
}

fn with_tls(stage: &Stage, port: u16) -> String {
    let tls = format!(
        "admin: {{ listen: \"0.0.0.0:{port}\", tls: {{ certFile: {}, keyFile: {}, clientCaFile: {} }} }}",
        stage.path("admin.pem").display(),
        stage.path("admin.key").display(),
        stage.path("clients.pem").display()
    );
    stage.config("").replace(&format!("admin: {{ listen: 127.0.0.1:{} }}", stage.admin), &tls)
}

/// Asks for readiness as one who trusts this authority alone, on a connection of its own.
async fn ask(
    servers: &Authority,
    port: u16,
    identity: Option<(String, String)>,
) -> Result<reqwest::Response, reqwest::Error> {
    let root = reqwest::Certificate::from_pem(servers.pem().as_bytes()).expect("a root");
    let mut builder = reqwest::Client::builder().tls_certs_only([root]).no_proxy();
    if let Some((cert, key)) = identity {
        builder = builder.identity(reqwest::Identity::from_pem((cert + &key).as_bytes()).expect("an identity"));
    }
    builder.build().expect("a client").get(format!("https://localhost:{port}/readyz")).send().await
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_loopback_only_who_shows_a_certificate_of_the_clients_authority() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let stage = Stage::set().await;
    let (servers, clients, strangers) = (authority(), authority(), authority());
    identify(&stage, &servers, &clients);
    let _program = stage.serve(&with_tls(&stage, stage.admin));
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;

    let ask = |identity| ask(&servers, stage.admin, identity);
    let began = Instant::now();
    let reply = loop {
        match ask(Some(leaf(&clients, "prometheus"))).await {
            Ok(reply) => break reply,
            Err(error) => assert!(began.elapsed() < PATIENCE, "{error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(reply.status().as_u16(), 200);
    assert!(ask(None).await.is_err(), "no certificate, no answer");
    assert!(ask(Some(leaf(&strangers, "prometheus"))).await.is_err(), "a certificate of another authority");
    assert!(reqwest::get(format!("http://127.0.0.1:{}/livez", stage.admin)).await.is_err(), "no answer in clear");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_is_a_finding_and_is_tried_again() {
    let stage = Stage::set().await;
    let taken = std::net::TcpListener::bind(("127.0.0.1", stage.admin)).expect("the port");
    let program = stage.serve(&stage.config(""));
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    program.logged("admin_trouble").await;
    client.encrypt(vec![7; 32], "u").await.expect("calls are served all the same");
    drop(taken);
    assert_eq!(stage.admin("/livez").await.0, 200);
    assert_eq!(program.output().matches("admin_trouble").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_shown_without_a_restart_and_a_broken_one_never() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let stage = Stage::set().await;
    let (before, after, clients) = (authority(), authority(), authority());
    identify(&stage, &before, &clients);
    let program = stage.serve(&with_tls(&stage, stage.admin));
    let until = async |servers: &Authority| {
        let began = Instant::now();
        while let Err(error) = ask(servers, stage.admin, Some(leaf(&clients, "prometheus"))).await {
            assert!(began.elapsed() < PATIENCE, "{error:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    until(&before).await;
    stage.write("admin.pem", "half of a certif");
    let began = Instant::now();
    while !program.output().contains("admin.tls cannot be renewed") {
        until(&before).await;
        assert!(began.elapsed() < PATIENCE, "never told: {}", program.output());
    }
    identify(&stage, &after, &clients);
    until(&after).await;
    assert!(ask(&before, stage.admin, Some(leaf(&clients, "prometheus"))).await.is_err(), "the old one is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_that_moves_frees_its_port_though_nobody_connects() {
    let stage = Stage::set().await;
    identify(&stage, &authority(), &authority());
    let program = stage.serve(&with_tls(&stage, stage.admin));
    let began = Instant::now();
    while TcpStream::connect(("127.0.0.1", stage.admin)).await.is_err() {
        assert!(began.elapsed() < PATIENCE, "never bound: {}", program.output());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let other = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
    stage.write("config.yaml", &with_tls(&stage, other));
    program.signal(Signal::HUP);
    program.logged("\"reloaded\"").await;
    let began = Instant::now();
    while std::net::TcpListener::bind(("0.0.0.0", stage.admin)).is_err() {
        assert!(began.elapsed() < PATIENCE, "the old port is never free");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_say_nothing_take_few_descriptors_and_are_ended() {
    const IDLE: usize = 150;
    let stage = Stage::set().await;
    let program = stage.serve(&stage.config(""));
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    assert_eq!(stage.admin("/livez").await.0, 200);
    // Only root may look at the descriptors of a process that cannot be dumped.
    let descriptors = || {
        let folder = format!("/proc/{}/fd", program.child.id());
        std::fs::read_dir(folder).ok().map(Iterator::count)
    };
    let before = descriptors();
    let mut idle = Vec::new();
    for _ in 0..IDLE {
        idle.push(TcpStream::connect(("127.0.0.1", stage.admin)).await.expect("the queue has room"));
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    if let (Some(before), Some(now)) = (before, descriptors()) {
        assert!((before + 10..=before + 80).contains(&now), "{before}, then {now} for {IDLE} connections");
    } else {
        eprintln!("descriptors are not counted: that takes root");
    }
    client.encrypt(vec![7; 32], "u").await.expect("calls are served meanwhile");
    assert_eq!(stage.admin("/livez").await.0, 200, "whoever asks has a turn");
    for mut stream in idle {
        let end = tokio::time::timeout(PATIENCE, stream.read(&mut [0; 1])).await.expect("it is ended");
        assert!(matches!(end, Ok(0) | Err(_)), "closed, not answered: {end:?}");
    }
}
