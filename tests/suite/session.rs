//! The session against the embedded server: both logins, what refuses them, and what brings them back.

use std::sync::Arc;
use std::time::Duration;

use bao_kms_provider::auth::{Session, Token};
use bao_kms_provider::error::{Class, Error};
use bao_kms_provider::request::{BaoCall, BaoService, Credential, Method, Progress, Purpose};
use bao_kms_provider::telemetry::metrics::PipelineMetrics;
use tower::Service;

use super::bao::Bao;

/// Waits, waking the session as the keeper does, until a login succeeds or fails otherwise than `not`.
async fn until_not(session: &Arc<Session>, not: Class) -> Result<Token, Error> {
    for _ in 0..300 {
        match session.wait().await {
            Err(error) if error.class() == not => {
                session.wake();
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            other => return other,
        }
    }
    panic!("still {not}")
}

/// The status of a metadata read with this token.
async fn reads(endpoint: &BaoService, token: &Token) -> u16 {
    let call = BaoCall::own(Purpose::Metadata, Method::Get, "transit/keys/k8s-etcd", Duration::from_secs(10))
        .with_credential(Credential::Token(token.secret.clone()));
    endpoint.clone().call(call).await.unwrap().status
}

fn unix_now() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64()
}

#[tokio::test]
async fn a_jwt_logs_in_within_its_namespace_and_the_token_is_given_back() {
    let bao = Bao::start(|_| ()).await;
    let mut events = bao.server.calls().events();
    let alive = bao.server.state().live_tokens();
    let metrics = PipelineMetrics::new();
    let (session, endpoint) = bao.session_seen(&bao.jwt("kms"), metrics.clone());
    let token = session.wait().await.unwrap();
    assert_eq!(reads(&endpoint, &token).await, 200);
    let login = events.recv().await.unwrap();
    assert_eq!((login.path.as_str(), login.namespace.as_str()), ("auth/jwt/login", "kms/prod"));
    let left = metrics.credential_expiry() - unix_now();
    assert!((3_000.0..=3_600.0).contains(&left), "{left}");
    assert_eq!(bao.server.state().live_tokens(), alive + 1);
    session.close().await;
    assert_eq!(bao.server.state().live_tokens(), alive);
    assert_eq!(reads(&endpoint, &token).await, 403);
}

#[tokio::test]
async fn a_certificate_logs_in_and_is_replaced_without_a_restart() {
    let bao = Bao::start(|_| ()).await;
    let stranger = bao.clients.issue("somebody-else").unwrap();
    let good = (
        std::fs::read_to_string(bao.path("client.pem")).unwrap(),
        std::fs::read_to_string(bao.path("client.key")).unwrap(),
    );
    bao.write("client.pem", &stranger.cert_pem);
    bao.write("client.key", &stranger.key_pem);
    let metrics = PipelineMetrics::new();
    let (session, endpoint) = bao.session_seen(&bao.cert(), metrics.clone());
    assert_eq!(session.wait().await.unwrap_err().class(), Class::LoginRefused);
    bao.write("client.pem", &good.0);
    bao.write("client.key", &good.1);
    let token = until_not(&session, Class::LoginRefused).await;
    // Between the two writes certificate and key do not belong together; whoever read then goes on with the old ones.
    assert_eq!(reads(&endpoint, &token.unwrap()).await, 200);
    bao.write("client.pem", "gone bad");
    let next = session.renew_after_rejection(1).await.unwrap();
    assert_eq!(next.generation, 2, "what was loaded goes on");
    assert_eq!(metrics.credential_expiry(), 0.0, "nobody knows when something unreadable ends");
}

#[tokio::test]
async fn a_certificate_that_cannot_be_read_is_a_reason() {
    let bao = Bao::start(|_| ()).await;
    std::fs::remove_file(bao.path("client.key")).unwrap();
    let (session, _) = bao.session(&bao.cert());
    let error = session.wait().await.unwrap_err();
    assert_eq!(error.class(), Class::CredentialUnavailable);
    assert!(error.detail().contains("client.key"), "{error}");
}

#[tokio::test]
async fn an_expired_jwt_and_a_wrong_role_are_refused_and_heal_by_the_file() {
    let bao = Bao::start(|_| ()).await;
    bao.write_jwt(-7_200);
    let metrics = PipelineMetrics::new();
    let (session, endpoint) = bao.session_seen(&bao.jwt("kms"), metrics.clone());
    assert_eq!(session.wait().await.unwrap_err().class(), Class::LoginRefused, "OpenBao decides, and does");
    assert!(metrics.credential_expiry() > 0.0 && metrics.credential_expiry() < unix_now());
    bao.write("identity.jwt", "no jwt at all");
    assert_eq!(until_not(&session, Class::LoginRefused).await.unwrap_err().class(), Class::CredentialUnavailable);
    bao.write_jwt(3_600);
    let token = until_not(&session, Class::CredentialUnavailable).await.unwrap();
    assert_eq!(reads(&endpoint, &token).await, 200);
    let (other, _) = bao.session(&bao.jwt("no-such-role"));
    assert_eq!(other.wait().await.unwrap_err().class(), Class::LoginRefused);
}

