//! A collector behind TLS: whom the exporter trusts, and that a CA file which comes late is enough.

use std::time::{Duration, Instant};

use tonic::transport::{Identity, Server, ServerTlsConfig};

use super::admin::{Authority, authority, leaf};
use super::support::{PATIENCE, Program, Stage, status_until};
use super::traces::Collector;

/// A collector whose certificate this authority has signed, and its address.
async fn behind_tls(authority: &Authority) -> (Collector, String) {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let (cert, key) = leaf(authority, "localhost");
    let tls = ServerTlsConfig::new().identity(Identity::from_pem(cert, key));
    let collector = Collector::default();
    let port = collector.serve(Server::builder().tls_config(tls).expect("TLS")).await;
    (collector, format!("https://localhost:{port}"))
}

fn config(stage: &Stage, otlp: &str) -> String {
    stage.config("").replace(
        "telemetry: { logs: { level: trace } }",
        &format!("telemetry: {{ logs: {{ level: trace }}, traces: {{ otlp: {{ {otlp} }} }} }}"),
    )
}

/// Calls until the collector has a span.
async fn delivered(stage: &Stage, program: &Program, collector: &Collector) {
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    let began = Instant::now();
    while collector.count() == 0 {
        client.encrypt(vec![7; 32], "u").await.expect("calls are served whatever the collector does");
        assert!(began.elapsed() < PATIENCE, "no span has come: {}", program.output());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ca_file_that_comes_late_is_told_and_then_trusted() {
    let (stage, servers) = (Stage::set().await, authority());
    let (collector, url) = behind_tls(&servers).await;
    let file = stage.path("collector.pem");
    let program = stage.serve(&config(&stage, &format!("endpoint: \"{url}\", caFile: {}", file.display())));
    program.logged("exporter_trouble").await;
    assert!(program.output().contains("collector.pem"), "the file is named");
    stage.write("collector.pem", "not yet");
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    client.encrypt(vec![7; 32], "u").await.expect("Encrypt");
    stage.write("collector.pem", &servers.pem());
    delivered(&stage, &program, &collector).await;
    assert_eq!(program.stop().0, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_ca_file_the_systems_roots_are_trusted_and_nobody_else() {
    let servers = authority();
    let (collector, url) = behind_tls(&servers).await;
    let stage = Stage::set().await;
    let otlp = config(&stage, &format!("endpoint: \"{url}\""));

    let strangers = stage.write("strangers.pem", &authority().pem());
    let program = stage.serve_with(&otlp, |command| {
        command.env("SSL_CERT_FILE", strangers);
    });
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    client.encrypt(vec![7; 32], "u").await.expect("Encrypt");
    program.logged("traces cannot be delivered").await;
    assert_eq!(program.stop().0, Some(0));
    assert_eq!(collector.count(), 0, "a certificate of an unknown authority");

    let roots = stage.write("system.pem", &servers.pem());
    let program = stage.serve_with(&otlp, |command| {
        command.env("SSL_CERT_FILE", roots);
    });
    delivered(&stage, &program, &collector).await;
    assert_eq!(program.stop().0, Some(0));
}
