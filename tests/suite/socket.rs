//! Getting a socket: what is refused, what is replaced, and that mode and group are never wrong.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bao_kms_provider::front::{Config, Socket, SocketError, Source, acquire};
use bao_kms_provider::units::Mode;
use rustix::fs::{CWD, FileType};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::puppet::{PATIENCE, config, folder};

fn bind(path: &Path) -> Result<Socket, SocketError> {
    acquire(&config(path), Source::Bind)
}

/// Takes what this process has just let go. A child that another test starts at this moment may still hold a copy.
fn again(config: &Config) -> Socket {
    let start = Instant::now();
    loop {
        match acquire(config, Source::Bind) {
            Err(SocketError::Locked { .. } | SocketError::Alive { .. }) if start.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(1));
            }
            other => return other.expect("a socket"),
        }
    }
}

fn inherit(path: &Path, socket: impl Into<OwnedFd>) -> Result<Socket, SocketError> {
    acquire(&config(path), Source::Inherited(socket.into()))
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).expect("the folder");
    entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}

fn root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A group that a socket can be given to: any for root, one of its own for others.
fn some_group() -> u32 {
    let own = rustix::process::getegid().as_raw();
    if root() {
        return 4711;
    }
    let groups = rustix::process::getgroups().expect("groups");
    groups.iter().map(|group| group.as_raw()).find(|group| *group != own).unwrap_or(own)
}

#[test]
fn the_file_says_who_may_connect_when_nothing_is_configured() {
    let config = config(Path::new("/run/openbao-kms/kms.sock"));
    assert_eq!(config.mode, Mode::new(0o660));
    assert_eq!((config.group, config.create_directory), (None, false));
    assert!(config.allow_peers.uids.is_empty() && config.allow_peers.gids.is_empty());
}

#[test]
fn mode_and_group_are_right_whenever_there_is_a_socket() {
    for mode in [0o600, 0o660, 0o666] {
        let folder = folder();
        let path = folder.path().join("kms.sock");
        let fresh = folder.path().join(".kms.sock.new");
        let mut config = config(&path);
        config.mode = Mode::new(mode);
        config.group = Some(some_group().to_string());
        let (done, looks) = (AtomicBool::new(false), AtomicU32::new(0));
        let seen = std::thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                let (mut seen, mut there) = (BTreeSet::new(), false);
                while !done.load(Ordering::SeqCst) {
                    match path.symlink_metadata() {
                        Ok(meta) => {
                            there = true;
                            seen.insert((meta.file_type().is_socket(), meta.mode() & 0o7777, meta.gid()));
                        }
                        Err(_) => assert!(!there, "there was a moment without a socket"),
                    }
                    // Even the temporary name never allows more than the configured mode.
                    if let Ok(meta) = fresh.symlink_metadata() {
                        assert_eq!(meta.mode() & 0o7777 & !mode, 0, "{:o} of {mode:o}", meta.mode());
                    }
                    looks.fetch_add(1, Ordering::SeqCst);
                }
                seen
            });
            // A process that was quicker than its watcher has been watched too little. One look is under way already.
            let looked = || {
                let before = looks.load(Ordering::SeqCst);
                while looks.load(Ordering::SeqCst) < before + 2 && !watcher.is_finished() {
                    std::thread::yield_now();
                }
            };
            looked();
            for _ in 0..200 {
                drop(again(&config));
            }
            looked();
            done.store(true, Ordering::SeqCst);
            watcher.join().expect("the watcher")
        });
        assert_eq!(seen, BTreeSet::from([(true, mode, some_group())]), "{mode:o}, {looks:?} looks");
        assert_eq!(names(folder.path()), BTreeSet::from(["kms.sock".into(), "kms.sock.lock".into()]));
    }
}

#[test]
fn an_unknown_group_is_refused_before_anything_is_made() {
    let folder = folder();
    let mut config = config(&folder.path().join("kms.sock"));
    config.group = Some("no such group".into());
    let error = acquire(&config, Source::Bind).expect_err("refused");
    assert!(matches!(error, SocketError::NoGroup { .. }), "{error}");
    assert_eq!(names(folder.path()), BTreeSet::new());
}

