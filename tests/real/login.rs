//! Both login methods against a real OpenBao, and what a clean end leaves behind: no token of ours.

use serde_json::{Value, json};

use crate::support::openbao::OpenBao;
use crate::support::provider::{Login, Setup};

/// How many tokens there are beside the root token.
async fn tokens(bao: &OpenBao) -> usize {
    let (status, body) = bao.call("GET", "auth/token/accessors?list=true", Value::Null).await.expect("an answer");
    assert_eq!(status, 200, "{body}");
    body["data"]["keys"].as_array().expect("accessors").len()
}

#[tokio::test]
async fn a_jwt_logs_in_and_a_clean_end_gives_the_token_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let bao = OpenBao::dev(folder.path()).await;
    bao.provision().await;
    let before = tokens(&bao).await;
    let mut provider = Setup::new(folder.path(), &bao, Login::Jwt).start();
    provider.status("ok").await;
    assert_eq!(tokens(&bao).await, before + 1, "one login serves everything");
    assert!(provider.stop().success());
    assert_eq!(tokens(&bao).await, before, "revoked");
}

#[tokio::test]
async fn a_client_certificate_logs_in() {
    let folder = tempfile::tempdir().expect("a folder");
    let bao = OpenBao::dev(folder.path()).await;
    bao.provision().await;
    let provider = Setup::new(folder.path(), &bao, Login::Cert).start();
    provider.status("ok").await;
    let client = provider.connect().await;
    let reply = client.encrypt(vec![7; 32], "one").await.expect("Encrypt");
    let opened = client.decrypt(reply.ciphertext, "two", &reply.key_id, reply.annotations).await.expect("Decrypt");
    assert_eq!(opened, vec![7; 32]);
}

#[tokio::test]
async fn a_token_that_was_revoked_is_replaced_by_the_next_call() {
    let folder = tempfile::tempdir().expect("a folder");
    let bao = OpenBao::dev(folder.path()).await;
    bao.provision().await;
    let provider = Setup::new(folder.path(), &bao, Login::Jwt).start();
    provider.status("ok").await;
    let (status, body) = bao.call("POST", "sys/leases/revoke-prefix/auth/jwt", json!({})).await.expect("an answer");
    assert!(status < 300, "{body}");
    let client = provider.connect().await;
    let reply = client.encrypt(vec![7; 32], "one").await.expect("the call itself logs in again");
    assert!(reply.ciphertext.starts_with(b"vault:v1:"));
}