#[tokio::test]
async fn a_revoked_token_is_replaced_once_for_all() {
    let bao = Bao::start(|_| ()).await;
    let transit = bao.transit();
    transit.metadata(Progress::default()).await.unwrap();
    bao.server.state().revoke_all_tokens();
    bao.server.calls().reset();
    let reads: Vec<_> = (0..20)
        .map(|_| {
            let transit = transit.clone();
            tokio::spawn(async move { transit.metadata(Progress::default()).await.map(drop) })
        })
        .collect();
    for read in reads {
        read.await.unwrap().unwrap();
    }
    assert_eq!(bao.server.calls().of("auth/login"), 1);
}

#[tokio::test]
async fn a_short_lease_is_renewed_and_at_its_maximum_replaced() {
    let bao = Bao::start(|setup| {
        setup.token_ttl = "3s".into();
        setup.token_max_ttl = "7s".into();
    })
    .await;
    let (session, endpoint) = bao.session(&bao.jwt("kms"));
    let first = session.wait().await.unwrap();
    let until = tokio::time::Instant::now() + Duration::from_secs(60);
    let last = loop {
        let token = session.wait().await.unwrap();
        if token.generation > first.generation {
            break token;
        }
        assert!(tokio::time::Instant::now() < until, "never replaced");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert!(bao.server.calls().of("token/renew-self") >= 1);
    assert_eq!(reads(&endpoint, &last).await, 200);
}

/// What kubelet and cert-manager do: the file is a link into a folder that is itself a link, which is swapped by a rename.
#[tokio::test]
async fn a_projected_volume_that_is_swapped_serves_the_next_login() {
    use std::os::unix::fs::symlink;
    let bao = Bao::start(|_| ()).await;
    let login = bao.setup.jwt.as_ref().unwrap();
    for (folder, issuer) in [("ts1", login.issuer.as_str()), ("ts2", "https://somebody-else.example")] {
        std::fs::create_dir(bao.path(folder)).unwrap();
        let jwt = bao.signer.token(issuer, &login.audience, &login.subject, 3_600).unwrap();
        bao.write(&format!("{folder}/identity.jwt"), &jwt);
    }
    std::fs::remove_file(bao.path("identity.jwt")).unwrap();
    symlink("ts1", bao.path("..data")).unwrap();
    symlink("..data/identity.jwt", bao.path("identity.jwt")).unwrap();
    let (session, endpoint) = bao.session(&bao.jwt("kms"));
    let swap = |folder: &str| {
        symlink(folder, bao.path("..data_tmp")).unwrap();
        std::fs::rename(bao.path("..data_tmp"), bao.path("..data")).unwrap();
    };
    let first = session.wait().await.unwrap();
    assert_eq!(reads(&endpoint, &first).await, 200);
    swap("ts2");
    let error = session.renew_after_rejection(first.generation).await.unwrap_err();
    assert_eq!(error.class(), Class::LoginRefused, "the other issuer's JWT is the one that was read");
    std::fs::remove_dir_all(bao.path("ts1")).unwrap();
    std::fs::create_dir(bao.path("ts3")).unwrap();
    let jwt = bao.signer.token(&login.issuer, &login.audience, &login.subject, 3_600).unwrap();
    bao.write("ts3/identity.jwt", &jwt);
    swap("ts3");
    session.wake();
    let second = session.renew_after_rejection(first.generation).await.unwrap();
    assert_eq!((second.generation, reads(&endpoint, &second).await), (2, 200));
}

#[tokio::test]
async fn openbao_may_come_later_and_go_for_a_while() {
    let bao = Bao::start(|_| ()).await;
    bao.server.state().seal();
    let (session, endpoint) = bao.session(&bao.jwt("kms"));
    assert_eq!(session.wait().await.unwrap_err().class(), Class::Sealed);
    bao.server.state().unseal();
    let token = until_not(&session, Class::Sealed).await.unwrap();
    bao.server.state().seal();
    assert_eq!(session.token().unwrap().generation, token.generation, "a valid token stays");
    bao.server.state().unseal();
    assert_eq!(reads(&endpoint, &token).await, 200);
}
