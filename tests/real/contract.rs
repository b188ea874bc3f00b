//! Real OpenBao keeps the same contract as the embedded server: the table row by row, and the set-up that the quick start
//! and the tests make of either.

use bao_kms_provider::dev::certificate::ClientAuthority;
use bao_kms_provider::dev::client::Client;
use bao_kms_provider::dev::contract::{Target, rows, run};
use bao_kms_provider::dev::jwt::Signer;
use bao_kms_provider::dev::provision::{CertLogin, JwtLogin, Setup, provision};
use serde_json::json;

use crate::support::openbao::OpenBao;

#[tokio::test]
async fn real_openbao_keeps_every_row() {
    let folder = tempfile::tempdir().expect("a folder");
    let bao = OpenBao::dev(folder.path()).await;
    let unseal_key = Some(bao.unseal_key().await);
    let target = Target { endpoint: bao.endpoint().expect("a CA"), root_token: bao.root.clone(), unseal_key };
    let report = run(&target).await.expect("a run");
    let failed: Vec<_> = report.failed.iter().map(ToString::to_string).collect();
    assert!(failed.is_empty(), "{} rows are not kept:\n{}", failed.len(), failed.join("\n"));
    assert_eq!(report.passed, rows().len());
}

#[tokio::test]
async fn the_set_up_can_be_made_twice_and_gives_no_more_than_the_program_needs() {
    let folder = tempfile::tempdir().expect("a folder");
    let bao = OpenBao::dev(folder.path()).await;
    let endpoint = bao.endpoint().expect("a CA");
    let signer = Signer::generate().expect("it works");
    let clients = ClientAuthority::generate().expect("it works");
    let (jwt, cert) = (JwtLogin::of(signer.public_key_pem()), CertLogin::of(&clients.pem()));
    let setup =
        Setup { namespace: "kms/prod".into(), jwt: Some(jwt.clone()), cert: Some(cert.clone()), ..Setup::default() };
    for _again in 0..2 {
        provision(&endpoint, &bao.root, &setup).await.expect("it works");
    }
    let identity = clients.issue(&cert.common_name).expect("it works");
    let client = Client::new(&endpoint, "", Some(&identity)).expect("it works").in_namespace("kms/prod");
    let jwt = signer.token(&jwt.issuer, &jwt.audience, &jwt.subject, 600).expect("it works");
    for (path, body) in [("auth/jwt/login", json!({ "role": "kms", "jwt": jwt })), ("auth/cert/login", json!({}))] {
        let login = client.call("POST", path, &body).await.expect("it works");
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
            let answer = client.call(method, path, body).await.expect("it works");
            assert_eq!(answer.status, status, "{method} {path}: {}", answer.text);
        }
    }
}
