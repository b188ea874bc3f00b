//! What arrives from outside and may be anything: one function for each kind, which must end soon and must not panic.
//! The fuzz targets call these, and so does the test that replays the committed corpus.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bao_kms_provider::auth::Method;
use bao_kms_provider::auth::jwt::Jwt;
use bao_kms_provider::backend::transit::Transit;
use bao_kms_provider::error::{Class, Error};
use bao_kms_provider::front::v2::{DecryptRequest, EncryptRequest};
use bao_kms_provider::front::{self, Bounds, Door, Rules, Source};
use bao_kms_provider::key::config::{HealthPolicy, Rotation};
use bao_kms_provider::key::{Identity, KeyState, Metadata, View, check, identity, refresh};
use bao_kms_provider::request::{
    BaoCall, BaoReply, BaoService, Context, KmsService, Operation, Request, Response, secret,
};
use bao_kms_provider::telemetry::metrics::PipelineMetrics;
use bao_kms_provider::{config, layers};
use prost::Message;
use tokio::signal::unix::{SignalKind, signal};
use tower::{Service, ServiceExt};

/// What is done with one input.
pub type Target = fn(&[u8]);

/// The name of the threads that serve the door of [`socket`].
pub const DOOR_THREAD: &str = "hostile-socket";

/// Every kind by the name of its corpus folder.
pub const TARGETS: [(&str, Target); 6] = [
    ("message", message),
    ("stored", stored),
    ("reply", reply),
    ("config", config_text),
    ("jwt", jwt),
    ("socket", socket),
];

/// A KMS v2 message through the stack: the first byte says which, the rest is protobuf.
pub fn message(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    let operation = if kind % 2 == 0 {
        let Ok(message) = EncryptRequest::decode(rest) else { return };
        Operation::Encrypt { plaintext: secret(message.plaintext.to_vec()) }
    } else {
        let Ok(message) = DecryptRequest::decode(rest) else { return };
        Operation::Decrypt {
            ciphertext: message.ciphertext,
            key_id: message.key_id,
            annotations: message.annotations.into_iter().map(|(key, value)| (key, value.to_vec())).collect(),
        }
    };
    let answer = b"{\"data\":{\"ciphertext\":\"vault:v1:AAAA\",\"key_version\":1,\"plaintext\":\"AAAA\"}}";
    let answer = call(stack(200, answer, PipelineMetrics::new()), operation);
    let defect = answer.is_err_and(|error| error.class() == Class::Internal);
    assert!(!defect, "what a caller may send is no defect of ours");
}

/// What stands beside a ciphertext in etcd: lines of key_id, ciphertext, then annotations as `key=value`.
pub fn stored(data: &[u8]) {
    let mut lines = data.split(|byte| *byte == b'\n');
    let key_id = String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
    let ciphertext = lines.next().unwrap_or_default();
    let annotations: BTreeMap<_, _> = lines
        .map(|line| {
            let (key, value) = line.split_at(line.iter().position(|byte| *byte == b'=').unwrap_or(line.len()));
            (String::from_utf8_lossy(key).into_owned(), value.get(1..).unwrap_or_default().to_vec())
        })
        .collect();
    let view = key().peek().expect("a view");
    // Whatever it says, the next byte of the ciphertext must not change a refusal into a panic.
    let _ = check::check(&view, &key_id, &annotations, ciphertext);
    let _ = check::check(&view, &view.active().key_id.to_string(), &annotations, ciphertext);
    let _ = check::check(&view, &view.active().key_id.to_string(), &view.active().annotations, ciphertext);
}

/// An answer of Transit: two bytes of status, the rest is the body.
pub fn reply(data: &[u8]) {
    let [high, low, body @ ..] = data else { return };
    let status = u16::from_be_bytes([*high, *low]);
    let stack = || stack(status, body, PipelineMetrics::new());
    // Answers that say that our request is wrong are a defect of ours, so that any class will do.
    let _ = call(stack(), Operation::Encrypt { plaintext: secret(vec![7; 32]) });
    let active = key().peek().expect("a view").active().clone();
    let _ = call(
        stack(),
        Operation::Decrypt {
            ciphertext: b"vault:v1:AAAA"[..].into(),
            key_id: active.key_id.to_string(),
            annotations: (*active.annotations).clone(),
        },
    );
}

/// The text of a configuration file.
pub fn config_text(data: &[u8]) {
    let file = Scratch::with(data);
    if let Err(findings) = config::load(std::slice::from_ref(&file.0)) {
        assert!(!findings.to_string().is_empty(), "a refusal says why");
    }
}

/// A file that should hold a JWT.
pub fn jwt(data: &[u8]) {
    let file = Scratch::with(data);
    let config = serde_json::json!({ "role": "r", "file": file.0 });
    let _ = Jwt::new(serde_json::from_value(config).expect("a section")).login();
}