#[test]
fn a_group_is_found_by_name() {
    let table = std::fs::read_to_string("/etc/group").unwrap_or_default();
    let own = rustix::process::getegid().as_raw().to_string();
    let mut fields = table.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let Some(name) = fields.find(|fields| fields.get(2) == Some(&own.as_str())).map(|fields| fields[0].to_owned())
    else {
        return;
    };
    let folder = folder();
    let path = folder.path().join("kms.sock");
    let mut config = config(&path);
    config.group = Some(name);
    let _socket = acquire(&config, Source::Bind).expect("a socket");
    assert_eq!(path.symlink_metadata().expect("it").gid().to_string(), own);
}

#[test]
fn what_is_no_socket_is_refused_and_left_alone() {
    for what in ["a regular file", "a directory", "a symlink", "no socket"] {
        let folder = folder();
        let path = folder.path().join("kms.sock");
        match what {
            "a regular file" => std::fs::write(&path, "precious").expect("a file"),
            "a directory" => std::fs::create_dir(&path).expect("a directory"),
            "a symlink" => symlink("/nowhere", &path).expect("a symlink"),
            _ => rustix::fs::mknodat(CWD, &path, FileType::Fifo, 0o600.into(), 0).expect("a fifo"),
        }
        let before = path.symlink_metadata().expect("it");
        let error = bind(&path).expect_err(what);
        assert!(matches!(error, SocketError::Occupied { .. }), "{what}: {error}");
        assert!(error.to_string().contains(what), "{error}");
        assert!(error.help().contains("remove"), "{}", error.help());
        let after = path.symlink_metadata().expect("it is still there");
        assert_eq!((before.ino(), before.len()), (after.ino(), after.len()), "{what}");
        assert!(!names(folder.path()).contains(".kms.sock.new"), "{what}");
    }
}

#[test]
fn a_symlink_to_a_dead_socket_is_refused_too() {
    let folder = folder();
    let (target, path) = (folder.path().join("target"), folder.path().join("kms.sock"));
    drop(UnixListener::bind(&target).expect("a socket"));
    symlink(&target, &path).expect("a symlink");
    assert!(matches!(bind(&path), Err(SocketError::Occupied { what: "a symlink", .. })));
}

#[test]
fn a_live_socket_is_refused_and_goes_on() {
    let folder = folder();
    let path = folder.path().join("kms.sock");
    let _other = UnixListener::bind(&path).expect("a socket");
    assert!(matches!(bind(&path), Err(SocketError::Alive { .. })));
    UnixStream::connect(&path).expect("the other process still listens");
}

#[test]
fn a_live_socket_that_accepts_nothing_is_refused_without_waiting() {
    let folder = folder();
    let path = folder.path().join("kms.sock");
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let stream = || rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).expect("a socket");
    let address = SocketAddrUnix::new(&path).expect("an address");
    let other = stream();
    rustix::net::bind(&other, &address).expect("bound");
    rustix::net::listen(&other, 1).expect("listening");
    let mut waiting = Vec::new();
    loop {
        let next = stream();
        if rustix::net::connect(&next, &address).is_err() {
            break;
        }
        waiting.push(next);
    }
    assert!(matches!(bind(&path), Err(SocketError::Alive { .. })));
}

#[test]
fn a_socket_of_another_kind_is_not_taken_for_dead() {
    let folder = folder();
    let path = folder.path().join("kms.sock");
    let _other = UnixDatagram::bind(&path).expect("a socket");
    let error = bind(&path).expect_err("refused");
    assert!(matches!(error, SocketError::Unclear { .. }), "{error}");
    assert!(path.symlink_metadata().is_ok());
}

