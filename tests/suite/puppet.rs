//! A door with a puppet behind it: a real socket in a folder of its own, served by `front`, and whatever a test wants
//! Encrypt and Decrypt to do.

use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use bao_kms_provider::error::Error;
use bao_kms_provider::front::client::Client;
use bao_kms_provider::front::{self, Bounds, Config, Door, Rules, Source};
use bao_kms_provider::key::config::{HealthPolicy, Rotation};
use bao_kms_provider::key::{Identity, KeyState, Metadata, View, identity, refresh};
use bao_kms_provider::request::{KmsService, Operation, Request, Response, secret};
use bao_kms_provider::telemetry::metrics::PipelineMetrics;
use bao_kms_provider::telemetry::observed::{Observed, Outlook};
use bao_kms_provider::telemetry::registry;
use tempfile::TempDir;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tower::util::BoxCloneSyncService;

/// Longer than anything here takes on a machine that is busy with something else.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A folder that other users may look into, as a socket's directory is.
pub fn folder() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).expect("its mode");
    folder
}

/// The `socket` section for a path, as a file would give it.
pub fn config(path: &Path) -> Config {
    serde_json::from_value(serde_json::json!({ "path": path })).expect("a socket section")
}

/// A service that does what the closure says.
pub fn service<F, A>(act: F) -> KmsService
where
    F: Fn(Request) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Result<Response, Error>> + Send + 'static,
{
    BoxCloneSyncService::new(tower::service_fn(act))
}

/// Reverses what it gets: enough of a cipher to tell in from out.
pub fn reverse(key: &KeyState, request: Request) -> Result<Response, Error> {
    let mirrored = |bytes: &[u8]| bytes.iter().rev().copied().collect::<Vec<u8>>();
    Ok(match request.operation {
        Operation::Encrypt { plaintext } => {
            use secrecy::ExposeSecret;
            let view = key.peek().expect("a view");
            Response::Encrypt {
                ciphertext: mirrored(plaintext.expose_secret()).into(),
                key_id: view.active().key_id.clone(),
                annotations: view.active().annotations.clone(),
            }
        }
        Operation::Decrypt { ciphertext, .. } => Response::Decrypt { plaintext: secret(mirrored(&ciphertext)) },
    })
}

/// A key that has just been seen to work.
pub fn healthy() -> Arc<KeyState> {
    let key = unseen();
    let name = || "n".to_owned();
    let config = identity::Config {
        provider_name: name(),
        cluster_id: name(),
        openbao_id: name(),
        transit_mount_id: name(),
        key_lineage_id: name(),
        fingerprint: String::new(),
    };
    let metadata: Metadata = serde_json::from_value(serde_json::json!({
        "type": "aes256-gcm96", "latest_version": 1, "keys": { "1": 1_000 },
    }))
    .expect("metadata");
    let view = View::at(&Identity::of(&config, ""), &metadata, 1_000_000, 120, None).expect("a view");
    key.publish(Arc::new(view));
    key.succeeded(tokio::time::Instant::now());
    key
}

/// A key of which nothing is known yet.
pub fn unseen() -> Arc<KeyState> {
    let (refresh, _) = refresh::channel(Duration::from_secs(30));
    Arc::new(KeyState::new(&HealthPolicy::default(), &Rotation::default(), refresh))
}

/// A door that is being served.
pub struct House {
    pub config: Config,
    pub key: Arc<KeyState>,
    pub metrics: Arc<PipelineMetrics>,
    /// Calls that reached the puppet.
    pub calls: Arc<AtomicUsize>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
    _folder: TempDir,
}

impl House {
    /// Opens a door with the defaults of the file.
    pub fn open<F, A>(key: Arc<KeyState>, act: F) -> Self
    where
        F: Fn(Request) -> A + Clone + Send + Sync + 'static,
        A: Future<Output = Result<Response, Error>> + Send + 'static,
    {
        Self::open_with(key, 8192, |_| (), act)
    }

    /// Opens a door with another `limits.maxCalls` and another `socket` section.
    pub fn open_with<F, A>(key: Arc<KeyState>, max_calls: usize, edit: impl FnOnce(&mut Config), act: F) -> Self
    where
        F: Fn(Request) -> A + Clone + Send + Sync + 'static,
        A: Future<Output = Result<Response, Error>> + Send + 'static,
    {
        let folder = folder();
        let mut config = config(&folder.path().join("kms.sock"));
        edit(&mut config);
        let socket = front::acquire(&config, Source::Bind).expect("a socket");
        let (metrics, calls) = (PipelineMetrics::new(), Arc::new(AtomicUsize::new(0)));
        let counted = calls.clone();
        let door = Door {
            pipeline: "puppet".into(),
            key: key.clone(),
            kms: service(move |request| {
                counted.fetch_add(1, Ordering::SeqCst);
                act(request)
            }),
            metrics: metrics.clone(),
            rules: watch::channel(Rules::of(&config)).1,
            bounds: Bounds::of(max_calls, Duration::from_secs(30)),
        };
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(async {
            let served = front::serve(socket, door, async {
                let _ = stopped.await;
            });
            served.await.expect("served until it was closed");
        });
        Self { config, key, metrics, calls, stop: Some(stop), task, _folder: folder }
    }

    pub fn path(&self) -> PathBuf {
        self.config.path.clone()
    }

    /// A client that waits long enough not to be what fails.
    pub async fn client(&self) -> Client {
        Client::connect(self.path()).await.expect("a connection").with_timeout(PATIENCE)
    }

    /// The value of one of the door's instruments, 0 when it has none.
    pub fn value(&self, name: &str) -> f64 {
        let observed = Observed {
            name: "puppet".into(),
            key: self.key.clone(),
            metrics: self.metrics.clone(),
            findings: Arc::new(ArcSwap::from_pointee(Vec::new())),
            fingerprint: String::new(),
            socket: Arc::new(|| Ok(())),
        };
        let text =
            registry::render(&Outlook { pipelines: ArcSwap::from_pointee(vec![observed]), ..Outlook::default() })
                .expect("text");
        let line = text.lines().find(|line| line.starts_with(&format!("bao_kms_{name}{{")));
        line.and_then(|line| line.rsplit(' ').next()).map_or(0.0, |value| value.parse().expect("a number"))
    }

    /// Waits until an instrument shows a value.
    pub async fn until(&self, name: &str, value: f64) {
        let shown = async {
            while self.value(name) != value {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, shown).await;
        assert!(waited.is_ok(), "{name} is {}, not {value}", self.value(name));
    }

    /// Asks the door to close; the task ends when calls in flight have.
    pub fn close(&mut self) -> &mut JoinHandle<()> {
        self.stop.take();
        &mut self.task
    }
}
