//! Looks whether the configuration files still say what runs. By content, not by time stamp or inode: projected volumes
//! swap links, and editors replace files.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::files::{self, FileError};

/// How often the files are read.
const LOOK: Duration = Duration::from_secs(2);
/// More of a file than this is no configuration; the loader refuses it as well.
const MAX_FILE: u64 = 1 << 20;

type Digest = [u8; 32];

/// What the files said when they were last tried.
pub struct Watch {
    files: Vec<PathBuf>,
    tried: Mutex<Digest>,
}

// === impl Watch ===

impl Watch {
    /// Of the files as they are now. Made before they are loaded for the first time, so that no change is missed.
    pub fn new(files: Vec<PathBuf>) -> Arc<Self> {
        let tried = Mutex::new(digest(&files));
        Arc::new(Self { files, tried })
    }

    /// The files, in their order.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The files are about to be loaded: what they say now is tried.
    pub fn trying(&self) -> &[PathBuf] {
        *self.tried.lock().unwrap_or_else(PoisonError::into_inner) = digest(&self.files);
        &self.files
    }

    /// Tells of each content that has not been tried, once it has stood still for one look. Runs until it is aborted.
    pub async fn run(self: Arc<Self>, changed: mpsc::Sender<()>) {
        let mut last = None;
        loop {
            tokio::time::sleep(LOOK).await;
            let watch = self.clone();
            // A disk that hangs holds up this task alone.
            let Ok(now) = tokio::task::spawn_blocking(move || digest(&watch.files)).await else { continue };
            let tried = *self.tried.lock().unwrap_or_else(PoisonError::into_inner);
            // Half-written files are not read: what is new must be the same twice.
            if now != tried && last == Some(now) && changed.send(()).await.is_err() {
                return;
            }
            last = Some(now);
        }
    }
}

/// Of the contents in order; a file that cannot be read counts by the kind of its error.
fn digest(files: &[PathBuf]) -> Digest {
    use std::io::{Error, Read};
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    for file in files {
        let mut content = Vec::new();
        // Opened as the loader does: a pipe in the file's place holds nobody up.
        let opened = files::open(file).map_err(|error| match error {
            FileError::Io { source, .. } => source,
            other => Error::other(other),
        });
        let read = opened.and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut content));
        if let Err(error) = read {
            content = format!("{:?}", error.kind()).into_bytes();
        }
        context.update(&content.len().to_be_bytes());
        context.update(&content);
    }
    let mut digest = Digest::default();
    digest.copy_from_slice(context.finish().as_ref());
    digest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_change_is_told_once_it_stands_still_and_only_until_it_is_tried() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("config.yaml");
        std::fs::write(&file, "one").expect("written");
        let watch = Watch::new(vec![file.clone()]);
        let (sender, mut changed) = mpsc::channel(1);
        let task = tokio::spawn(watch.clone().run(sender));
        tokio::time::pause();
        assert!(tokio::time::timeout(LOOK * 3, changed.recv()).await.is_err(), "nothing has changed");
        std::fs::write(&file, "one").expect("written again, with the same content");
        assert!(tokio::time::timeout(LOOK * 3, changed.recv()).await.is_err());
        std::fs::write(&file, "two").expect("written");
        assert!(tokio::time::timeout(LOOK * 4, changed.recv()).await.is_ok());
        watch.trying();
        // One may have been told between the change and the try.
        let _ = tokio::time::timeout(LOOK, changed.recv()).await;
        assert!(tokio::time::timeout(LOOK * 3, changed.recv()).await.is_err(), "it was tried");
        std::fs::remove_file(&file).expect("removed");
        assert!(tokio::time::timeout(LOOK * 4, changed.recv()).await.is_ok(), "a missing file is a change");
        task.abort();
    }
}
