//! Another configuration while the program runs: what is good takes effect without touching sockets that stay, what is
//! bad changes nothing.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bao_kms_provider::dev::certificate::ClientAuthority;
use bao_kms_provider::dev::server::{Fault, Options, Server};
use bao_kms_provider::front::client::Client;
use bao_kms_provider::front::v2::key_management_service_client::KeyManagementServiceClient;
use bao_kms_provider::front::v2::{EncryptRequest, StatusRequest};
use hyper_util::rt::TokioIo;
use rustix::process::Signal;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use super::support::{Program, Stage, connect, status_until, until};

#[tokio::test(flavor = "multi_thread")]
async fn reload_takes_what_is_good_and_keeps_what_runs_otherwise() {
    let stage = Stage::set().await;
    let program = stage.serve(&stage.config(""));
    let client = stage.client().await;
    let before = status_until(&client, "ok", |status| status.healthz == "ok").await;
    assert!(stage.admin("/metrics").await.1.contains("bao_kms_config_refused 0"), "the file at the start is good");
    assert!(!stage.admin("/readyz").await.1.contains("configRefused"));
    stage.write("config.yaml", "configVersion: v9");
    program.signal(Signal::HUP);
    program.logged("reload_refused").await;
    client.encrypt(vec![7; 32], "u").await.expect("what ran goes on");
    assert!(stage.admin("/metrics").await.1.contains("bao_kms_config_refused 1"));
    let (code, report) = stage.admin("/readyz").await;
    assert!(code == 200 && report.contains("configRefused") && report.contains("configVersion"), "{report}");

    stage.write("config.yaml", &stage.config("").replace("clusterId: c", "clusterId: d"));
    program.signal(Signal::HUP);
    program.logged("identity.clusterId cannot change while it runs").await;

    stage.write("config.yaml", &stage.config("    layers: { admit: { maxInFlight: 8 } }"));
    program.signal(Signal::HUP);
    program.logged("\"event\":\"reloaded\"").await;
    assert_eq!(client.status().await.expect("the same connection").key_id, before.key_id);
    client.encrypt(vec![7; 32], "u").await.expect("the new stack serves");
    assert!(stage.admin("/metrics").await.1.contains("bao_kms_config_refused 0"));
    let (code, report) = stage.admin("/readyz").await;
    assert!(code == 200 && !report.contains("configRefused"), "{report}");
}

