//! Our program as an operator runs it: the binary, a config file, a socket, the admin listener.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use bao_kms_provider::front::client::Client;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::apiserver::PROVIDER;
use super::openbao::OpenBao;
use super::pki::private;
use super::process::Process;
use super::successor::Successor;
use super::wait::{LONG, SOON, until};
use super::{client, free_port};

/// The binary under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_bao-kms-provider");

/// Between two logins that do not help.
const REPAIR_INTERVAL: Duration = Duration::from_millis(1_800);
/// Logins that the beginning and the end of a trouble take.
const FEW: f64 = 2.0;

/// How many logins this long may see at most while they do not help: one every 1.8 s, and those at its ends.
pub fn most_logins(span: Duration) -> f64 {
    FEW + (span.as_secs_f64() / REPAIR_INTERVAL.as_secs_f64()).floor()
}

/// How the program logs in.
pub enum Login {
    Jwt,
    Cert,
}

/// What a test may change before the program starts; the file is YAML because JSON is.
pub struct Setup {
    pub config: Value,
    pub folder: PathBuf,
    pub jwt: PathBuf,
    pub ca: PathBuf,
    pub socket: PathBuf,
    admin: String,
    /// A file that holds how many seconds the program's clock is off, such as `+60`; it is looked at once a second.
    pub clock: Option<PathBuf>,
}

/// The running program.
pub struct Provider {
    process: Option<Process>,
    /// Who serves in place of `process`.
    successor: Option<Successor>,
    began: Instant,
    http: reqwest::Client,
    pub setup: Setup,
}

impl Setup {
    /// One pipeline against this OpenBao, with delays short enough for a test. It keeps a witness but with a certificate:
    /// whoever names no file for one is served as well.
    pub fn new(folder: &Path, bao: &OpenBao, login: Login) -> Self {
        let folder = folder.join("provider");
        std::fs::create_dir_all(folder.join("run")).expect("a folder");
        std::fs::set_permissions(folder.join("run"), std::fs::Permissions::from_mode(0o750)).expect("ours");
        let (jwt, ca) = (folder.join("identity.jwt"), folder.join("ca.pem"));
        std::fs::copy(&bao.ca, &ca).expect("OpenBao's CA");
        let witness = matches!(login, Login::Jwt);
        let auth = match login {
            Login::Jwt => {
                private(&jwt, &bao.token(3600));
                json!({ "jwt": { "mount": "jwt", "role": "kms", "file": jwt } })
            }
            Login::Cert => {
                let (cert, key, identity) = (folder.join("node.crt"), folder.join("node.key"), bao.certificate());
                std::fs::write(&cert, identity.cert_pem).expect("a file");
                private(&key, &identity.key_pem);
                json!({ "cert": { "mount": "cert", "role": "kms", "certFile": cert, "keyFile": key } })
            }
        };
        let socket = folder.join("run/kms.sock");
        let admin = format!("127.0.0.1:{}", free_port());
        let mut config = json!({
            "configVersion": "v1",
            "pipelines": [{
                "name": "workload-a",
                "socket": { "path": socket, "mode": "0600" },
                "identity": {
                    "providerName": PROVIDER, "clusterId": "workload-a", "openbaoId": "bao-test",
                    "transitMountId": "transit-test", "keyLineageId": "lineage-1",
                },
                "auth": auth,
                "backend": { "transit": {
                    "endpoints": [bao.url], "mount": bao.setup.mount, "key": bao.setup.key, "tls": { "caFile": ca },
                }},
                "rotation": { "activationDelay": "2s", "metadataInterval": "1s" },
                "health": { "tolerance": "1s" },
            }],
            "admin": { "listen": admin },
        });
        if witness {
            config["pipelines"][0]["witness"] = json!({ "file": folder.join("witness.json") });
        }
        Self { config, folder, jwt, ca, socket, admin, clock: None }
    }

    /// The only pipeline of the file.
    pub fn pipeline(&mut self) -> &mut Value {
        &mut self.config["pipelines"][0]
    }

    /// Starts the program; does not wait for anything.
    pub fn start(self) -> Provider {
        let command = self.command();
        self.start_below(command, &["serve"])
    }

    /// The program, with a clock of its own if it is to have one.
    fn command(&self) -> Command {
        let mut command = Command::new(PROGRAM);
        if let Some(clock) = &self.clock {
            command.env("LD_PRELOAD", faketime()).env("FAKETIME_TIMESTAMP_FILE", clock);
            // Only the clock of the day is off; what spans are measured with is the kernel's.
            command.env("FAKETIME_CACHE_DURATION", "1").env("DONT_FAKE_MONOTONIC", "1");
        }
        command
    }

    /// Starts it as `command` with these arguments before `--config`, such as by a service manager.
    pub fn start_below(self, command: Command, arguments: &[&str]) -> Provider {
        let mut provider =
            Provider { process: None, successor: None, began: Instant::now(), http: client(), setup: self };
        provider.spawn(command, arguments);
        provider
    }
}

