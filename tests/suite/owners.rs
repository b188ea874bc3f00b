//! What belongs to whom around a socket: symlinks on the way, the lock, a directory that was made, and mode and group of a
//! socket that is there already.

use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use bao_kms_provider::front::{SocketError, Source, acquire, fit};
use bao_kms_provider::units::Mode;
use rustix::process::{Gid, Uid};

use super::inherit::{serve, write_config};
use super::puppet::{PATIENCE, config, folder};

/// Belongs to nobody on a usual machine.
const STRANGER: u32 = 471_101;

fn root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A group that a file can be given to: any for root, one of its own for others.
pub(super) fn some_group() -> u32 {
    let own = rustix::process::getegid().as_raw();
    if root() {
        return 4711;
    }
    let groups = rustix::process::getgroups().expect("groups");
    groups.iter().map(|group| group.as_raw()).find(|group| *group != own).unwrap_or(own)
}

fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("mode");
}

#[test]
fn a_symlink_on_the_way_that_a_stranger_can_lead_elsewhere_is_refused() {
    let folder = folder();
    for name in ["open", "real", "real/run"] {
        std::fs::create_dir(folder.path().join(name)).expect("a directory");
    }
    // As in /tmp: everybody may make something there, and nobody may move what belongs to others.
    mode(&folder.path().join("open"), 0o1777);
    mode(&folder.path().join("real"), 0o755);
    mode(&folder.path().join("real/run"), 0o750);
    let link = folder.path().join("open/link");
    symlink("../real", &link).expect("a symlink");
    let config = config(&link.join("run/kms.sock"));
    drop(acquire(&config, Source::Bind).expect("our own link leads where we want"));
    if root() {
        lchown(&link, Some(STRANGER), None).expect("given away");
        let error = acquire(&config, Source::Bind).expect_err("refused");
        assert!(matches!(&error, SocketError::Unsafe { path, .. } if *path == link), "{error}");
        assert!(error.to_string().contains("471101"), "{error}");
    }
}

#[test]
fn symlinks_in_a_circle_end() {
    let folder = folder();
    symlink("two", folder.path().join("one")).expect("a symlink");
    symlink("one", folder.path().join("two")).expect("a symlink");
    std::fs::create_dir(folder.path().join("run")).expect("a directory");
    mode(&folder.path().join("run"), 0o750);
    assert!(acquire(&config(&folder.path().join("one/run/kms.sock")), Source::Bind).is_err());
}

#[test]
fn a_lock_that_another_user_left_is_told_with_its_owner() {
    if !root() {
        // Only root can be two users.
        return;
    }
    let folder = folder();
    let run = folder.path().join("run");
    std::fs::create_dir(&run).expect("a directory");
    mode(&run, 0o750);
    drop(acquire(&config(&run.join("kms.sock")), Source::Bind).expect("as root"));
    std::os::unix::fs::chown(&run, Some(STRANGER), Some(STRANGER)).expect("given to the service");
    let path = run.join("kms.sock");
    let outcome = std::thread::spawn(move || {
        let (gid, uid) = (Gid::from_raw(STRANGER), Uid::from_raw(STRANGER));
        rustix::thread::set_thread_res_gid(gid, gid, gid).expect("its group");
        rustix::thread::set_thread_res_uid(uid, uid, uid).expect("its user");
        acquire(&config(&path), Source::Bind)
    });
    let error = outcome.join().expect("the thread").expect_err("refused");
    assert!(matches!(error, SocketError::ForeignLock { owner: 0, .. }), "{error}");
    assert!(error.to_string().contains("uid 0") && error.help().contains("chown"), "{error}; {}", error.help());
}

#[test]
fn a_directory_that_is_made_has_its_mode_and_group_whatever_the_umask() {
    let folder = folder();
    let run = folder.path().join("run");
    let file = write_config(folder.path());
    let section = format!("{}/kms.sock, createDirectory: true, group: \"{}\"", run.display(), some_group());
    let text = std::fs::read_to_string(&file).expect("the file");
    let text = text.replace(&format!("{}/kms.sock", folder.path().display()), &section);
    std::fs::write(&file, text).expect("written");
    // A process that was killed on the way left this.
    std::fs::create_dir(folder.path().join(".run.new")).expect("a directory");
    mode(&folder.path().join(".run.new"), 0o700);
    let _program = serve(&file, "umask 0077;", None);
    let began = Instant::now();
    while UnixStream::connect(run.join("kms.sock")).is_err() {
        assert!(began.elapsed() < PATIENCE, "no socket");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let made = run.metadata().expect("the directory");
    assert_eq!((made.mode() & 0o7777, made.gid()), (0o750, some_group()));
    assert!(!folder.path().join(".run.new").exists());
}

#[test]
fn a_socket_that_is_there_is_given_another_mode_and_group() {
    let folder = folder();
    let path = folder.path().join("kms.sock");
    let mut config = config(&path);
    let _socket = acquire(&config, Source::Bind).expect("a socket");
    let inode = path.symlink_metadata().expect("it").ino();
    let own = rustix::process::getegid().as_raw();
    for (bits, group) in [(0o600, Some(some_group())), (0o666, Some(some_group())), (0o660, None)] {
        config.mode = Mode::new(bits);
        config.group = group.map(|group| group.to_string());
        fit(&config).expect("fitted");
        let meta = path.symlink_metadata().expect("it");
        assert_eq!((meta.mode() & 0o7777, meta.gid(), meta.ino()), (bits, group.unwrap_or(own), inode));
    }
    config.group = Some("no such group".to_owned());
    config.mode = Mode::new(0o666);
    assert!(matches!(fit(&config), Err(SocketError::NoGroup { .. })));
    assert_eq!(path.symlink_metadata().expect("it").mode() & 0o777, 0o660, "nobody gets in by half of a change");
    std::fs::remove_file(&path).expect("removed");
    std::fs::write(&path, "precious").expect("a file");
    config.group = None;
    assert!(matches!(fit(&config), Err(SocketError::Occupied { .. })));
    assert_eq!(path.symlink_metadata().expect("it").mode() & 0o022, 0, "what is no socket is left alone");
}
