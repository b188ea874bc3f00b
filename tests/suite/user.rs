//! The users of `deploy/systemd`, played by uids that belong to nobody: a service without privileges, configuration that
//! is root's, and a socket for a group. Whoever is in it comes in, and nobody else.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Gid, Uid};

use super::support::{Stage, status_until};

/// `openbao-kms`, user and group.
pub(super) const SERVICE: u32 = 471_401;
/// `openbao-kms-socket`.
const SOCKET: u32 = 471_402;
/// An API server that is not root.
const API_SERVER: u32 = 471_403;
const STRANGER: u32 = 471_404;

/// The program; killed when dropped.
struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        // A process that has ended already is as good as killed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Does something on a thread that takes this identity and ends with it; what it starts inherits the identity.
pub(super) fn as_user<T: Send>(id: u32, groups: &[u32], work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let groups: Vec<_> = groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
            rustix::thread::set_thread_groups(&groups).expect("groups");
            let (gid, uid) = (Gid::from_raw(id), Uid::from_raw(id));
            rustix::thread::set_thread_res_gid(gid, gid, gid).expect("the group");
            rustix::thread::set_thread_res_uid(uid, uid, uid).expect("the user");
            work()
        });
        thread.join().expect("the thread ends")
    })
}

/// A directory as tmpfiles.d makes it.
fn directory(path: &Path, mode: u32, uid: u32, gid: u32) -> PathBuf {
    std::fs::create_dir(path).expect("a folder");
    given(path, mode, uid, gid);
    path.to_owned()
}

fn given(path: &Path, mode: u32, uid: u32, gid: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("mode");
    chown(path, Some(uid), Some(gid)).expect("given away");
}

/// The program where anybody may start it: the checkout may lie where nobody else can go.
pub(super) fn given_to_all(stage: &Stage) -> PathBuf {
    let program = stage.path("bao-kms-provider");
    let built = Path::new(env!("CARGO_BIN_EXE_bao-kms-provider"));
    std::fs::hard_link(built, &program).or_else(|_| std::fs::copy(built, &program).map(drop)).expect("the program");
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).expect("mode");
    program
}

/// What `probe` comes to for somebody.
fn probe(program: &Path, socket: &Path, id: u32, groups: &[u32]) -> (Option<i32>, String) {
    let mut command = Command::new(program);
    command.args(["probe", "--timeout", "30s", "--socket"]).arg(socket);
    let output = as_user(id, groups, || command.output()).expect("it runs");
    (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).expect("text"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_services_user_serves_the_sockets_group_and_nobody_else() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not shown: giving files away and becoming somebody else takes root");
        return;
    }
    let stage = Stage::set().await;
    std::fs::set_permissions(stage.dir.path(), PermissionsExt::from_mode(0o755)).expect("mode");
    let etc = directory(&stage.path("etc"), 0o750, 0, SERVICE);
    let state = directory(&stage.path("state"), 0o700, SERVICE, SERVICE);
    let run = directory(&stage.path("run"), 0o750, SERVICE, SOCKET);
    let program = given_to_all(&stage);

    let socket = run.join("kms.sock");
    let (jwt, ca) = (state.join("identity.jwt"), etc.join("openbao-ca.pem"));
    let config = stage
        .config("")
        .replace(&stage.socket().display().to_string(), &socket.display().to_string())
        .replace("mode: \"0600\"", &format!("mode: \"0660\", group: \"{SOCKET}\""))
        .replace(&stage.path("identity.jwt").display().to_string(), &jwt.display().to_string())
        .replace(&stage.path("ca.pem").display().to_string(), &ca.display().to_string());
    std::fs::rename(stage.path("identity.jwt"), &jwt).expect("moved");
    given(&jwt, 0o600, SERVICE, SERVICE);
    std::fs::rename(stage.path("ca.pem"), &ca).expect("moved");
    given(&ca, 0o644, 0, 0);
    let file = etc.join("config.yaml");
    std::fs::write(&file, config).expect("written");
    given(&file, 0o644, 0, 0);

    let mut command = Command::new(&program);
    command.args(["serve", "--config"]).arg(&file).env("STATE_DIRECTORY", &state).stderr(Stdio::null());
    let mut service = Service(as_user(SERVICE, &[SOCKET], || command.spawn()).expect("the program starts"));
    let began = std::time::Instant::now();
    let client = loop {
        match bao_kms_provider::front::client::Client::connect(&socket).await {
            Ok(client) => break client,
            Err(error) => assert!(began.elapsed() < super::support::PATIENCE, "{error}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    let meta = socket.symlink_metadata().expect("the socket");
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o777), (SERVICE, SOCKET, 0o660));

    let (code, text) = probe(&program, &socket, API_SERVER, &[SOCKET]);
    assert_eq!(code, Some(0), "{text}");
    let (code, text) = probe(&program, &socket, STRANGER, &[SERVICE]);
    assert_eq!(code, Some(4), "{text}");
    // With the way there open the socket itself still keeps strangers out.
    given(&run, 0o755, SERVICE, SOCKET);
    let (code, text) = probe(&program, &socket, STRANGER, &[SERVICE]);
    assert_eq!(code, Some(4), "{text}");

    let pid = rustix::process::Pid::from_raw(i32::try_from(service.0.id()).expect("a pid")).expect("not zero");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signalled");
    assert_eq!(service.0.wait().expect("it ends").code(), Some(0));
}
