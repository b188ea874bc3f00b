//! What the tests of the vault side share: the embedded server, set up for the plugin, with the files that a
//! configuration would point to.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bao_kms_provider::auth::{Config as AuthConfig, Session, cert, jwt};
use bao_kms_provider::backend::transit::{Config as TransitConfig, Transit};
use bao_kms_provider::dev::certificate::ClientAuthority;
use bao_kms_provider::dev::client::{Client, Endpoint as Target};
use bao_kms_provider::dev::jwt::Signer;
use bao_kms_provider::dev::provision::{CertLogin, JwtLogin, Setup, provision};
use bao_kms_provider::dev::server::{Options, Server};
use bao_kms_provider::http::{Pipe, PipeOptions, TlsConfig};
use bao_kms_provider::layers::{self, Endpoint};
use bao_kms_provider::request::BaoService;
use bao_kms_provider::telemetry::metrics::PipelineMetrics;

/// A server with both logins, and a folder with `ca.pem`, `identity.jwt`, `client.pem` and `client.key`.
pub struct Bao {
    pub server: Server,
    pub setup: Setup,
    pub signer: Signer,
    pub clients: ClientAuthority,
    dir: tempfile::TempDir,
}

impl Bao {
    /// Started and set up; `adjust` may change the set-up first.
    pub async fn start(adjust: impl FnOnce(&mut Setup)) -> Bao {
        let server = Server::start(Options::default()).await.unwrap();
        let (signer, clients) = (Signer::generate().unwrap(), ClientAuthority::generate().unwrap());
        let mut setup = Setup {
            namespace: "kms/prod".into(),
            jwt: Some(JwtLogin::of(signer.public_key_pem())),
            cert: Some(CertLogin::of(&clients.pem())),
            ..Setup::default()
        };
        adjust(&mut setup);
        let bao = Bao { server, setup, signer, clients, dir: tempfile::tempdir().unwrap() };
        provision(&bao.target(), &bao.server.root_token(), &bao.setup).await.unwrap();
        bao.write("ca.pem", &bao.server.ca_pem());
        bao.write_jwt(3_600);
        let identity = bao.clients.issue("bao-kms-provider").unwrap();
        bao.write("client.pem", &identity.cert_pem);
        bao.write("client.key", &identity.key_pem);
        bao
    }

    fn target(&self) -> Target {
        Target { url: self.server.url(), ca_pem: self.server.ca_pem() }
    }

    /// A caller with the root token in the plugin's namespace.
    pub fn root(&self) -> Client {
        Client::new(&self.target(), &self.server.root_token(), None).unwrap().in_namespace(&self.setup.namespace)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file that nobody else can read.
    pub fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// A JWT for the role that was set up, valid for `seconds` from now (negative: expired).
    pub fn write_jwt(&self, seconds: i64) {
        let login = self.setup.jwt.as_ref().unwrap();
        let jwt = self.signer.token(&login.issuer, &login.audience, &login.subject, seconds).unwrap();
        self.write("identity.jwt", &jwt);
    }

    pub fn jwt(&self, role: &str) -> AuthConfig {
        AuthConfig::Jwt(jwt::Config {
            mount: "jwt".into(),
            role: role.into(),
            file: self.path("identity.jwt"),
            expect: jwt::Expect::default(),
        })
    }

    pub fn cert(&self) -> AuthConfig {
        AuthConfig::Cert(cert::Config {
            mount: "cert".into(),
            role: Some("kms".into()),
            cert_file: self.path("client.pem"),
            key_file: self.path("client.key"),
        })
    }

    pub fn origin(&self) -> Arc<str> {
        self.server.url().into()
    }

    pub fn pipe(&self, auth: &AuthConfig) -> Pipe {
        pipe(&self.path("ca.pem"), &self.setup.namespace, auth)
    }

    /// A session with its pipe's endpoint, as a pipeline builds them.
    pub fn session(&self, auth: &AuthConfig) -> (Arc<Session>, BaoService) {
        self.session_seen(auth, PipelineMetrics::new())
    }

    /// A session with instruments that the test looks at.
    pub fn session_seen(&self, auth: &AuthConfig, metrics: Arc<PipelineMetrics>) -> (Arc<Session>, BaoService) {
        let pipe = self.pipe(auth);
        let endpoint = BaoService::new(Endpoint::new(vec![self.origin()], Vec::new(), pipe.clone(), metrics.clone()));
        let reload = Arc::new(move || pipe.reload());
        (Session::start(auth.method(), endpoint.clone(), reload, metrics, "test".into()), endpoint)
    }

    /// Transit over a session, as a pipeline builds it.
    pub fn transit(&self) -> Transit {
        let (session, endpoint) = self.session(&self.jwt("kms"));
        Transit::new(&self.transit_config(), layers::bao_stack(session, endpoint), Duration::from_secs(5))
    }

    pub fn transit_config(&self) -> TransitConfig {
        TransitConfig {
            endpoints: vec![self.server.url()],
            namespace: self.setup.namespace.clone(),
            mount: self.setup.mount.clone(),
            key: self.setup.key.clone(),
            tls: TlsConfig::default(),
            redirect_hosts: Vec::new(),
        }
    }
}

fn pipe(ca_file: &Path, namespace: &str, auth: &AuthConfig) -> Pipe {
    Pipe::new(PipeOptions {
        tls: TlsConfig { ca_file: Some(ca_file.to_owned()), server_name: None },
        namespace: namespace.to_owned(),
        client_identity: auth.client_identity(),
        max_idle: 8,
    })
}
