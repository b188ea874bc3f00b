//! What a restart remembers of a pipeline's key: the newest versions that were seen, in one small file. With it a process
//! that starts notices a key that was rolled back or made anew before it seals anything; without it a start takes the key
//! for what it is. Whatever becomes of the file costs a warning, never data or availability.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex as Lock, PoisonError};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::files::{self, FileError, Secrecy};
use crate::key::{KeyState, Seen, View, same_key};
use crate::telemetry::events;
use crate::telemetry::metrics::PipelineMetrics;

/// `witness`: what a restart remembers of the key.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(rename = "Witness")]
pub struct Config {
    /// The file in which the newest versions that were seen are kept, one for each pipeline, on a disk that outlives a restart and where this service may write: below /var/lib/openbao-kms as it is packaged. A start whose key is older seals nothing until the key is back, or the file is removed while the service is stopped.
    #[schemars(length(min = 1))]
    pub file: PathBuf,
}

/// How long the disk may take before whoever waits goes on without it.
const PATIENCE: Duration = Duration::from_secs(2);
/// A record has a few hundred bytes.
const MAX_RECORD: u64 = 4 << 10;
/// The format that is written.
const FORMAT: u32 = 1;
/// How every record begins, of this format and of any other.
const BEGINNING: &[u8] = b"{\"format\":";

/// The witness of one pipeline.
pub struct Witness {
    file: Option<Arc<Path>>,
    fingerprint: String,
    pipeline: Arc<str>,
    metrics: Arc<PipelineMetrics>,
    /// Held by the thread that is at the disk: one at a time, however long the disk hangs.
    disk: Arc<Mutex<()>>,
    /// The trouble that the log has spoken of.
    told: Lock<Option<String>>,
}

/// What stands in the file's place.
#[derive(Debug, PartialEq, Eq)]
enum Content {
    Nothing,
    /// A record that a disk has lost part of; what was to be replaced in one step is whole otherwise.
    Torn,
    Record(Record),
}

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

/// Why a witness is not read or not kept. Then nothing is written either: it may say what nobody else knows.
#[derive(Debug, thiserror::Error)]
enum WitnessError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{path}: is no witness and is left as it is; give witness.file a name of its own")]
    Foreign { path: PathBuf },
    #[error("{path}: has format {format}, of a newer program; go back to that one, or remove the file")]
    Newer { path: PathBuf, format: u64 },
    #[error(
        "{path}: cannot be written: {source}; its directory must exist, have room, and be writable for this service"
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
        disk: Arc<Mutex<()>>,
    ) -> Arc<Self> {
        let file = config.map(|config| Arc::from(config.file.as_path()));
        if file.is_none() {
            metrics.set_witness_trouble(false);
        }
        Arc::new(Self { file, fingerprint, pipeline, metrics, disk, told: Lock::default() })
    }

    /// Tells the key what was seen of it before this process. What cannot be read in time may still be told by
    /// [`Witness::keep`].
    pub async fn recall(&self, key: &KeyState) {
        let Some(file) = self.file.clone() else { return };
        let Some(content) = self.noted(self.at_disk(&file, read).await) else { return };
        let why = match content {
            Content::Record(record) if same_key(&self.fingerprint, &record.fingerprint) => {
                key.remember(record.seen());
                return;
            }
            Content::Record(_) => "it speaks of another key",
            Content::Torn => "it is damaged",
            Content::Nothing => "it is not there",
        };
        if key.remembered().is_none() && key.peek().is_none() {
            tracing::warn!(
                event = events::WITNESS_MISSING,
                pipeline = &*self.pipeline,
                why,
                "{} says nothing of this key: this start takes it for what it is; unless it is the first one with this \
                 file, ask why",
                file.display()
            );
        }
    }

    /// Has [`Witness::keep`] done by a task of its own: however slow the disk is, no look at the key waits for it.
    pub fn keep_beside(self: &Arc<Self>, key: &Arc<KeyState>) {
        if self.file.is_some() && known(key).is_some() {
            let (witness, key) = (self.clone(), key.clone());
            tokio::spawn(async move { witness.keep(&key).await });
        }
    }

    /// Lets the file say what is known of the key, unless the file knows more: then the key is told.
    pub async fn keep(&self, key: &KeyState) {
        let (Some(file), Some(view)) = (self.file.clone(), known(key)) else { return };
        let record = Record::of(view.seen(), self.fingerprint.clone());
        let kept = self.at_disk(&file, move |file| match read(file)? {
            Content::Record(there) if there == record => Ok(None),
            Content::Record(there) if there.knows_more(&record.fingerprint, &view) => Ok(Some(there.seen())),
            _ => write(file, &record).map(|()| None),
        });
        if let Some(more) = self.noted(kept.await).flatten() {
            key.remember(more);
        }
    }

    /// Works at the disk in a thread that may block, and waits for it no longer than a start has patience.
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

    /// Shows whether there is trouble, and logs its beginning, its end, and when it becomes another one.
    fn noted<T>(&self, outcome: Result<T, WitnessError>) -> Option<T> {
        let pipeline = &*self.pipeline;
        self.metrics.set_witness_trouble(outcome.is_err());
        let text = outcome.as_ref().err().map(ToString::to_string);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        match (&*told, &text) {
            (before, Some(now)) if before.as_ref() != Some(now) => tracing::warn!(
                event = events::WITNESS_TROUBLE,
                pipeline,
                "{now}. Until then a start does not notice a key that was rolled back"
            ),
            (Some(_), None) => tracing::info!(event = events::WITNESS_TROUBLE, pipeline, "the witness is kept again"),
            _ => {}
        }
        *told = text;
        outcome.ok()
    }
}

