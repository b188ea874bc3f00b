//! Who may connect: the lists decide by what the kernel says of the caller, and without lists the mode alone does.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bao_kms_provider::front::AllowPeers;
use bao_kms_provider::units::Mode;
use rustix::process::{Gid, Uid};

use super::puppet::{House, PATIENCE, healthy, reverse};

/// Ids that belong to nobody on a usual machine.
const UID: u32 = 471_101;
const GID: u32 = 471_202;

/// A user and its groups.
#[derive(Clone, Debug)]
struct Caller {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

fn root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whoever runs the tests.
fn me() -> Caller {
    Caller {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        groups: rustix::process::getgroups().expect("groups").iter().map(|gid| gid.as_raw()).collect(),
    }
}

/// Connects as a caller, on a thread that takes its identity and ends with it, and says whether the door answers.
fn knock(path: &Path, caller: &Caller) -> std::io::Result<bool> {
    let (path, caller, change) = (path.to_owned(), caller.clone(), root());
    let thread = std::thread::spawn(move || {
        if change {
            let groups: Vec<Gid> = caller.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
            rustix::thread::set_thread_groups(&groups)?;
            let (gid, uid) = (Gid::from_raw(caller.gid), Uid::from_raw(caller.uid));
            rustix::thread::set_thread_res_gid(gid, gid, gid)?;
            rustix::thread::set_thread_res_uid(uid, uid, uid)?;
        }
        let mut stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        // A refused caller may meet the closed door here or below; an admitted one is sent a SETTINGS frame.
        let _ = stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
        let mut frame = [0; 9];
        match stream.read(&mut frame) {
            Ok(count) => Ok(count > 0),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(false),
            Err(error) => Err(error),
        }
    });
    thread.join().expect("the caller's thread")
}

fn open(uids: &[u32], gids: &[u32], mode: u32) -> House {
    let key = healthy();
    let mirrored = key.clone();
    let edit = |config: &mut bao_kms_provider::front::Config| {
        config.mode = Mode::new(mode);
        config.allow_peers = AllowPeers { uids: uids.to_vec(), gids: gids.to_vec() };
    };
    House::open_with(key, 8, edit, move |request| {
        let answer = reverse(&mirrored, request);
        async move { answer }
    })
}

async fn comes_in(house: &House, caller: Caller) -> bool {
    let path = house.path();
    tokio::task::spawn_blocking(move || knock(&path, &caller)).await.expect("task").expect("an outcome")
}

#[tokio::test]
async fn without_lists_the_mode_decides() {
    assert!(comes_in(&open(&[], &[], 0o600), me()).await);
    if root() {
        let stranger = Caller { uid: UID, gid: GID, groups: vec![] };
        assert!(comes_in(&open(&[], &[], 0o666), stranger.clone()).await);
        let house = open(&[], &[], 0o660);
        let path = house.path();
        let outcome = tokio::task::spawn_blocking(move || knock(&path, &stranger)).await.expect("task");
        assert_eq!(outcome.expect_err("the mode forbids it").kind(), std::io::ErrorKind::PermissionDenied);
    }
}

#[tokio::test]
async fn a_list_of_users_lets_in_its_own_and_nobody_else() {
    let own = me();
    assert!(comes_in(&open(&[own.uid], &[], 0o666), own.clone()).await);
    // Neither root nor the service's own user is let in because of who it is.
    let house = open(&[UID], &[], 0o666);
    assert!(!comes_in(&house, own).await);
    house.until("peers_refused_total", 1.0).await;
    house.until("connections", 0.0).await;
    if root() {
        assert!(comes_in(&house, Caller { uid: UID, gid: GID, groups: vec![] }).await);
        assert!(!comes_in(&house, Caller { uid: UID + 1, gid: UID, groups: vec![UID] }).await);
        house.until("peers_refused_total", 2.0).await;
    }
}

#[tokio::test]
async fn a_list_of_groups_lets_in_its_members() {
    let own = me();
    assert!(comes_in(&open(&[], &[own.gid], 0o666), own.clone()).await);
    for group in &own.groups {
        assert!(comes_in(&open(&[], &[*group], 0o666), own.clone()).await, "supplementary group {group}");
    }
    let house = open(&[], &[GID], 0o666);
    assert!(!comes_in(&house, own).await);
    if root() {
        assert!(comes_in(&house, Caller { uid: UID, gid: GID, groups: vec![] }).await, "primary");
        assert!(comes_in(&house, Caller { uid: UID, gid: UID, groups: vec![7, GID, 9] }).await, "supplementary");
        assert!(!comes_in(&house, Caller { uid: GID, gid: UID, groups: vec![7, 9] }).await, "neither");
        let many = (1..=2_000).chain([GID]).collect();
        assert!(comes_in(&house, Caller { uid: UID, gid: UID, groups: many }).await, "one of very many");
    }
}

#[tokio::test]
async fn one_of_both_lists_is_enough() {
    let own = me();
    assert!(comes_in(&open(&[own.uid], &[GID], 0o666), own.clone()).await);
    assert!(comes_in(&open(&[UID], &[own.gid], 0o666), own.clone()).await);
    assert!(!comes_in(&open(&[UID], &[GID], 0o666), own).await);
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("lock").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn refusals_are_counted_each_and_told_once_a_minute() {
    let log = Log::default();
    let sink = log.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || sink.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let house = open(&[UID], &[], 0o666);
    for _ in 0..5 {
        assert!(!comes_in(&house, me()).await);
    }
    house.until("peers_refused_total", 5.0).await;
    let text = String::from_utf8(log.0.lock().expect("lock").clone()).expect("text");
    assert_eq!(text.matches("peer_refused").count(), 1, "{text}");
}
