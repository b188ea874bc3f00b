//! The admin listener: only for whom it is meant, and never a reason not to serve.

use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use super::support::{PATIENCE, Stage, status_until};

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).expect("params");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority")
}

/// Certificate and key for a name, both PEM.
fn leaf(authority: &CertifiedIssuer<'static, KeyPair>, name: &str) -> (String, String) {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec![name.to_owned()]).expect("params");
    (params.signed_by(&key, authority).expect("signed").pem(), key.serialize_pem())
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_loopback_only_who_shows_a_certificate_of_the_clients_authority() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let stage = Stage::set().await;
    let (servers, clients, strangers) = (authority(), authority(), authority());
    let (cert, key) = leaf(&servers, "localhost");
    for (name, text) in [("admin.pem", &cert), ("admin.key", &key), ("clients.pem", &clients.pem())] {
        stage.write(name, text);
    }
    let tls = format!(
        "admin: {{ listen: \"0.0.0.0:{}\", tls: {{ certFile: {}, keyFile: {}, clientCaFile: {} }} }}",
        stage.admin,
        stage.path("admin.pem").display(),
        stage.path("admin.key").display(),
        stage.path("clients.pem").display()
    );
    let plain = format!("admin: {{ listen: 127.0.0.1:{} }}", stage.admin);
    let _program = stage.serve(&stage.config("").replace(&plain, &tls));
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;

    let ask = |identity: Option<(String, String)>| {
        let root = reqwest::Certificate::from_pem(servers.pem().as_bytes()).expect("a root");
        let mut builder = reqwest::Client::builder().tls_certs_only([root]).no_proxy();
        if let Some((cert, key)) = identity {
            builder = builder.identity(reqwest::Identity::from_pem((cert + &key).as_bytes()).expect("an identity"));
        }
        let url = format!("https://localhost:{}/readyz", stage.admin);
        async move { builder.build().expect("a client").get(url).send().await }
    };
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