/// The most slots that so many calls at once come to, and how many of them wait meanwhile; OpenBao answers none of them.
async fn crowd(stage: &Stage, client: &Client, calls: u8) -> (u64, u64) {
    let hang = stage.server.faults().add("transit/encrypt", Fault::Hang);
    let mut crowd = tokio::task::JoinSet::new();
    for at in 0..calls {
        let client = client.clone().with_timeout(Duration::from_secs(4));
        crowd.spawn(async move { client.encrypt(vec![at; 32], "u").await.is_err() });
    }
    let (began, mut most) = (std::time::Instant::now(), (0, 0));
    while began.elapsed() < Duration::from_secs(2) {
        let used = stage.metric("bao_kms_slots_used{pipeline=\"a\"}").await;
        let waiting = stage.metric("bao_kms_queued{pipeline=\"a\"}").await;
        most = (most.0.max(used), most.1.max(waiting));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // A slot that the first of them leaves is the next one's for an instant: OpenBao answers nobody until all are gone.
    assert_eq!(crowd.join_all().await, vec![true; usize::from(calls)], "nothing was answered");
    stage.server.faults().remove(hang);
    most
}

#[tokio::test(flavor = "multi_thread")]
async fn new_settings_of_a_layer_bound_the_calls_after_a_reload() {
    let stage = Stage::set().await;
    let program = stage.serve(&stage.config(""));
    let steady = Steady::connect(&stage).await;
    let client = stage.client().await;
    for (config, slots, waiting) in [("", 8, 0), ("    layers: { admit: { maxInFlight: 2 } }", 2, 6), ("", 8, 0)] {
        if stage.config(config) != std::fs::read_to_string(stage.path("config.yaml")).expect("the file") {
            reload(&stage, &program, &stage.config(config)).await;
        }
        status_until(&client, "ok", |status| status.healthz == "ok").await;
        assert_eq!(crowd(&stage, &client, 8).await, (slots, waiting), "slots and calls that wait under {config:?}");
        steady.untouched().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_change_are_taken_over_without_a_signal() {
    let stage = Stage::set().await;
    let program = stage.serve(&stage.config(""));
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    stage.write("config.yaml", &stage.config("    layers: { batch: { maxItems: 0 } }"));
    program.logged("reload_refused").await;
    client.encrypt(vec![7; 32], "u").await.expect("what ran goes on");
    // A second pipeline beside the first, whose connection stays.
    stage.write("config.yaml", &Stage::with_second(&stage.config(""), |second| second));
    program.logged("\"event\":\"reloaded\"").await;
    connect(&stage.path("second.sock")).await.status().await.expect("the second pipeline answers");
    client.encrypt(vec![7; 32], "u").await.expect("the same connection");
    assert_eq!(program.output().matches("reload_refused").count(), 1, "each content is tried once");
}

/// A caller that counts how often it had to connect: a socket that is not touched keeps its connection.
#[derive(Clone)]
pub(super) struct Steady {
    kms: KeyManagementServiceClient<Channel>,
    dials: Arc<AtomicUsize>,
    inode: u64,
    socket: std::path::PathBuf,
}

impl Steady {
    pub(super) async fn connect(stage: &Stage) -> Self {
        // Whoever connects to a socket that is not there yet would count twice.
        drop(stage.client().await);
        let (dials, socket) = (Arc::new(AtomicUsize::new(0)), stage.socket());
        let (counter, path) = (dials.clone(), socket.clone());
        let channel = Endpoint::from_static("http://localhost")
            .connect_with_connector(tower::service_fn(move |_| {
                counter.fetch_add(1, Ordering::SeqCst);
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            }))
            .await
            .expect("a connection");
        let inode = std::fs::metadata(&socket).expect("a socket").ino();
        Self { kms: KeyManagementServiceClient::new(channel), dials, inode, socket }
    }

    async fn status(&self) -> String {
        self.kms.clone().status(StatusRequest {}).await.expect("Status").into_inner().healthz
    }

    pub(super) async fn encrypt(&self) {
        let request = EncryptRequest { plaintext: vec![7; 32], uid: "u".into() };
        self.kms.clone().encrypt(request).await.expect("Encrypt");
    }

    /// Calls once more: over the first connection still, and the file is the same.
    pub(super) async fn untouched(&self) {
        self.encrypt().await;
        assert_eq!(self.dials.load(Ordering::SeqCst), 1, "the connection was closed");
        assert_eq!(std::fs::metadata(&self.socket).expect("a socket").ino(), self.inode);
    }
}

const RELOADED: &str = "\"event\":\"reloaded\"";

/// Another file and the signal; returns when it has taken effect.
pub(super) async fn reload(stage: &Stage, program: &Program, config: &str) {
    let before = program.output().matches(RELOADED).count();
    stage.write("config.yaml", config);
    program.signal(Signal::HUP);
    until("the reload", || program.output().matches(RELOADED).count() > before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_that_is_removed_ends_and_the_others_are_not_touched() {
    let stage = Stage::set().await;
    let program = stage.serve(&Stage::with_second(&stage.config(""), |second| second));
    let steady = Steady::connect(&stage).await;
    let second = connect(&stage.path("second.sock")).await;
    for client in [&second, &stage.client().await] {
        status_until(client, "ok", |status| status.healthz == "ok").await;
    }
    assert_eq!(stage.server.state().live_tokens(), 3, "one of root and one of each pipeline");
    reload(&stage, &program, &stage.config("")).await;
    // The last thing that it does, beside the reload, which waits for no pipeline that leaves.
    until("its token is given back", || stage.server.state().live_tokens() == 2).await;
    assert!(second.status().await.is_err(), "its connections end");
    assert!(Client::connect(stage.path("second.sock")).await.is_err(), "nobody listens any more");
    for page in ["/readyz", "/metrics"] {
        let text = stage.admin(page).await.1;
        assert!(!text.contains("\"b\"") && text.contains("\"a\""), "{text}");
    }
    steady.untouched().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_endpoint_is_asked_after_a_reload_and_the_one_before_no_more() {
    let stage = Stage::set().await;
    let options = Options { state: Some(stage.server.state().clone()), ..Options::default() };
    let other = Server::start(options).await.expect("a second node");
    let program = stage.serve(&stage.config(""));
    let steady = Steady::connect(&stage).await;
    status_until(&stage.client().await, "ok", |status| status.healthz == "ok").await;
    assert_eq!(other.calls().total(), 0);
    reload(&stage, &program, &stage.config("").replace(&stage.server.url(), &other.url())).await;
    // The last that the first address is asked for: its token is given back.
    until("the old token is given back", || program.output().contains("\"event\":\"token_revoked\"")).await;
    let (before, sealed) = (stage.server.calls().total(), other.calls().of("transit/encrypt"));
    for _ in 0..5 {
        steady.untouched().await;
    }
    until("two looks at the key", || other.calls().of("transit/keys") >= 2).await;
    assert!(other.calls().of("transit/encrypt") >= sealed + 5);
    assert_eq!(stage.server.calls().total(), before, "the first address is not asked any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_ca_file_is_trusted_after_a_reload() {
    let stage = Stage::set().await;
    let stranger = ClientAuthority::generate().expect("an authority").pem();
    let wrong = stage.write("stranger.pem", &stranger).display().to_string();
    let right = stage.path("ca.pem").display().to_string();
    let program = stage.serve(&stage.config("").replace(&right, &wrong));
    let steady = Steady::connect(&stage).await;
    status_until(&stage.client().await, "tls", |status| status.healthz == "tls").await;
    reload(&stage, &program, &stage.config("")).await;
    status_until(&stage.client().await, "ok", |status| status.healthz == "ok").await;
    assert_eq!(steady.status().await, "ok");
    steady.untouched().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_level_follows_the_file_both_ways() {
    let stage = Stage::set().await;
    let (loud, quiet) = (stage.config(""), stage.config("").replace("level: trace", "level: error"));
    assert_ne!(loud, quiet);
    let program = stage.serve(&quiet);
    let steady = Steady::connect(&stage).await;
    status_until(&stage.client().await, "ok", |status| status.healthz == "ok").await;
    let logins = || program.output().matches("login_succeeded").count();
    let log_in_again = async || {
        stage.server.state().revoke_all_tokens();
        steady.encrypt().await;
    };
    assert_eq!(program.output(), "", "nothing was an error");
    reload(&stage, &program, &loud).await;
    log_in_again().await;
    until("the login is told", || logins() == 1).await;

    // What is quiet tells nothing of its coming, so that the gauge that a bad file raises has to.
    stage.write("config.yaml", "configVersion: v9");
    program.signal(Signal::HUP);
    program.logged("reload_refused").await;
    stage.write("config.yaml", &quiet);
    program.signal(Signal::HUP);
    let began = std::time::Instant::now();
    while !stage.admin("/metrics").await.1.contains("bao_kms_config_refused 0") {
        assert!(began.elapsed() < super::support::PATIENCE, "the quiet file is never taken over");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let asked = stage.server.calls().of("auth/login");
    log_in_again().await;
    assert_eq!(stage.server.calls().of("auth/login"), asked + 1);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(logins(), 1, "{}", program.output());
    steady.untouched().await;
}

/// Writes a volume's next content as the kubelet does: a folder of its own, then the link to it replaced by rename, then
/// the folder before removed.
fn publish(volume: &Path, generation: u32, files: &[(&str, &str)]) {
    let folder = volume.join(format!("..{generation}"));
    std::fs::create_dir(&folder).expect("a folder");
    for (name, content) in files {
        std::fs::write(folder.join(name), content).expect("written");
        std::fs::set_permissions(folder.join(name), std::fs::Permissions::from_mode(0o600)).expect("mode");
    }
    symlink(format!("..{generation}"), volume.join("..data_tmp")).expect("a link");
    std::fs::rename(volume.join("..data_tmp"), volume.join("..data")).expect("swapped");
    // There is none before the first.
    let _ = std::fs::remove_dir_all(volume.join(format!("..{}", generation - 1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn config_and_credential_in_a_projected_volume_are_followed_through_its_links() {
    let stage = Stage::set().await;
    let volume = stage.path("volume");
    std::fs::create_dir(&volume).expect("a folder");
    for name in ["config.yaml", "identity.jwt"] {
        symlink(format!("..data/{name}"), volume.join(name)).expect("a link");
    }
    let jwt = |seconds| {
        stage.issue_jwt(seconds);
        std::fs::read_to_string(stage.path("identity.jwt")).expect("a JWT")
    };
    let given = stage.path("identity.jwt").display().to_string();
    let config = stage.config("").replace(&given, &volume.join("identity.jwt").display().to_string());
    publish(&volume, 1, &[("config.yaml", &config), ("identity.jwt", &jwt(-600))]);
    let program = Program::start(&volume.join("config.yaml"), |_| {});
    let client = stage.client().await;
    status_until(&client, "login_refused", |status| status.healthz == "login_refused").await;
    let fresh = jwt(3_600);
    publish(&volume, 2, &[("config.yaml", &config), ("identity.jwt", &fresh)]);
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    assert!(!program.output().contains(RELOADED), "the configuration said the same");

    let two = Stage::with_second(&config, |second| second);
    publish(&volume, 3, &[("config.yaml", &two), ("identity.jwt", &fresh)]);
    program.logged(RELOADED).await;
    let second = connect(&stage.path("second.sock")).await;
    status_until(&second, "ok", |status| status.healthz == "ok").await;
}
