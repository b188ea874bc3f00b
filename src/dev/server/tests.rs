//! The server as a whole, through real TLS and HTTP: what the contract cannot show.

use std::time::Duration;

use serde_json::json;

use super::{Fault, Flaw, Line, Options, Server};
use crate::dev::certificate::ClientAuthority;
use crate::dev::client::{Client, Endpoint};
use crate::dev::jwt::Signer;
use crate::dev::provision::{CertLogin, JwtLogin, Setup, provision};

async fn ready() -> (Server, Client) {
    let server = Server::start(Options::default()).await.unwrap();
    let endpoint = Endpoint { url: server.url(), ca_pem: server.ca_pem() };
    provision(&endpoint, &server.root_token(), &Setup::default()).await.unwrap();
    let client = Client::new(&endpoint, &server.root_token(), None).unwrap();
    (server, client)
}

#[tokio::test]
async fn provisioned_logins_reach_the_key_and_nothing_else() {
    let server = Server::start(Options::default()).await.unwrap();
    let endpoint = Endpoint { url: server.url(), ca_pem: server.ca_pem() };
    let signer = Signer::generate().unwrap();
    let clients = ClientAuthority::generate().unwrap();
    let jwt = JwtLogin::of(signer.public_key_pem());
    let cert = CertLogin::of(&clients.pem());
    let setup =
        Setup { namespace: "kms/prod".into(), jwt: Some(jwt.clone()), cert: Some(cert.clone()), ..Setup::default() };
    for _again in 0..2 {
        provision(&endpoint, &server.root_token(), &setup).await.unwrap();
    }

    let identity = clients.issue(&cert.common_name).unwrap();
    let client = Client::new(&endpoint, "", Some(&identity)).unwrap().in_namespace("kms/prod");
    let jwt = signer.token(&jwt.issuer, &jwt.audience, &jwt.subject, 600).unwrap();
    for (path, body) in [("auth/jwt/login", json!({ "role": "kms", "jwt": jwt })), ("auth/cert/login", json!({}))] {
        let login = client.call("POST", path, &body).await.unwrap();
        assert_eq!(login.status, 200, "{path}: {}", login.text);
        let client = client.with_token(&login.client_token());
        let sealed = client.call("POST", "transit/encrypt/k8s-etcd", &json!({ "plaintext": "AAAA" })).await.unwrap();
        assert_eq!(sealed.status, 200, "{}", sealed.text);
        assert_eq!(client.call("POST", "auth/token/renew-self", &json!({})).await.unwrap().status, 200);
        assert_eq!(client.call("POST", "transit/keys/k8s-etcd/rotate", &json!({})).await.unwrap().status, 403);
        assert_eq!(client.call("POST", "auth/token/revoke-self", &json!({})).await.unwrap().status, 204);
        assert_eq!(client.call("GET", "transit/keys/k8s-etcd", &json!(null)).await.unwrap().status, 403);
    }
}

#[tokio::test]
async fn a_server_goes_away_and_comes_back_with_its_state() {
    let (server, client) = ready().await;
    let sealed = client.call("POST", "transit/encrypt/k8s-etcd", &json!({ "plaintext": "aGVsbG8=" })).await.unwrap();
    let body = json!({ "ciphertext": sealed.body["data"]["ciphertext"] });
    let (state, port) = (server.state().clone(), server.port());
    server.shutdown().await;
    assert!(client.call("POST", "transit/decrypt/k8s-etcd", &body).await.is_err());

    let options = || Options { state: Some(state.clone()), ..Options::default() };
    let server = Server::start(Options { port, ..options() }).await.unwrap();
    let opened = client.call("POST", "transit/decrypt/k8s-etcd", &body).await.unwrap();
    assert_eq!(opened.body["data"]["plaintext"], "aGVsbG8=");

    let second = Server::start(options()).await.unwrap();
    let endpoint = Endpoint { url: second.url(), ca_pem: second.ca_pem() };
    let other = Client::new(&endpoint, &second.root_token(), None).unwrap();
    assert_eq!(other.call("POST", "transit/decrypt/k8s-etcd", &body).await.unwrap().status, 200);
    assert_eq!((server.calls().of("transit/decrypt"), second.calls().of("transit/decrypt")), (1, 1));
    assert_eq!(state.calls().of("transit/decrypt"), 2);
}

#[tokio::test]
async fn faults_do_what_they_say() {
    let (server, client) = ready().await;
    let body = json!({ "plaintext": "AAAA" });
    let post = || client.call("POST", "transit/encrypt/k8s-etcd", &body);
    let once = |fault| server.faults().add_times("encrypt/", fault, 1);

    once(Fault::Reply { status: 500, body: "{\"errors\":[\"internal error\"]}\n".into() });
    assert_eq!(post().await.unwrap().status, 500);
    once(Fault::Reset);
    assert!(post().await.is_err());
    once(Fault::ResetMidBody);
    assert!(post().await.is_err());
    once(Fault::Redirect("https://other:8200".into()));
    let moved = post().await.unwrap();
    assert_eq!((moved.status, moved.text.as_str()), (307, ""));
    assert_eq!(moved.headers["location"], "https://other:8200/v1/transit/encrypt/k8s-etcd");
    once(Fault::Huge(100_000));
    assert_eq!(post().await.unwrap().text.len(), 100_000);
    once(Fault::Malformed);
    assert!(post().await.unwrap().body.is_null());
    once(Fault::Limited(Some(7)));
    let limited = post().await.unwrap();
    assert_eq!((limited.status, limited.headers["retry-after"].to_str().unwrap()), (429, "7"));
    once(Fault::WrongKeyVersion(7));
    assert_eq!(post().await.unwrap().body["data"]["key_version"], 7);
    for hang in [Fault::Hang, Fault::HangMidBody] {
        once(hang);
        assert!(tokio::time::timeout(Duration::from_millis(300), post()).await.is_err());
    }
    server.state().faults().add("encrypt/", Fault::Delay(Duration::from_millis(100)));
    let begun = std::time::Instant::now();
    assert_eq!(post().await.unwrap().status, 200);
    assert!(begun.elapsed() >= Duration::from_millis(100));
}