impl Provider {
    /// Writes the file and starts the binary again.
    pub fn start(&mut self) {
        self.spawn(self.setup.command(), &["serve"]);
    }

    fn spawn(&mut self, mut command: Command, arguments: &[&str]) {
        let file = self.setup.folder.join("config.yaml");
        std::fs::write(&file, self.setup.config.to_string()).expect("a file");
        command.args(arguments).arg("--config").arg(&file);
        self.process = Some(Process::start("bao-kms-provider", &self.setup.folder, &mut command));
    }

    /// Ends it as a service manager does.
    pub fn stop(&mut self) -> ExitStatus {
        self.process.take().expect("it runs").stop()
    }

    /// Has a new process take over its sockets (SIGUSR2), and waits until the one before has ended.
    pub async fn hand_over(&mut self) {
        let before = self.successors().len();
        match &self.successor {
            Some(successor) => successor.signal(Signal::USR2),
            None => self.process.as_mut().expect("it runs").signal(Signal::USR2),
        }
        let pid = until("the new process", LONG, async || {
            self.successors().get(before).copied().ok_or_else(|| "nobody took over".to_owned())
        })
        .await;
        until("the end of the process before", LONG, async || {
            let ended = match &self.successor {
                Some(successor) => !successor.runs(),
                None => self.process.as_mut().expect("it ran").ended().is_some_and(|status| status.success()),
            };
            if ended { Ok(()) } else { Err("it still runs".to_owned()) }
        })
        .await;
        self.successor = Some(Successor::of(pid));
    }

    /// Every process that took over, as the log tells it.
    fn successors(&self) -> Vec<u64> {
        let log = self.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line["event"] == "handed_over").filter_map(|line| line["pid"].as_u64()).collect()
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.process.as_ref().expect("it runs").log()
    }

    /// Its process id, to show that nobody restarted it.
    pub fn id(&self) -> u32 {
        self.process.as_ref().expect("it runs").id()
    }

    /// A KMS client on its socket.
    pub async fn connect(&self) -> Client {
        until("the socket", LONG, async || {
            Client::connect(&self.setup.socket).await.map_err(|error| format!("{error:?}"))
        })
        .await
    }

    /// Waits until Status says `healthz`; gives the key_id beside it.
    pub async fn status(&self, healthz: &str) -> String {
        let client = self.connect().await;
        until(&format!("Status to say {healthz}"), LONG, async || {
            let status = client.status().await.map_err(|error| format!("{error:?}"))?;
            assert_eq!(status.version, "v2");
            if status.healthz == healthz { Ok(status.key_id) } else { Err(status.healthz) }
        })
        .await
    }

    /// Waits until Status is healthy, which has to be soon after `since`; gives the key_id.
    pub async fn recovers(&self, since: Instant) -> String {
        let key_id = self.status("ok").await;
        let took = since.elapsed();
        assert!(took < SOON, "Status was healthy after {took:?}");
        key_id
    }

    /// The sum of a metric over the series that carry all of these labels, such as `call="login"`.
    pub async fn sum(&self, metric: &str, labels: &[&str]) -> f64 {
        let (_, text) = self.admin("/metrics").await.expect("metrics");
        let series = text.lines().filter(|line| line.starts_with(&format!("{metric}{{")));
        let wanted = series.filter(|line| labels.iter().all(|label| line.contains(label)));
        wanted.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Since when it runs.
    pub fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// Logins so far, well or not.
    pub async fn logins(&self) -> f64 {
        self.sum("bao_kms_logins_total", &["call=\"login\""]).await
    }

    /// Waits until `/readyz` has this status and names `class` as the pipeline's reason; gives the whole answer.
    pub async fn readyz(&self, wanted: u16, class: &str) -> Value {
        until(&format!("/readyz to say {class}"), LONG, async || {
            let (status, text) = self.admin("/readyz").await?;
            let body: Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
            if status == wanted && text.contains(&format!("\"{class}\"")) {
                Ok(body)
            } else {
                Err(format!("{status}: {text}"))
            }
        })
        .await
    }

    /// One call of the admin listener: status and text.
    pub async fn admin(&self, path: &str) -> Result<(u16, String), String> {
        let url = format!("http://{}{path}", self.setup.admin);
        let reply =
            self.http.get(url).timeout(Duration::from_secs(5)).send().await.map_err(|error| error.to_string())?;
        let status = reply.status().as_u16();
        Ok((status, reply.text().await.map_err(|error| error.to_string())?))
    }
}

/// The library of Debian's `faketime`, which `.ci/run` installs.
fn faketime() -> PathBuf {
    let folders = std::fs::read_dir("/usr/lib").expect("/usr/lib").flatten();
    let libraries = folders.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"));
    libraries.into_iter().find(|library| library.exists()).expect("faketime is missing: install the package")
}