#[test]
fn a_dead_socket_is_replaced_in_the_same_directory() {
    let folder = folder();
    let path = folder.path().join("kms.sock");
    drop(UnixListener::bind(&path).expect("a socket"));
    let directory = folder.path().metadata().expect("the folder").ino();
    let _socket = again(&config(&path));
    UnixStream::connect(&path).expect("it listens");
    assert_eq!(folder.path().metadata().expect("the folder").ino(), directory);
}

#[test]
fn what_a_killed_process_left_under_the_temporary_name_is_no_obstacle() {
    let folder = folder();
    let path = folder.path().join("kms.sock");
    let left = folder.path().join(".kms.sock.new");
    drop(UnixListener::bind(&left).expect("a socket"));
    drop(again(&config(&path)));
    std::fs::write(&left, "not ours").expect("a file");
    assert!(bind(&path).is_err());
    assert_eq!(std::fs::read(&left).expect("still there"), b"not ours");
}

#[test]
fn one_process_at_a_time_and_the_lock_file_stays() {
    let folder = folder();
    let path = folder.path().join("kms.sock");
    let lock = folder.path().join("kms.sock.lock");
    let first = bind(&path).expect("a socket");
    let inode = lock.symlink_metadata().expect("the lock").ino();
    let before = path.symlink_metadata().expect("the socket").ino();
    assert!(matches!(bind(&path), Err(SocketError::Locked { .. })));
    assert_eq!(path.symlink_metadata().expect("the socket").ino(), before);
    drop(first);
    assert!(path.symlink_metadata().is_ok(), "the socket file stays");
    let _second = again(&config(&path));
    assert_eq!(lock.symlink_metadata().expect("the lock").ino(), inode);
}

#[test]
fn a_lock_that_is_no_file_of_ours_is_refused() {
    let folder = folder();
    let path = folder.path().join("kms.sock");
    let lock = folder.path().join("kms.sock.lock");
    symlink(folder.path().join("elsewhere"), &lock).expect("a symlink");
    assert!(matches!(bind(&path), Err(SocketError::Occupied { path, .. }) if path == lock));
    assert_eq!(names(folder.path()), BTreeSet::from(["kms.sock.lock".into()]));
    std::fs::remove_file(&lock).expect("removed");
    std::fs::create_dir(&lock).expect("a directory");
    assert!(matches!(bind(&path), Err(SocketError::Occupied { path, .. }) if path == lock));
}

#[test]
fn a_directory_that_others_can_change_is_refused() {
    let folder = folder();
    let inner = folder.path().join("run");
    std::fs::create_dir(&inner).expect("a directory");
    let mode = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("mode");
    let path = inner.join("kms.sock");
    for (upper, lower, fits) in [
        (0o755, 0o750, true),
        (0o755, 0o770, false),
        (0o755, 0o757, false),
        (0o755, 0o1777, true),
        (0o775, 0o750, false),
        (0o1777, 0o750, true),
    ] {
        mode(folder.path(), upper);
        mode(&inner, lower);
        if fits {
            drop(again(&config(&path)));
        } else {
            assert!(matches!(bind(&path), Err(SocketError::Unsafe { .. })), "{upper:o} {lower:o}");
        }
    }
}

#[test]
fn a_directory_of_somebody_else_is_refused() {
    if !root() {
        // Only root can give a directory away.
        return;
    }
    let folder = folder();
    let inner = folder.path().join("run");
    std::fs::create_dir(&inner).expect("a directory");
    std::os::unix::fs::chown(&inner, Some(4711), None).expect("given away");
    let error = bind(&inner.join("kms.sock")).expect_err("refused");
    assert!(matches!(error, SocketError::Unsafe { .. }), "{error}");
    assert!(error.to_string().contains("4711"), "{error}");
}

