//! Reading the files that the configuration points to: opened once, judged by what was opened, bounded in size. A
//! symlink is followed, because projected volumes are made of them; what it leads to must be safe.
//!
//! A private file may be read by its group when we are a member of that group (by the effective or a supplementary gid):
//! that is how projected volumes (`fsGroup`) and service managers hand a root-owned file to a service.
//!
//! A volume may hang: [`beside`] is where whoever asks one waits for it.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::task::JoinError;
use zeroize::Zeroizing;

/// Certificates and CA bundles.
pub const MAX_PEM: u64 = 1 << 20;
/// A JWT.
pub const MAX_JWT: u64 = 16 << 10;
/// A volume hangs that has not answered after this.
const HANGS: Duration = Duration::from_secs(5);

/// Who may read a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Secrecy {
    /// Anyone: certificates, CA bundles.
    Public,
    /// The owner, and a group that we belong to: keys and tokens.
    Private,
}

/// Why a file is not used. Names the path, never the content.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be opened or read.
    #[error("{path}: {source}; it must exist and be readable for this service")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is a directory, a device or a socket.
    #[error("{path}: not a regular file; the configuration must name a file")]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// It is larger than anything that belongs there.
    #[error("{path}: larger than {limit} bytes; it is not what belongs there")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
    /// Somebody else owns it.
    #[error("{path}: belongs to uid {owner}; chown it to root or to the user of this service")]
    Owner {
        /// The file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// Its mode lets others write it, or read it when it is private.
    #[error("{path}: mode {mode:04o} lets others {what} it; use chmod {remedy}")]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// `write` or `read`.
        what: &'static str,
        /// The mode that fits.
        remedy: &'static str,
    },
}

/// Reads a file that is safe to rely on.
///
/// # Errors
/// When it cannot be read, is larger than `limit` bytes, belongs to a stranger, or its mode lets others meddle.
pub fn read(path: &Path, secrecy: Secrecy, limit: u64) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let io = |source| FileError::Io { path: path.to_owned(), source };
    let file = open(path)?;
    let meta = file.metadata().map_err(io)?;
    judge(path, &meta, secrecy)?;
    let mut content = Zeroizing::new(Vec::with_capacity(usize::try_from(meta.len().min(limit)).unwrap_or(0) + 1));
    file.take(limit + 1).read_to_end(&mut content).map_err(io)?;
    if content.len() as u64 > limit {
        return Err(FileError::TooLarge { path: path.to_owned(), limit });
    }
    Ok(content)
}

/// Does what may wait for a volume beside the workers, where one that hangs holds up nobody else. `hangs` is called when it
/// has taken five seconds; it is waited for all the same.
///
/// # Errors
/// When the work panicked.
pub async fn beside<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
    hangs: impl FnOnce(),
) -> Result<T, JoinError> {
    let mut task = tokio::task::spawn_blocking(work);
    if let Ok(done) = tokio::time::timeout(HANGS, &mut task).await {
        return done;
    }
    hangs();
    task.await
}

/// Opens a regular file without blocking, so that a pipe in its place cannot hang us.
///
/// # Errors
/// When it cannot be opened, or is no regular file.
pub fn open(path: &Path) -> Result<File, FileError> {
    use rustix::fs::{Mode, OFlags, open};
    let io = |source| FileError::Io { path: path.to_owned(), source };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::from(open(path, flags, Mode::empty()).map_err(|errno| io(errno.into()))?);
    if file.metadata().map_err(io)?.is_file() { Ok(file) } else { Err(FileError::NotAFile { path: path.to_owned() }) }
}

fn judge(path: &Path, meta: &std::fs::Metadata, secrecy: Secrecy) -> Result<(), FileError> {
    if meta.uid() != 0 && meta.uid() != rustix::process::geteuid().as_raw() {
        return Err(FileError::Owner { path: path.to_owned(), owner: meta.uid() });
    }
    let mode = meta.mode() & 0o777;
    let refuse = |what, remedy| Err(FileError::Mode { path: path.to_owned(), mode, what, remedy });
    if mode & 0o022 != 0 {
        return refuse("write", if secrecy == Secrecy::Private { "0600" } else { "0644" });
    }
    if secrecy == Secrecy::Private && (mode & 0o004 != 0 || (mode & 0o040 != 0 && !is_our_group(meta.gid()))) {
        return refuse("read", "0600");
    }
    Ok(())
}

fn is_our_group(gid: u32) -> bool {
    let supplementary = || rustix::process::getgroups().unwrap_or_default();
    rustix::process::getegid().as_raw() == gid || supplementary().iter().any(|group| group.as_raw() == gid)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn file(mode: u32) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("file");
        std::fs::write(&path, b"content").expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("mode");
        (dir, path)
    }

    #[test]
    fn a_symlink_is_followed() {
        let (dir, path) = file(0o600);
        let link = dir.path().join("link");
        symlink(&path, &link).expect("link");
        assert_eq!(&**read(&link, Secrecy::Private, 100).expect("read"), b"content");
    }

    #[test]
    fn modes_are_judged() {
        for (mode, secrecy, good) in [
            (0o644, Secrecy::Public, true),
            (0o664, Secrecy::Public, false),
            (0o646, Secrecy::Public, false),
            (0o600, Secrecy::Private, true),
            (0o640, Secrecy::Private, true),
            (0o644, Secrecy::Private, false),
        ] {
            let (_dir, path) = file(mode);
            assert_eq!(read(&path, secrecy, 100).is_ok(), good, "{mode:o} {secrecy:?}");
        }
    }

    #[test]
    fn size_and_kind_are_bounded() {
        let (dir, path) = file(0o600);
        assert!(matches!(read(&path, Secrecy::Private, 3), Err(FileError::TooLarge { limit: 3, .. })));
        assert!(matches!(read(dir.path(), Secrecy::Public, 3), Err(FileError::NotAFile { .. })));
        assert!(matches!(read(&dir.path().join("none"), Secrecy::Public, 3), Err(FileError::Io { .. })));
    }

    #[test]
    fn a_pipe_in_the_files_place_does_not_hang_us() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
            .expect("pipe");
        assert!(matches!(read(&path, Secrecy::Private, 3), Err(FileError::NotAFile { .. })));
    }

    #[test]
    fn strangers_and_their_groups_are_refused() {
        use std::os::unix::fs::chown;
        // Giving a file away takes root; without it, root's own files are what a service meets beside its own.
        if !rustix::process::geteuid().is_root() {
            assert!(read(Path::new("/proc/self/status"), Secrecy::Public, MAX_PEM).is_ok());
            return;
        }
        const STRANGER: u32 = 61_234;
        let (_dir, path) = file(0o640);
        chown(&path, None, Some(STRANGER)).expect("given to a group");
        assert!(matches!(read(&path, Secrecy::Private, 100), Err(FileError::Mode { what: "read", .. })));
        assert!(read(&path, Secrecy::Public, 100).is_ok());
        chown(&path, Some(STRANGER), None).expect("given away");
        assert!(matches!(read(&path, Secrecy::Public, 100), Err(FileError::Owner { owner: STRANGER, .. })));
    }

    #[test]
    fn a_refusal_names_the_file_and_the_remedy_but_no_content() {
        let (_dir, path) = file(0o644);
        let text = read(&path, Secrecy::Private, 100).expect_err("refused").to_string();
        assert!(text.contains(path.to_str().expect("path")) && text.contains("chmod 0600"), "{text}");
        assert!(!text.contains("content"));
    }
}
