//! Another way to log in while the program runs: a reload takes it into use and gives the token before back, and callers
//! lose nothing by it.

use std::time::Duration;

use bao_kms_provider::dev::certificate::ClientAuthority;
use bao_kms_provider::dev::client::Endpoint;
use bao_kms_provider::dev::provision::{CertLogin, JwtLogin, Setup, provision};
use bao_kms_provider::front::client::Client;
use serde_json::Value;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinHandle;

use super::handover::quiet;
use super::load::{Load, round};
use super::reload_taken::{Steady, reload};
use super::support::{PATIENCE, Program, Stage, status_until, until};

/// The program as it logs in at first: with a JWT, by the role `kms`.
struct Scene {
    program: Program,
    client: Client,
    steady: Steady,
    key_id: String,
    stage: Stage,
}

// === impl Scene ===

impl Scene {
    async fn set() -> Self {
        let stage = Stage::set().await;
        let program = stage.serve(&quiet(&stage));
        let (steady, client) = (Steady::connect(&stage).await, stage.client().await);
        let key_id = status_until(&client, "ok", |status| status.healthz == "ok").await.key_id;
        Self { program, client, steady, key_id, stage }
    }

    /// `auth` by JWT, as [`Stage::config`] writes it.
    fn by_jwt(&self, role: &str, file: &str) -> String {
        format!("jwt: {{ role: {role}, file: {} }}", self.stage.path(file).display())
    }

    fn login(&self) -> JwtLogin {
        self.stage.setup.jwt.clone().expect("login by JWT")
    }

    async fn set_up(&self, setup: Setup) {
        let server = &self.stage.server;
        let endpoint = Endpoint { url: server.url(), ca_pem: server.ca_pem() };
        provision(&endpoint, &server.root_token(), &setup).await.expect("set up");
    }

    /// Callers whose every round ends well, with Status as it was.
    fn load(&self) -> Load {
        Load::of(4, Duration::from_millis(20), |at| {
            let (client, key_id, seed) = (self.client.clone(), self.key_id.clone(), vec![at as u8; 32]);
            move || {
                let (client, key_id, seed) = (client.clone(), key_id.clone(), seed.clone());
                async move {
                    let status = client.status().await.map_err(|error| format!("Status: {error}"))?;
                    if status.healthz != "ok" || status.key_id != key_id {
                        return Err(format!("Status: {} {}", status.healthz, status.key_id));
                    }
                    round(&client, &seed).await
                }
            }
        })
    }

    /// The path of the next login and what it is answered with.
    fn next_login(&self) -> JoinHandle<(String, u16)> {
        let mut events = self.stage.server.calls().events();
        tokio::spawn(async move {
            loop {
                match events.recv().await {
                    Ok(event) if event.operation == "auth/login" => return (event.path, event.status),
                    Ok(_) | Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => panic!("the server is gone"),
                }
            }
        })
    }

    /// A reload with this in the place of `auth`, while callers are at work: one login, at this path, is let in, and its
    /// token serves alone from then on.
    async fn changes_to(&self, auth: &str, path: &str) {
        let (stage, config) = (&self.stage, quiet(&self.stage));
        let first = self.by_jwt("kms", "identity.jwt");
        assert!(config.contains(&first), "{config}");
        let logins = || stage.server.calls().of("auth/login");
        let (before, login, load) = (logins(), self.next_login(), self.load());
        until("rounds before the reload", || load.done() > 20).await;
        reload(stage, &self.program, &config.replace(&first, auth)).await;
        let login = tokio::time::timeout(PATIENCE, login).await.expect("nobody logs in").expect("a login is heard of");
        assert_eq!(login, (path.to_owned(), 200));
        until("the token before is given back", || stage.server.state().live_tokens() == 2).await;
        let done = load.done();
        until("rounds with the new token", || load.done() > done + 20).await;
        load.end().await.assert_clean(40, path);
        assert_eq!(logins(), before + 1, "one login is enough");
        self.steady.untouched().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_role_is_logged_in_with_after_a_reload_and_callers_lose_nothing() {
    let scene = Scene::set().await;
    let other = JwtLogin { role: "other".into(), ..scene.login() };
    scene.set_up(Setup { jwt: Some(other), ..scene.stage.setup.clone() }).await;
    // Whoever still asks for the first one is refused.
    let gone = scene.stage.bao().call("DELETE", "auth/jwt/role/kms", &Value::Null).await;
    assert!(gone.expect("asked").is_ok());
    scene.changes_to(&scene.by_jwt("other", "identity.jwt"), "auth/jwt/login").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_jwt_file_is_read_after_a_reload_and_callers_lose_nothing() {
    let scene = Scene::set().await;
    // The role takes another subject now, so that the first file would be refused.
    let other = JwtLogin { subject: "another-node".into(), ..scene.login() };
    let jwt = scene.stage.signer.token(&other.issuer, &other.audience, &other.subject, 3_600).expect("signed");
    scene.stage.write("other.jwt", &jwt);
    scene.set_up(Setup { jwt: Some(other), ..scene.stage.setup.clone() }).await;
    scene.changes_to(&scene.by_jwt("kms", "other.jwt"), "auth/jwt/login").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_takes_the_place_of_a_jwt_by_a_reload_and_callers_lose_nothing() {
    let scene = Scene::set().await;
    let authority = ClientAuthority::generate().expect("an authority");
    let client = authority.issue("bao-kms-provider").expect("a certificate");
    let cert_file = scene.stage.write("client.pem", &client.cert_pem);
    let key_file = scene.stage.write("client.key", &client.key_pem);
    let cert = Some(CertLogin::of(&authority.pem()));
    scene.set_up(Setup { cert, ..scene.stage.setup.clone() }).await;
    let auth = format!("cert: {{ role: kms, certFile: {}, keyFile: {} }}", cert_file.display(), key_file.display());
    scene.changes_to(&auth, "auth/cert/login").await;
}
