//! The program under a service manager: it serves the socket that it is handed, says when it is ready whatever OpenBao
//! does, says its reason, and feeds the watchdog.

use std::collections::BTreeSet;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::support::openbao::{OpenBao, leader};
use crate::support::provider::{Login, PROGRAM, Setup};

/// What the service manager is told. A thread takes every message at once, as systemd does: the sender would wait.
struct Manager(Receiver<String>);

impl Manager {
    fn listen(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).expect("a socket");
        let (told, hears) = channel();
        std::thread::spawn(move || {
            let mut message = [0; 1024];
            while let Ok(length) = socket.recv(&mut message) {
                let text = String::from_utf8_lossy(&message[..length]).into_owned();
                if text.lines().any(|line| told.send(line.to_owned()).is_err()) {
                    break;
                }
            }
        });
        Self(hears)
    }

    /// Waits until each of these was said since the last time.
    fn hears(&self, wanted: &[&str]) {
        let mut heard = BTreeSet::new();
        while !wanted.iter().all(|word| heard.contains(*word)) {
            match self.0.recv_timeout(Duration::from_secs(60)) {
                Ok(line) => heard.insert(line),
                Err(error) => panic!("heard {heard:?}, not all of {wanted:?}: {error}"),
            };
        }
    }
}

#[tokio::test]
async fn an_inherited_socket_serves_and_the_service_manager_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut bao = OpenBao::durable(folder.path()).await;
    bao.provision().await;
    // Readiness does not wait for OpenBao.
    bao.stop();

    let notify = folder.path().join("notify");
    let manager = Manager::listen(&notify);
    let setup = Setup::new(folder.path(), &bao, Login::Jwt);
    let mut command = Command::new("systemd-socket-activate");
    command.arg("--listen").arg(&setup.socket).arg("--fdname=workload-a");
    command.arg(format!("--setenv=NOTIFY_SOCKET={}", notify.display())).arg("--setenv=WATCHDOG_USEC=900000");
    let mut provider = setup.start_below(command, &[PROGRAM, "serve"]);

    // The first connection makes the stand-in for systemd start the program.
    let client = provider.connect().await;
    let first = client.status().await.expect("Status is answered on the inherited socket");
    assert_ne!(first.healthz, "ok");
    manager.hears(&["READY=1", "WATCHDOG=1", "STATUS=workload-a: unreachable"]);

    bao.start().await;
    leader(std::slice::from_ref(&bao)).await;
    provider.recovers(Instant::now()).await;
    manager.hears(&["STATUS=workload-a: ok", "WATCHDOG=1"]);
    assert!(provider.stop().success());
    manager.hears(&["STOPPING=1"]);
    assert!(provider.setup.socket.exists(), "the socket is the service manager's, not ours to remove");
}

/// A minute without any socket ends the program, so that the service manager and its alerts see it.
#[tokio::test]
async fn without_any_socket_for_a_minute_the_program_ends_with_5() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("a folder");
    let open = folder.path().join("open-to-all");
    std::fs::create_dir(&open).expect("a directory");
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).expect("its mode");
    let config = folder.path().join("config.yaml");
    let text = format!(
        "configVersion: v1
pipelines:
  - name: a
    socket: {{ path: {} }}
    identity: {{ providerName: p, clusterId: c, openbaoId: b, transitMountId: m, keyLineageId: l }}
    auth: {{ jwt: {{ role: kms, file: /nowhere/identity.jwt }} }}
    backend: {{ transit: {{ endpoints: [ \"https://127.0.0.1:1\" ], mount: transit, key: k }} }}
",
        open.join("kms.sock").display()
    );
    std::fs::write(&config, text).expect("the configuration");
    let run = move || Command::new(PROGRAM).args(["serve", "--config"]).arg(config).output();
    let began = Instant::now();
    let output = tokio::task::spawn_blocking(run).await.expect("the thread").expect("the program");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(began.elapsed() >= Duration::from_secs(60), "others may still come within the minute");
    assert!(said.contains("socket_refused") && said.contains("no pipeline could get its socket"), "{said}");
}
