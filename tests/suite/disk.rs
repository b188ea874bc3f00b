//! Full and read-only disks under the socket, the log, and the configuration: what runs goes on and says what it misses,
//! and what starts does so as soon as it can. Each disk is a tiny one of its own, which only root may mount.

use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bao_kms_provider::dev::server::Fault;
use bao_kms_provider::front::client::Client;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::handover::Service;
use super::inherit;
use super::load::{Load, round};
use super::support::{KEY, PATIENCE, Program, Stage, eventually, skipped, status_until};

/// A disk of 64 KiB and 32 inodes; gone when dropped.
struct Disk(PathBuf);

// === impl Disk ===

impl Disk {
    /// Mounts one, or says why not.
    fn mount(stage: &Stage, name: &str) -> Option<Self> {
        let path = stage.path(name);
        std::fs::create_dir(&path).expect("a directory");
        if run("mount", &["-t", "tmpfs", "-o", "size=64k,nr_inodes=32,mode=0755", "tmpfs"], &path) {
            return Some(Self(path));
        }
        skipped("a disk of its own needs a mount, which only root may make");
        None
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// To the last byte and the last inode.
    fn fill(&self) {
        let full = std::fs::write(self.path("filler"), vec![0; 1 << 20]).expect_err("more than the disk holds");
        assert_eq!(full.kind(), ErrorKind::StorageFull);
        for at in 0.. {
            if std::fs::write(self.path(&format!("filler{at}")), "").is_err() {
                return;
            }
        }
    }

    fn empty(&self) {
        for entry in std::fs::read_dir(&self.0).expect("the disk").flatten() {
            if entry.file_name().to_string_lossy().starts_with("filler") {
                std::fs::remove_file(entry.path()).expect("removed");
            }
        }
    }

    /// A read-only view over the disk, and no longer. The disk itself cannot be made read-only while the program holds its
    /// lock; what a node does to a disk with errors is out of a test's reach.
    fn allow_writing(&self, allowed: bool) {
        let path = &self.0.display().to_string();
        match allowed {
            true => assert!(run("umount", &["--lazy"], &self.0)),
            false => {
                assert!(run("mount", &["--bind", path], &self.0) && run("mount", &["-o", "remount,bind,ro"], &self.0))
            }
        }
        let refused =
            std::fs::create_dir(self.path("try")).is_err_and(|error| error.kind() == ErrorKind::ReadOnlyFilesystem);
        assert_eq!(refused, !allowed);
        // Where it is refused there is none.
        let _ = std::fs::remove_dir(self.path("try"));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a program that is still there must not keep it. Once for each view.
        while run("umount", &["--lazy"], &self.0) {}
    }
}

fn run(command: &str, arguments: &[&str], path: &Path) -> bool {
    let status = Command::new(command).args(arguments).arg(path).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// [`Stage::config`] with the socket on another disk.
fn on_disk(stage: &Stage, disk: &Disk) -> String {
    stage.config("").replace(&stage.socket().display().to_string(), &disk.path("kms.sock").display().to_string())
}

async fn connect(path: &Path) -> Client {
    let began = Instant::now();
    loop {
        match Client::connect(path).await {
            Ok(client) => return client,
            Err(error) => assert!(began.elapsed() < PATIENCE, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The program, once Status is healthy.
async fn healthy(stage: &Stage, config: &str, path: &Path) -> (Program, Client) {
    let program = stage.serve(config);
    let client = connect(path).await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    (program, client)
}

/// What runs goes on.
async fn goes_on(path: &Path, client: &Client) {
    let load = Load::start(client, 2);
    tokio::time::sleep(Duration::from_secs(1)).await;
    round(&connect(path).await, &[7; 32]).await.expect("a new connection too");
    load.end().await.assert_clean(20, "with the disk as it is");
}

/// What starts says why it has no socket, and has it once it can.
async fn starts_after(stage: &Stage, config: &str, path: &Path, says: &str, repair: impl FnOnce()) {
    let program = stage.serve(config);
    program.logged("socket_refused").await;
    assert!(program.output().contains(says), "{}", program.output());
    let (ready, report) = stage.admin("/readyz").await;
    assert!(ready == 503 && report.contains(says), "{ready} {report}");
    repair();
    let client = connect(path).await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    round(&client, &[7; 32]).await.expect("without a restart");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_the_socket_stops_neither_what_runs_nor_what_starts_in_a_dead_ones_place() {
    let stage = Stage::set().await;
    let Some(disk) = Disk::mount(&stage, "run") else { return };
    let (config, path) = (on_disk(&stage, &disk), disk.path("kms.sock"));
    let (first, client) = healthy(&stage, &config, &path).await;
    disk.fill();
    goes_on(&path, &client).await;
    // Dropping kills it: its socket file and its lock stay, and are all that a new one needs.
    drop(first);
    let (second, client) = healthy(&stage, &config, &path).await;
    round(&client, &[7; 32]).await.expect("served in the dead one's place");
    assert!(!second.output().contains("socket_refused"), "{}", second.output());

    // Where there is none, there is no place to be had.
    assert_eq!(second.stop().0, Some(0));
    std::fs::remove_file(&path).expect("the socket that it left");
    disk.fill();
    starts_after(&stage, &config, &path, "No space left on device", || disk.empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_disk_under_the_socket_stops_nothing_that_runs_and_what_starts_says_so() {
    let stage = Stage::set().await;
    let Some(disk) = Disk::mount(&stage, "run") else { return };
    let (config, path) = (on_disk(&stage, &disk), disk.path("kms.sock"));
    let (first, client) = healthy(&stage, &config, &path).await;
    disk.allow_writing(false);
    goes_on(&path, &client).await;
    drop(first);
    starts_after(&stage, &config, &path, "Read-only file system", || disk.allow_writing(true)).await;
}

/// A socket that is there already needs no room: neither that of a service manager nor that of the process before.
#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_is_passed_on_is_served_whatever_the_disk_has_room_for() {
    let stage = Stage::set().await;
    let Some(disk) = Disk::mount(&stage, "run") else { return };
    let (config, path) = (on_disk(&stage, &disk), disk.path("kms.sock"));
    let manager = UnixListener::bind(&path).expect("a socket");
    disk.fill();
    disk.allow_writing(false);
    let file = stage.write("config.yaml", &config);
    let passed: OwnedFd = manager.try_clone().expect("a copy").into();
    let inherited = inherit::serve(&file, "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=a", Some(passed));
    let client = connect(&path).await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    round(&client, &[7; 32]).await.expect("served");
    drop((inherited, manager));

    // The same by a hand-over: the first one bound while there was room.
    disk.allow_writing(true);
    disk.empty();
    let mut service = Service::start(&stage, &config);
    let client = connect(&path).await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    disk.fill();
    disk.allow_writing(false);
    service.signal(Signal::USR2);
    tokio::task::block_in_place(|| service.replaced());
    let client = connect(&path).await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    round(&client, &[7; 32]).await.expect("served by the next");
}

/// The one file that the program writes beside its socket and its lock.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_the_witness_stops_nothing() {
    let stage = Stage::set().await;
    let Some(disk) = Disk::mount(&stage, "state") else { return };
    let witness = disk.path("a.witness.json");
    let _program = stage.serve(&stage.config(&format!("    witness: {{ file: {} }}", witness.display())));
    let client = stage.client().await;
    let first = status_until(&client, "ok", |status| status.healthz == "ok").await;
    eventually("it is kept", PATIENCE, || async {
        std::fs::read(&witness).map(drop).map_err(|error| error.to_string())
    })
    .await;
    let before = std::fs::read(&witness).expect("a witness");
    disk.fill();
    let load = Load::start(&client, 2);
    assert!(stage.bao().call("POST", &format!("{KEY}/rotate"), &json!({})).await.expect("asked").is_ok());
    status_until(&client, "rotated", |status| status.healthz == "ok" && status.key_id != first.key_id).await;
    let trouble = "bao_kms_witness_trouble{pipeline=\"a\"}";
    let shows = async |wanted: u64| {
        eventually("the metric", PATIENCE, || async {
            match stage.metric(trouble).await {
                now if now == wanted => Ok(()),
                now => Err(now.to_string()),
            }
        })
        .await;
    };
    shows(1).await;
    assert_eq!(std::fs::read(&witness).expect("a witness"), before, "the old one is whole");
    disk.empty();
    shows(0).await;
    load.end().await.assert_clean(20, "with the disk as it is");
    assert_ne!(std::fs::read(&witness).expect("a witness"), before);
}

/// stderr to a file on a full disk: nobody can read it, and nobody waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_the_log_holds_nobody_up() {
    let stage = Stage::set().await;
    let Some(disk) = Disk::mount(&stage, "log") else { return };
    let file = stage.write("config.yaml", &stage.config(""));
    let log = disk.path("log");
    let program = inherit::serve(&file, &format!("exec 2>>{};", log.display()), None);
    let pid = Pid::from_child(&program.0);
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    disk.fill();
    let load = Load::start(&client, 4);
    let reload = |level: &str| {
        stage.write("config.yaml", &stage.config("").replace("level: trace", level));
        kill_process(pid, Signal::HUP).expect("signalled");
    };
    // Each of these has something to say: calls that fail, a login, a reload.
    stage.server.faults().add_times("transit/", Fault::Malformed, 8);
    tokio::time::sleep(Duration::from_secs(1)).await;
    stage.server.state().revoke_all_tokens();
    reload("level: debug");
    tokio::time::sleep(Duration::from_secs(2)).await;
    load.end().await.assert_clean(50, "with a log that is full");
    assert_eq!(stage.admin("/livez").await.0, 200);
    assert_eq!(stage.metric("bao_kms_panics_total{pipeline=\"a\"}").await, 0);
    assert!(stage.server.calls().of("auth/login") > 1, "something was there to be said");
    disk.empty();
    let length = std::fs::metadata(&log).expect("the log").len();
    reload("level: info");
    eventually("the log goes on once there is room", Duration::from_secs(10), || async {
        let now = std::fs::metadata(&log).expect("the log").len();
        if now > length { Ok(()) } else { Err(format!("{now} bytes")) }
    })
    .await;
}

/// Configuration and credentials on a disk that is read-only, as of an image or a projected volume.
#[tokio::test(flavor = "multi_thread")]
async fn configuration_and_credentials_are_read_from_a_read_only_disk() {
    let stage = Stage::set().await;
    let Some(disk) = Disk::mount(&stage, "etc") else { return };
    let mut config = stage.config("");
    for name in ["identity.jwt", "ca.pem"] {
        std::fs::copy(stage.path(name), disk.path(name)).expect("copied");
        config = config.replace(&stage.path(name).display().to_string(), &disk.path(name).display().to_string());
    }
    let file = disk.path("config.yaml");
    let write = |text: &str| {
        std::fs::write(&file, text).expect("written");
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).expect("mode");
    };
    write(&config);
    disk.allow_writing(false);
    let mut command = Command::new(env!("CARGO_BIN_EXE_bao-kms-provider"));
    command.args(["serve", "--config"]).arg(&file);
    let program = Program::spawn(command);
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    program.signal(Signal::HUP);
    stage.server.state().revoke_all_tokens();
    round(&client, &[7; 32]).await.expect("a login reads the files again");
    disk.allow_writing(true);
    write(&config.replace("level: trace", "level: debug"));
    disk.allow_writing(false);
    program.signal(Signal::HUP);
    program.logged("\"reloaded\"").await;
    round(&client, &[7; 32]).await.expect("after a reload");
}