#[test]
fn the_directory_itself_is_no_symlink_but_one_above_it_may_be() {
    let folder = folder();
    let real = folder.path().join("real");
    std::fs::create_dir_all(real.join("run")).expect("directories");
    std::fs::set_permissions(&real, PermissionsExt::from_mode(0o755)).expect("mode");
    std::fs::set_permissions(real.join("run"), PermissionsExt::from_mode(0o750)).expect("mode");
    symlink(&real, folder.path().join("link")).expect("a symlink");
    let error = bind(&folder.path().join("link/kms.sock")).expect_err("refused");
    assert!(matches!(error, SocketError::Unsafe { .. }), "{error}");
    drop(again(&config(&folder.path().join("link/run/kms.sock"))));
    // What the link leads to is judged as well.
    std::fs::set_permissions(&real, PermissionsExt::from_mode(0o777)).expect("mode");
    assert!(matches!(bind(&folder.path().join("link/run/kms.sock")), Err(SocketError::Unsafe { .. })));
}

#[test]
fn a_path_that_is_not_plain_is_refused() {
    let long = PathBuf::from(format!("/tmp/{}", "x".repeat(96)));
    for path in [Path::new("kms.sock"), Path::new("/tmp/../tmp/kms.sock"), Path::new("/"), &long] {
        assert!(matches!(bind(path), Err(SocketError::Unsafe { .. })), "{}", path.display());
    }
}

#[test]
fn the_last_directory_is_made_when_wanted_and_no_other() {
    let folder = folder();
    let path = folder.path().join("run/kms.sock");
    assert!(matches!(bind(&path), Err(SocketError::Io { .. })));
    assert_eq!(names(folder.path()), BTreeSet::new());
    let mut wanted = config(&path);
    wanted.create_directory = true;
    drop(acquire(&wanted, Source::Bind).expect("a socket"));
    let made = folder.path().join("run").metadata().expect("the directory");
    // Whoever runs the tests may have taken more away by a umask.
    assert_eq!(made.mode() & 0o777 & !0o750, 0);
    assert_eq!(made.mode() & 0o700, 0o700);
    drop(again(&wanted));
    assert_eq!(folder.path().join("run").metadata().expect("the directory").ino(), made.ino());
    wanted.path = folder.path().join("a/b/kms.sock");
    assert!(matches!(acquire(&wanted, Source::Bind), Err(SocketError::Io { .. })));
}

#[test]
fn an_inherited_socket_is_taken_when_it_is_the_configured_one() {
    let folder = folder();
    let path = folder.path().join("kms.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    let copy = listener.try_clone().expect("the service manager's own");
    drop(inherit(&path, listener).expect("taken"));
    UnixStream::connect(&path).expect("the service manager still holds it");
    drop(copy);
}

#[test]
fn an_inherited_socket_of_another_kind_or_place_is_refused() {
    let folder = folder();
    let (path, other) = (folder.path().join("kms.sock"), folder.path().join("other.sock"));
    let deaf = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).expect("a socket");
    let (end, _other_end) = UnixStream::pair().expect("a pair");
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let datagram = UnixDatagram::bind(&path).expect("a socket");
    let elsewhere = UnixListener::bind(&other).expect("a socket");
    let file = std::fs::File::open("/dev/null").expect("a file");
    let cases: [(&str, OwnedFd); 6] = [
        ("does not listen", deaf),
        ("does not listen", end.into()),
        ("no stream socket", tcp.into()),
        ("no stream socket", datagram.into()),
        ("other.sock", elsewhere.into()),
        ("no stream socket", file.into()),
    ];
    for (word, socket) in cases {
        let error = inherit(&path, socket).expect_err(word);
        assert!(matches!(error, SocketError::Inherited { .. }), "{error}");
        assert!(error.to_string().contains(word), "{error}");
        assert!(error.help().contains("ListenStream="), "{}", error.help());
    }
}

#[test]
fn a_handed_over_socket_keeps_its_lock() {
    let folder = folder();
    let path = folder.path().join("kms.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    let lock = std::fs::File::create(folder.path().join("kms.sock.lock")).expect("a lock file");
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("locked");
    let source = Source::HandedOver { socket: listener.into(), lock: lock.into() };
    let taken = acquire(&config(&path), source).expect("taken");
    assert!(matches!(bind(&path), Err(SocketError::Locked { .. })));
    drop(taken);
    drop(again(&config(&path)));
}
