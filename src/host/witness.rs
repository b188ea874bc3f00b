//! What a restart remembers of a pipeline's key: the newest versions that were seen, in one small file. With it a process
//! that starts notices a key that was rolled back or made anew before it seals anything; without it a start takes the key
//! for what it is. Whatever becomes of the file costs a warning, never data or availability.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
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
    /// The file in which the newest versions that were seen are kept, one for each pipeline, on a disk that outlives a restart and where this service may write: below /var/lib/openbao-kms as it is packaged. A start whose key is older seals nothing until the key is back, or the file is removed and the service restarted.
    #[schemars(length(min = 1))]
    pub file: PathBuf,
}

/// How long the disk may take before whoever waits goes on without it.
const PATIENCE: Duration = Duration::from_secs(2);
/// A record has a few hundred bytes.
const MAX_RECORD: u64 = 4 << 10;
/// The format that is written.
const FORMAT: u32 = 1;
/// How the name of a file ends that is still to take the record's place, and when one has been left behind.
const NEW: &str = ".new";
const LEFT_BEHIND: Duration = Duration::from_secs(60);
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
    #[error("{path}: cannot be kept: {source}; its directory must exist, have room, and be writable for this service")]
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
        let (record, remembered) = (Record::of(view.seen(), self.fingerprint.clone()), key.remembered());
        // What the process before us told has been judged already, and outweighs a file that contradicts it.
        let counts = move |seen: &Seen| remembered.is_none_or(|told| told.newer(*seen) == *seen);
        let kept = self.at_disk(&file, move |file| match read(file)? {
            Content::Record(there) if there == record => Ok(None),
            Content::Record(there) if there.knows_more(&record.fingerprint, &view) && counts(&there.seen()) => {
                Ok(Some(there.seen()))
            }
            Content::Record(there) if there.format > FORMAT => {
                Err(WitnessError::Newer { path: file.into(), format: there.format.into() })
            }
            _ => write(file, &record).map(|()| None),
        });
        if let Some(more) = self.noted(kept.await).flatten() {
            key.remember(more);
        }
    }

    /// Works at the disk in a thread that may block, one after the other, and waits no longer than a start has patience.
    async fn at_disk<T: Send + 'static>(
        &self,
        file: &Arc<Path>,
        work: impl FnOnce(&Path) -> Result<T, WitnessError> + Send + 'static,
    ) -> Result<T, WitnessError> {
        let (disk, at) = (self.disk.clone(), file.clone());
        let done = async move {
            let turn = disk.lock_owned().await;
            let work = move || {
                let _turn = turn;
                work(&at)
            };
            tokio::task::spawn_blocking(work).await
        };
        match tokio::time::timeout(PATIENCE, done).await {
            Ok(Ok(outcome)) => outcome,
            _ => Err(WitnessError::Hangs { path: file.to_path_buf() }),
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
                "{now}. Until that is mended a start may not notice a key that was rolled back"
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
            // Behind a symlink, or without its directory, it may only be that a disk is not mounted yet.
            let there = directory(file).metadata();
            if there.is_ok() && !file.is_symlink() {
                return Ok(Content::Nothing);
            }
            return Err(WitnessError::Write { path: file.into(), source: there.err().unwrap_or(source) });
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
    // A symlink stays one.
    let file = file.canonicalize().unwrap_or_else(|_| file.to_owned());
    remove_left_behind(&file);
    // A name of its own each time: a process that hands over writes beside its successor, and in a container both are the first.
    let mut beside = file.clone().into_os_string();
    beside.push(format!(".{:016x}{NEW}", fastrand::u64(..)));
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

/// What a process that was killed in the middle of a write has left; what is younger may be somebody's.
fn remove_left_behind(file: &Path) {
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    for entry in std::fs::read_dir(directory(file)).into_iter().flatten().flatten() {
        let beside = entry.file_name().to_string_lossy().into_owned();
        let ours = beside.strip_prefix(&name).and_then(|rest| rest.strip_suffix(NEW)).is_some_and(|id| id.len() == 17);
        let age = entry.metadata().and_then(|meta| meta.modified()).ok().and_then(|at| at.elapsed().ok());
        if ours && age.is_some_and(|age| age > LEFT_BEHIND) {
            // If it cannot be removed it is no worse than before.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn directory(file: &Path) -> &Path {
    file.parent().unwrap_or(Path::new("/"))
}

#[cfg(test)]
#[path = "witness_tests.rs"]
mod tests;
