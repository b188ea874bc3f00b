//! The program under measurement: the binary of this very build, run as `serve` with a file of its own.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use bao_kms_provider::front::client::{Client, ClientError};

use crate::decrypts;
use crate::http2::Call;
use crate::stage::{Sealed, Stage};

/// The binary that is measured: the packaged one that `benches/run` names, or else the one of this very build.
fn binary() -> PathBuf {
    std::env::var_os("BAO_KMS_PROGRAM").map_or_else(|| env!("CARGO_BIN_EXE_bao-kms-provider").into(), PathBuf::from)
}

/// A running program; killed when dropped.
pub struct Program {
    child: Child,
    /// A client of its socket.
    pub client: Client,
    /// Where it listens.
    pub socket: PathBuf,
    /// From exec to the first accepted connection.
    pub socket_after: Duration,
    admin: String,
    http: reqwest::Client,
    kept: tokio::sync::Mutex<Arc<Vec<Call>>>,
    _dir: tempfile::TempDir,
}

impl Program {
    /// Starts it against OpenBao at this URL, with a line more for its pipeline, and waits until Status is ok.
    pub async fn start(stage: &Stage, url: &str, more: &str) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let (socket, file) = (dir.path().join("kms.sock"), dir.path().join("config.yaml"));
        let admin = format!("127.0.0.1:{}", crate::stage::free_port());
        std::fs::write(&file, stage.config(url, &socket, &admin, more)).expect("the configuration");
        let began = Instant::now();
        let child = Command::new(binary())
            .args(["serve", "--config"])
            .arg(&file)
            .stderr(Stdio::null())
            .spawn()
            .expect("the program");
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            assert!(began.elapsed() < Duration::from_secs(10), "the socket never came");
            std::thread::sleep(Duration::from_micros(200));
        }
        let socket_after = began.elapsed();
        let client = Client::connect(&socket).await.expect("a connection");
        while client.status().await.expect("Status").healthz != "ok" {
            assert!(began.elapsed() < Duration::from_secs(30), "Status never was ok");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Self {
            child,
            client,
            socket,
            socket_after,
            admin,
            http: reqwest::Client::new(),
            kept: tokio::sync::Mutex::default(),
            _dir: dir,
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Wraps this many seeds, each another.
    pub async fn wrap(&self, seeds: usize) -> Arc<Vec<Sealed>> {
        let mut sealed = Vec::with_capacity(seeds);
        for at in 0..seeds {
            let mut seed = vec![0; 32];
            seed[..8].copy_from_slice(&at.to_le_bytes());
            let wrapped = self.client.encrypt(seed.clone(), "bench").await.expect("Encrypt");
            sealed.push(Sealed {
                seed,
                ciphertext: wrapped.ciphertext.to_vec(),
                key_id: wrapped.key_id,
                annotations: wrapped.annotations.into_iter().collect::<BTreeMap<_, _>>(),
            });
        }
        Arc::new(sealed)
    }

    /// At least this many decrypts of distinct seeds, made once and used by every round.
    pub async fn calls(&self, count: usize) -> Arc<Vec<Call>> {
        let mut kept = self.kept.lock().await;
        if kept.len() < count {
            *kept = Arc::new(decrypts::calls(&self.wrap(count).await));
        }
        kept.clone()
    }

    /// Exchanges with OpenBao for Encrypt and Decrypt so far.
    pub async fn openbao_attempts(&self) -> u64 {
        self.attempts("encrypt").await + self.attempts("decrypt").await
    }

    /// Exchanges with OpenBao for Decrypt so far.
    pub async fn decrypt_attempts(&self) -> u64 {
        self.attempts("decrypt").await
    }

    /// Ciphertexts that went to OpenBao so far: those in batches, and one for each exchange that was no batch. Holds while
    /// nothing is redirected; the few proofs that the program makes for itself count as well.
    pub async fn decrypt_items(&self) -> u64 {
        let batches = self.sum("bao_kms_batch_items_count", "").await;
        self.sum("bao_kms_batch_items_sum", "").await + self.decrypt_attempts().await - batches
    }

    async fn attempts(&self, purpose: &str) -> u64 {
        self.sum("bao_kms_openbao_attempts_total", &format!("purpose=\"{purpose}\"")).await
    }

    /// Of all samples of a metric with this label.
    async fn sum(&self, metric: &str, label: &str) -> u64 {
        let url = format!("http://{}/metrics", self.admin);
        let text = self.http.get(url).send().await.expect("metrics").text().await.expect("text");
        text.lines()
            .filter(|line| line.starts_with(metric) && line.contains(label))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum::<f64>() as u64
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // A process that is gone already is as good as killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The size of the binary in MB.
pub fn binary_mb() -> f64 {
    std::fs::metadata(binary()).expect("the binary").len() as f64 / 1e6
}
