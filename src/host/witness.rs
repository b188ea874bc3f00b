//! What a restart remembers of a pipeline's key: the newest versions that were seen, in one small file. With it a process
//! that starts notices a key that was rolled back or made anew before it seals anything; without it a start takes the key
//! for what it is. Whatever becomes of the file costs a warning, never data or availability.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::files::{self, FileError, Secrecy};
use crate::key::{KeyState, Seen, same_key};
use crate::telemetry::events;
use crate::telemetry::metrics::PipelineMetrics;

/// `witness`: what a restart remembers of the key.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(rename = "Witness")]
pub struct Config {
    /// The file in which the newest versions that were seen are kept, one for each pipeline, on a disk that outlives a restart; its directory must let this service write. A start whose key is older seals nothing until the key is back or the file is removed.
    #[schemars(length(min = 1))]
    pub file: PathBuf,
}

/// How long the disk may take before the keeper goes on without it.
const PATIENCE: Duration = Duration::from_secs(2);
/// A record has a few hundred bytes.
const MAX_RECORD: u64 = 4 << 10;
/// The format that is written.
const FORMAT: u32 = 1;

/// The witness of one pipeline.
pub struct Witness {
    file: Option<Arc<Path>>,
    fingerprint: String,
    pipeline: Arc<str>,
    metrics: Arc<PipelineMetrics>,
    /// Held by the thread that is at the disk: one at a time, however long the disk hangs.
    disk: Arc<Mutex<()>>,
    /// Whether the log has spoken of the trouble that there is.
    told: AtomicBool,
}

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
struct Record {
    format: u32,
    /// Of another key it says nothing.
    fingerprint: String,
    active: Version,
    latest: Version,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    version: u32,
    created_unix: u64,
}

/// Why a witness is not read or not kept.
#[derive(Debug, thiserror::Error)]
enum WitnessError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{path}: not a record of this program ({source}); it is replaced with the next look at the key")]
    Damaged { path: PathBuf, source: serde_json::Error },
    #[error("{path}: format {format} of a newer program; it is replaced with the next look at the key")]
    Newer { path: PathBuf, format: u32 },
    #[error(
        "{path}: cannot be written: {source}; the directory must exist, have room, and be writable for this service"
    )]
    Write { path: PathBuf, source: io::Error },
    #[error("{path}: the disk does not answer")]
    Hangs { path: PathBuf },
}

// === impl Witness ===

impl Witness {
    /// The witness of the pipeline with this fingerprint; one that does nothing when none is configured.
    pub fn new(
        config: Option<&Config>,
        fingerprint: String,
        pipeline: Arc<str>,
        metrics: Arc<PipelineMetrics>,
    ) -> Self {
        metrics.set_witness_trouble(false);
        let file = config.map(|config| config.file.as_path().into());
        Self { file, fingerprint, pipeline, metrics, disk: Arc::default(), told: AtomicBool::new(false) }
    }

    /// Tells the key what was seen of it before this process. What a process told that handed over is newer than any file.
    pub async fn recall(&self, key: &KeyState) {
        let Some(file) = self.file.clone().filter(|_| key.remembered().is_none() && key.peek().is_none()) else {
            return;
        };
        let Some(record) = self.noted(self.at_disk(&file, read).await) else { return };
        match record {
            Some(record) if same_key(&self.fingerprint, &record.fingerprint) => key.remember(record.seen()),
            record => tracing::warn!(
                event = events::WITNESS_MISSING,
                pipeline = &*self.pipeline,
                other_key = record.is_some(),
                "{} says nothing of this key: the first start takes it for what it is, and any later one should ask why",
                file.display()
            ),
        }
    }

    /// Lets the file say what is known of the key. What is in doubt is not kept: it would excuse itself at the next start.
    pub async fn keep(&self, key: &KeyState) {
        let Some(file) = self.file.clone() else { return };
        let Some(view) = key.peek().filter(|_| key.health().trouble.is_none()) else { return };
        let record = Record::of(view.seen(), self.fingerprint.clone());
        let kept = self
            .at_disk(&file, move |file| match read(file) {
                Ok(Some(there)) if there == record => Ok(()),
                // Whatever is there instead: what is known now is better.
                _ => write(file, &record).map_err(|source| WitnessError::Write { path: file.to_owned(), source }),
            })
            .await;
        self.noted(kept);
    }

    /// Works at the disk in a thread that may block, and waits for it no longer than the keeper has patience.
    async fn at_disk<T: Send + 'static>(
        &self,
        file: &Arc<Path>,
        work: impl FnOnce(&Path) -> Result<T, WitnessError> + Send + 'static,
    ) -> Result<T, WitnessError> {
        let hangs = || WitnessError::Hangs { path: file.to_path_buf() };
        let turn = self.disk.clone().try_lock_owned().map_err(|_| hangs())?;
        let at = file.clone();
        let done = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work(&at)
        });
        match tokio::time::timeout(PATIENCE, done).await {
            Ok(Ok(outcome)) => outcome,
            _ => Err(hangs()),
        }
    }

    /// Shows whether there is trouble, and logs its beginning and its end.
    fn noted<T>(&self, outcome: Result<T, WitnessError>) -> Option<T> {
        let pipeline = &*self.pipeline;
        self.metrics.set_witness_trouble(outcome.is_err());
        match outcome {
            Ok(value) => {
                if self.told.swap(false, Ordering::Relaxed) {
                    tracing::info!(event = events::WITNESS_TROUBLE, pipeline, "the witness is kept again");
                }
                Some(value)
            }
            Err(error) => {
                if !self.told.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        event = events::WITNESS_TROUBLE,
                        pipeline,
                        "{error}. Until then a restart would not notice a key that was rolled back"
                    );
                }
                None
            }
        }
    }
}

// === impl Record ===

impl Record {
    fn of(seen: Seen, fingerprint: String) -> Self {
        let version = |(version, created_unix)| Version { version, created_unix };
        Self { format: FORMAT, fingerprint, active: version(seen.active), latest: version(seen.latest) }
    }

    fn seen(&self) -> Seen {
        let pair = |version: &Version| (version.version, version.created_unix);
        Seen { active: pair(&self.active), latest: pair(&self.latest) }
    }
}

/// What the file says; `None` when there is none.
fn read(file: &Path) -> Result<Option<Record>, WitnessError> {
    let text = match files::read(file, Secrecy::Public, MAX_RECORD) {
        Err(FileError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => return Ok(None),
        text => text?,
    };
    let path = || file.to_owned();
    let record: Record =
        serde_json::from_slice(&text).map_err(|source| WitnessError::Damaged { path: path(), source })?;
    if record.format > FORMAT {
        return Err(WitnessError::Newer { path: path(), format: record.format });
    }
    Ok(Some(record))
}

/// Replaces the file as a whole: whenever the process or the machine ends, the file is the old one or the new one.
fn write(file: &Path, record: &Record) -> io::Result<()> {
    // While a process hands over to another one, both keep it.
    let mut beside = file.as_os_str().to_owned();
    beside.push(format!(".{}", std::process::id()));
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    serde_json::to_writer(&mut new, record)?;
    new.write_all(b"\n")?;
    new.sync_all()?;
    std::fs::rename(&beside, file)?;
    // The rename itself lives in the directory.
    File::open(file.parent().unwrap_or(Path::new("/")))?.sync_all()
}

#[cfg(test)]
#[path = "witness_tests.rs"]
mod tests;