#[tokio::test]
async fn hooks_reach_seal_tokens_clock_and_events() {
    let (server, client) = ready().await;
    let state = server.state();
    let made = client.call("POST", "auth/token/create", &json!({ "policies": ["kms"], "ttl": "1h" })).await.unwrap();
    let token = client.with_token(&made.client_token());
    let read = || token.call("GET", "transit/keys/k8s-etcd", &json!(null));
    let mut events = state.calls().events();
    assert_eq!(read().await.unwrap().status, 200);
    let event = events.recv().await.unwrap();
    assert_eq!((event.operation.as_str(), event.status), ("transit/keys", 200));

    state.seal();
    assert_eq!(read().await.unwrap().text, "{\"errors\":[\"Vault is sealed\"]}\n");
    state.unseal();
    assert_eq!(read().await.unwrap().status, 200);

    state.set_clock_offset_ms(3_599_000 + 3_000);
    let expired = read().await.unwrap();
    assert_eq!((expired.status, expired.text.as_str()), (403, "{\"errors\":[\"permission denied\"]}\n"));
    let date = httpdate::parse_http_date(expired.headers["date"].to_str().unwrap()).unwrap();
    assert!(date > std::time::SystemTime::now() + Duration::from_secs(3500));
    state.set_clock_offset_ms(0);
    assert_eq!(read().await.unwrap().status, 200);
    state.revoke_all_tokens();
    assert_eq!(read().await.unwrap().status, 403);
    assert_eq!(state.live_tokens(), 1);
}

#[tokio::test]
async fn a_standby_answers_from_keys_as_they_were_and_forwards_what_writes() {
    let (server, client) = ready().await;
    let version = || async {
        let sealed = client.call("POST", "transit/encrypt/k8s-etcd", &json!({ "plaintext": "AAAA" })).await.unwrap();
        sealed.body["data"]["key_version"].as_u64().unwrap()
    };
    // Until the key is older than what the standby sees.
    tokio::time::sleep(Duration::from_millis(500)).await;
    server.set_standby(Some(Duration::from_millis(400)));
    assert_eq!(client.call("GET", "sys/health", &json!(null)).await.unwrap().status, 429);
    let rotated = client.call("POST", "transit/keys/k8s-etcd/rotate", &json!({})).await.unwrap();
    assert_eq!(rotated.body["data"]["latest_version"], 2);
    assert_eq!(version().await, 1, "a rotation has not come through yet");
    let second = json!({ "plaintext": "AAAA", "key_version": 2 });
    let refused = client.call("POST", "transit/encrypt/k8s-etcd", &second).await.unwrap();
    assert!(refused.text.contains("is higher than the latest key version"), "{}", refused.text);
    let known = client.call("GET", "transit/keys/k8s-etcd", &json!(null)).await.unwrap();
    assert_eq!(known.body["data"]["latest_version"], 1);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(version().await, 2);
    assert_eq!(server.calls().answered(400), 1);
    server.set_standby(None);
    assert_eq!(client.call("GET", "sys/health", &json!(null)).await.unwrap().status, 200);
}

#[tokio::test]
async fn items_of_a_batch_are_counted_each() {
    let (server, client) = ready().await;
    let body = json!({ "batch_input": [{ "plaintext": "AAAA" }, { "plaintext": "BBBB" }] });
    assert_eq!(client.call("POST", "transit/encrypt/k8s-etcd", &body).await.unwrap().status, 200);
    client.call("POST", "transit/encrypt/k8s-etcd", &json!({ "plaintext": "AAAA" })).await.unwrap();
    assert_eq!((server.calls().of("transit/encrypt"), server.calls().items("transit/encrypt")), (2, 3));
}

#[tokio::test]
async fn a_line_is_silent_or_shows_what_nobody_takes_until_it_is_open_again() {
    let (server, _) = ready().await;
    let endpoint = Endpoint { url: server.url(), ca_pem: server.ca_pem() };
    let read = || async {
        // A connection of its own: one that was cut says nothing of the line.
        let client = Client::new(&endpoint, &server.root_token(), None).unwrap();
        client.call("GET", "transit/keys/k8s-etcd", &json!(null)).await
    };
    for line in [Line::SilentBeforeTls, Line::SilentAfterTls] {
        server.set_line(line).unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(300), read()).await.is_err(), "{line:?}");
    }
    for flaw in [Flaw::Expired, Flaw::OtherName, Flaw::OtherAuthority] {
        let signer = server.set_line(Line::Shows(flaw)).unwrap();
        assert!(read().await.is_err(), "{flaw:?}");
        assert_eq!(signer == server.ca_pem(), flaw != Flaw::OtherAuthority);
    }
    server.set_line(Line::Open).unwrap();
    assert_eq!(read().await.unwrap().status, 200);
}