/// The view that is worth keeping. What is in doubt is not: it would excuse itself at the next start.
fn known(key: &KeyState) -> Option<Arc<View>> {
    key.trusted().filter(|_| key.health().key_trouble.is_none())
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

    /// Whether it has seen of this key what a view does not show.
    fn knows_more(&self, fingerprint: &str, view: &View) -> bool {
        same_key(&self.fingerprint, fingerprint) && self.seen().lost_in_view(view).is_some()
    }
}

fn read(file: &Path) -> Result<Content, WitnessError> {
    let text = match files::read(file, Secrecy::Public, MAX_RECORD) {
        Err(FileError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
            // Without its directory it may only be that a disk is not mounted yet.
            let there = directory(file).metadata();
            return there.map(|_| Content::Nothing).map_err(|source| WitnessError::Write { path: file.into(), source });
        }
        text => text?,
    };
    if let Ok(record) = serde_json::from_slice(&text) {
        return Ok(Content::Record(record));
    }
    let newer = serde_json::from_slice::<serde_json::Value>(&text).ok().and_then(|other| other["format"].as_u64());
    match newer.filter(|format| *format > u64::from(FORMAT)) {
        Some(format) => Err(WitnessError::Newer { path: file.into(), format }),
        None if text.starts_with(BEGINNING) || text.iter().all(|byte| *byte == 0) => Ok(Content::Torn),
        None => Err(WitnessError::Foreign { path: file.into() }),
    }
}

/// Replaces the file as a whole: whenever the process or the machine ends, the file is the old one or the new one.
fn write(file: &Path, record: &Record) -> Result<(), WitnessError> {
    static WRITES: AtomicU64 = AtomicU64::new(0);
    // A symlink stays one. A name of its own each time: a process that hands over writes beside its successor.
    let file = file.canonicalize().unwrap_or_else(|_| file.to_owned());
    let mut beside = file.clone().into_os_string();
    beside.push(format!(".{}.{}", std::process::id(), WRITES.fetch_add(1, Ordering::Relaxed)));
    let written = write_whole(Path::new(&beside), record).and_then(|()| std::fs::rename(&beside, &file));
    if let Err(source) = written {
        // It may never have been made; what is wrong with the disk is told.
        let _ = std::fs::remove_file(&beside);
        return Err(WitnessError::Write { path: file, source });
    }
    // The rename itself lives in the directory; where that cannot be forced the next look is early enough.
    let _ = File::open(directory(&file)).and_then(|directory| directory.sync_all());
    Ok(())
}

fn write_whole(file: &Path, record: &Record) -> io::Result<()> {
    let mut new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    serde_json::to_writer(&mut new, record)?;
    new.write_all(b"\n")?;
    new.sync_all()
}

fn directory(file: &Path) -> &Path {
    file.parent().unwrap_or(Path::new("/"))
}

#[cfg(test)]
#[path = "witness_tests.rs"]
mod tests;