/// What somebody writes into the socket behind the HTTP/2 preface, if the first byte is even, or instead of it.
pub fn socket(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    let mut stream = UnixStream::connect(&door().path).expect("the door is open");
    stream.set_read_timeout(Some(Duration::from_millis(20))).expect("a time-out");
    let preface: &[u8] = if first % 2 == 0 { b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0" } else { b"" };
    // It may close the connection at any moment.
    let _ = stream.write_all(preface).and_then(|()| stream.write_all(rest));
    let mut answer = [0; 1024];
    while let Ok(1..) = stream.read(&mut answer) {}
}

/// A key with one version.
fn key() -> Arc<KeyState> {
    static KEY: OnceLock<Arc<KeyState>> = OnceLock::new();
    let make = || {
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
        let key = KeyState::new(&HealthPolicy::default(), &Rotation::default(), refresh::channel(Duration::MAX).0);
        key.publish(Arc::new(view));
        key.succeeded(tokio::time::Instant::now());
        Arc::new(key)
    };
    KEY.get_or_init(make).clone()
}

/// The whole stack around a Transit that always answers this.
fn stack(status: u16, body: &[u8], metrics: Arc<PipelineMetrics>) -> KmsService {
    let body: bytes::Bytes = body.to_vec().into();
    let bao = BaoService::new(tower::service_fn(move |_: BaoCall| {
        let body = body.clone();
        let reply = BaoReply { status, body, date: None, retry_after: None, location: None, endpoint: Some(0) };
        std::future::ready(Ok::<_, Error>(reply))
    }));
    let config = serde_json::json!({ "endpoints": ["https://127.0.0.1"], "mount": "transit", "key": "k" });
    let transit = Transit::new(&serde_json::from_value(config).expect("a section"), bao, Duration::from_secs(5));
    layers::stack(&layers::Config::default(), key(), transit, metrics)
}

fn call(mut stack: KmsService, operation: Operation) -> Result<Response, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    runtime.expect("a runtime").block_on(async {
        let context = Context { patience: Some(Duration::from_secs(3)), ..Context::new("u") };
        let stack = stack.ready().await.expect("ready");
        let answer = tokio::time::timeout(Duration::from_secs(10), stack.call(Request { operation, context })).await;
        answer.expect("longer than the caller waits")
    })
}

/// A door that is served for as long as the process lives.
pub struct Open {
    /// Its socket.
    pub path: PathBuf,
    /// What it and the stack behind it have counted.
    pub metrics: Arc<PipelineMetrics>,
}

/// The door of [`socket`]. Its threads are named, so that a panic in one of its tasks is known for what it is.
pub fn door() -> &'static Open {
    static DOOR: OnceLock<Open> = OnceLock::new();
    let open = || {
        let folder = std::env::temp_dir().join(format!("bao-kms-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o700)).expect("its mode");
        let path = folder.join("kms.sock");
        let config = serde_json::from_value(serde_json::json!({ "path": path })).expect("a section");
        let (opened, ready) = std::sync::mpsc::channel();
        let metrics = PipelineMetrics::new();
        let counted = metrics.clone();
        let serve = move || {
            let mut runtime = tokio::runtime::Builder::new_multi_thread();
            let runtime = runtime.worker_threads(1).thread_name(DOOR_THREAD).enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let socket = front::acquire(&config, Source::Bind).expect("a socket");
                let door = Door {
                    pipeline: "fuzz".into(),
                    key: key(),
                    kms: stack(200, b"{}", counted.clone()),
                    metrics: counted,
                    rules: tokio::sync::watch::channel(Rules::of(&config)).1,
                    bounds: Bounds::of(64, Duration::from_secs(30)),
                };
                // libFuzzer's `main` does not ignore it as Rust's does, and a connection may close while we write to it.
                let _pipe = signal(SignalKind::pipe()).expect("a handler");
                opened.send(()).expect("somebody waits");
                front::serve(socket, door, std::future::pending()).await.expect("served for ever");
            });
        };
        std::thread::Builder::new().name(DOOR_THREAD.to_owned()).spawn(serve).expect("a thread");
        ready.recv().expect("the door opens");
        Open { path, metrics }
    };
    DOOR.get_or_init(open)
}

/// A file that is there for one run.
struct Scratch(PathBuf);

impl Scratch {
    fn with(data: &[u8]) -> Self {
        static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("bao-kms-fuzz-{}-{number}.yaml", std::process::id()));
        std::fs::write(&path, data).expect("written");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).expect("its mode");
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A leftover in the temporary folder harms nobody.
        let _ = std::fs::remove_file(&self.0);
    }
}
