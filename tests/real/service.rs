//! The program under a service manager: it serves the socket that it is handed, says when it is ready whatever OpenBao
//! does, says its reason, and feeds the watchdog.

use std::collections::BTreeSet;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::openbao::OpenBao;
use crate::support::provider::{Login, PROGRAM, Setup};

/// Collects what the service manager is told until all of `wanted` was heard.
fn hears(manager: &UnixDatagram, wanted: &[&str]) {
    let mut heard = BTreeSet::new();
    let end = Instant::now() + Duration::from_secs(60);
    while !wanted.iter().all(|word| heard.contains(*word)) {
        assert!(Instant::now() < end, "heard {heard:?}, not all of {wanted:?}");
        let mut message = [0; 1024];
        if let Ok(length) = manager.recv(&mut message) {
            heard.extend(String::from_utf8_lossy(&message[..length]).lines().map(str::to_owned));
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
    let manager = UnixDatagram::bind(&notify).expect("a socket");
    manager.set_read_timeout(Some(Duration::from_millis(200))).expect("a time-out");
    let setup = Setup::new(folder.path(), &bao, Login::Jwt);
    let mut command = Command::new("systemd-socket-activate");
    command.arg("--listen").arg(&setup.socket).arg("--fdname=workload-a");
    command.arg(format!("--setenv=NOTIFY_SOCKET={}", notify.display())).arg("--setenv=WATCHDOG_USEC=900000");
    let mut provider = setup.start_below(command, &[PROGRAM, "serve"]);

    // The first connection makes the stand-in for systemd start the program.
    let client = provider.connect().await;
    let first = client.status().await.expect("Status is answered on the inherited socket");
    assert_ne!(first.healthz, "ok");
    hears(&manager, &["READY=1", "WATCHDOG=1", "STATUS=workload-a: unreachable"]);

    bao.start().await;
    provider.status("ok").await;
    hears(&manager, &["STATUS=workload-a: ok", "WATCHDOG=1"]);
    assert!(provider.stop().success());
    hears(&manager, &["STOPPING=1"]);
    assert!(provider.setup.socket.exists(), "the socket is the service manager's, not ours to remove");
}
