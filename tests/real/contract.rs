//! Real OpenBao keeps the same contract as the embedded server.
//!
//! `BAO_CONTRACT_ADDR`, `BAO_CONTRACT_CACERT` (a file), `BAO_CONTRACT_TOKEN` and, for the rows about sealing,
//! `BAO_CONTRACT_UNSEAL_KEY` name an OpenBao 2.4.0 that nobody has used yet.

use bao_kms_provider::dev::certificate::ClientAuthority;
use bao_kms_provider::dev::client::{Client, Endpoint};
use bao_kms_provider::dev::contract::{Report, Target, run};
use bao_kms_provider::dev::jwt::Signer;
use bao_kms_provider::dev::provision::{CertLogin, JwtLogin, Setup, provision};
use serde_json::json;

/// Runs the table against an OpenBao and prints the rows that it does not keep.
pub async fn check(target: &Target) -> Report {
    let report = run(target).await.unwrap();
    for failure in &report.failed {
        eprintln!("{failure}");
    }
    eprintln!("contract: {} rows kept, {} not", report.passed, report.failed.len());
    report
}

/// Sets an OpenBao up, logs in both ways and uses what the policy allows.
pub async fn set_up(target: &Target) {
    let signer = Signer::generate().unwrap();
    let clients = ClientAuthority::generate().unwrap();
    let (jwt, cert) = (JwtLogin::of(signer.public_key_pem()), CertLogin::of(&clients.pem()));
    let setup = Setup {
        namespace: "kms/prod".into(),
        jwt: Some(jwt.clone()),
        cert: Some(cert.clone()),
        ..Setup::default()
    };
    for _again in 0..2 {
        provision(&target.endpoint, &target.root_token, &setup).await.unwrap();
    }
    let identity = clients.issue(&cert.common_name).unwrap();
    let client = Client::new(&target.endpoint, "", Some(&identity)).unwrap().in_namespace("kms/prod");
    let jwt = signer.token(&jwt.issuer, &jwt.audience, &jwt.subject, 600).unwrap();
    for (path, body) in [("auth/jwt/login", json!({ "role": "kms", "jwt": jwt })), ("auth/cert/login", json!({}))] {
        let login = client.call("POST", path, &body).await.unwrap();
        assert_eq!(login.status, 200, "{path}: {}", login.text);
        let client = client.with_token(&login.client_token());
        let plaintext = json!({ "plaintext": "AAAA" });
        for (method, path, body, status) in [
            ("POST", "transit/encrypt/k8s-etcd", &plaintext, 200),
            ("GET", "transit/keys/k8s-etcd", &json!(null), 200),
            ("GET", "transit/config/keys", &json!(null), 200),
            ("POST", "auth/token/renew-self", &json!({}), 200),
            ("POST", "transit/encrypt/missing", &plaintext, 403),
            ("POST", "transit/keys/k8s-etcd/rotate", &json!({}), 403),
            ("POST", "auth/token/revoke-self", &json!({}), 204),
            ("GET", "transit/keys/k8s-etcd", &json!(null), 403),
        ] {
            let answer = client.call(method, path, body).await.unwrap();
            assert_eq!(answer.status, status, "{method} {path}: {}", answer.text);
        }
    }
}

#[tokio::test]
async fn real_openbao_keeps_the_contract() {
    let Ok(url) = std::env::var("BAO_CONTRACT_ADDR") else {
        eprintln!("skipped: BAO_CONTRACT_ADDR names no OpenBao");
        return;
    };
    let ca = std::env::var("BAO_CONTRACT_CACERT").unwrap();
    let target = Target {
        endpoint: Endpoint { url, ca_pem: std::fs::read_to_string(ca).unwrap() },
        root_token: std::env::var("BAO_CONTRACT_TOKEN").unwrap(),
        unseal_key: std::env::var("BAO_CONTRACT_UNSEAL_KEY").ok(),
    };
    let report = check(&target).await;
    assert!(report.failed.is_empty(), "{} of {} rows", report.failed.len(), report.failed.len() + report.passed);
    set_up(&target).await;
}
