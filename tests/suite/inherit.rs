//! Sockets from the service manager, and a door that is there before OpenBao: the program as a process, with nothing
//! behind it.

use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use bao_kms_provider::front::client::{Client, StatusResponse};

use super::puppet::{PATIENCE, folder};

/// The program; killed when dropped.
pub(super) struct Program(pub(super) Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A pipeline `workload` whose OpenBao does not exist and whose credential is not there.
pub(super) fn write_config(folder: &Path) -> PathBuf {
    let config = format!(
        "configVersion: v1
pipelines:
  - name: workload
    socket: {{ path: {folder}/kms.sock }}
    identity: {{ providerName: p, clusterId: c, openbaoId: b, transitMountId: m, keyLineageId: l }}
    auth: {{ jwt: {{ role: kms, file: {folder}/missing.jwt }} }}
    backend: {{ transit: {{ endpoints: [ \"https://127.0.0.1:1\" ], mount: transit, key: k }} }}
",
        folder = folder.display()
    );
    let file = folder.join("config.yaml");
    std::fs::write(&file, config).expect("written");
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).expect("mode");
    file
}

/// Starts the program as a service manager does: descriptors from 3 on, and the process's own number in the environment.
pub(super) fn serve(config: &Path, variables: &str, socket: Option<OwnedFd>) -> Program {
    serve_as(env!("CARGO_BIN_EXE_bao-kms-provider"), config, variables, socket)
}

/// The same under another path of the program.
pub(super) fn serve_as(program: &str, config: &Path, variables: &str, socket: Option<OwnedFd>) -> Program {
    let start = format!("{variables} exec \"$0\" serve --config \"$1\" 3<&0 0</dev/null");
    let child = Command::new("/bin/sh")
        .args(["-c", &start, program])
        .arg(config)
        .stdin(socket.map_or_else(Stdio::null, Stdio::from))
        .stderr(Stdio::null())
        .spawn();
    Program(child.expect("the program starts"))
}

pub(super) async fn status(path: &Path) -> StatusResponse {
    let start = Instant::now();
    loop {
        let answer = match Client::connect(path).await {
            Ok(client) => client.with_timeout(PATIENCE).status().await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(status) => return status,
            Err(error) => assert!(start.elapsed() < PATIENCE, "{error}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_socket_of_the_service_manager_is_served_and_outlives_the_program() {
    let folder = folder();
    let path = folder.path().join("kms.sock");
    let config = write_config(folder.path());
    let manager = UnixListener::bind(&path).expect("a socket");
    let inode = path.symlink_metadata().expect("it").ino();
    for _ in 0..2 {
        let passed = manager.try_clone().expect("a copy");
        let variables = "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=workload";
        let program = serve(&config, variables, Some(passed.into()));
        let status = status(&path).await;
        assert_eq!((status.version.as_str(), status.key_id.as_str()), ("v2", ""));
        assert_ne!(status.healthz, "ok");
        drop(program);
        UnixStream::connect(&path).expect("a caller between two programs waits in the backlog");
    }
    assert_eq!(path.symlink_metadata().expect("it").ino(), inode);
}

#[tokio::test]
async fn descriptors_for_another_process_are_left_alone_and_the_socket_is_bound() {
    let folder = folder();
    let path = folder.path().join("kms.sock");
    let elsewhere = UnixListener::bind(folder.path().join("other.sock")).expect("a socket");
    let variables = "LISTEN_PID=1 LISTEN_FDS=1 LISTEN_FDNAMES=workload";
    let _program = serve(&write_config(folder.path()), variables, Some(elsewhere.into()));
    assert_eq!(status(&path).await.version, "v2");
    assert_eq!(path.symlink_metadata().expect("it").mode() & 0o777, 0o660);
}

#[tokio::test]
async fn a_socket_of_another_name_or_place_does_not_keep_the_pipeline_from_binding() {
    for names in ["another", "workload"] {
        let folder = folder();
        let elsewhere = UnixListener::bind(folder.path().join("other.sock")).expect("a socket");
        let variables = format!("LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES={names}");
        let _program = serve(&write_config(folder.path()), &variables, Some(elsewhere.into()));
        assert_eq!(status(&folder.path().join("kms.sock")).await.version, "v2", "{names}");
    }
}

#[tokio::test]
async fn sockets_that_nobody_asks_for_are_told_by_name() {
    let folder = folder();
    let (config, log) = (write_config(folder.path()), folder.path().join("log"));
    let manager = UnixListener::bind(folder.path().join("kms.sock")).expect("a socket");
    // The same socket twice: descriptor 4 is a copy of 3.
    let again = format!("exec 2>{} 4<&0; LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=other:other", log.display());
    let program = serve(&config, &again, Some(manager.into()));
    let began = Instant::now();
    let text = loop {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        if text.contains("does not have: other") {
            break text;
        }
        assert!(began.elapsed() < PATIENCE, "{text}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    assert!(text.contains("two sockets of the name") && text.contains("FileDescriptorName="), "{text}");
    drop(program);
}

#[tokio::test]
async fn after_a_power_loss_the_next_program_takes_the_socket_over() {
    let folder = folder();
    let (path, config) = (folder.path().join("kms.sock"), write_config(folder.path()));
    let first = serve(&config, "", None);
    assert_eq!(status(&path).await.version, "v2");
    let (before, directory) = (path.symlink_metadata().expect("it").ino(), folder.path().metadata().expect("it").ino());
    // Dropping kills without a chance to clean up.
    drop(first);
    assert_eq!(path.symlink_metadata().expect("the file stays").ino(), before);
    let _second = serve(&config, "", None);
    assert_eq!(status(&path).await.version, "v2");
    assert_eq!(folder.path().metadata().expect("it").ino(), directory, "a bind mount of the directory goes on");
}
