//! `probe`: what kube-apiserver would meet at a socket, step by step, as the calling user.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::{Exit, runtime, say};
use crate::front::client::{Client, ClientError, EncryptResponse};
use crate::key::annotations;
use crate::units::Span;

/// The versions of the protocol that kube-apiserver accepts.
const VERSIONS: [&str; 2] = ["v2", "v2beta1"];
/// What a key_id and a ciphertext may measure, in bytes.
const MAX_FIELD: usize = 1024;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The socket to ask.
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// How long each call may take.
    #[arg(long, default_value = "3s")]
    timeout: Span,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// One step and how it went.
#[derive(Serialize)]
struct Step {
    name: &'static str,
    ok: bool,
    millis: f64,
    detail: String,
}

#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    ok: bool,
    /// What Status announces: the same on every node before the first object is written.
    key_id: Option<String>,
    steps: Vec<Step>,
}

pub(super) fn run(args: &Args) -> Exit {
    let Ok(runtime) = runtime() else {
        eprintln!("the runtime cannot start");
        return Exit::Unexpected;
    };
    let report = runtime.block_on(probe(args));
    let text = if args.json {
        format!("{}\n", serde_json::to_string_pretty(&report).unwrap_or_default())
    } else {
        report
            .steps
            .iter()
            .map(|step| {
                format!(
                    "{} {:<8} {:>8.2} ms  {}\n",
                    if step.ok { "ok  " } else { "FAIL" },
                    step.name,
                    step.millis,
                    step.detail
                )
            })
            .collect()
    };
    match say(&text) {
        Exit::Ok if report.ok => Exit::Ok,
        Exit::Ok => Exit::CheckFailed,
        other => other,
    }
}

async fn probe(args: &Args) -> Report {
    let mut report = Report::default();
    report.ok = steps(args, &mut report).await.is_some();
    report
}

/// Every step in order; `None` at the first that fails.
async fn steps(args: &Args, report: &mut Report) -> Option<()> {
    let within: Duration = args.timeout.get();
    let connect = async {
        let connected = tokio::time::timeout(within, Client::connect(&args.socket)).await;
        connected.map_err(|_| "nobody accepted the connection in time".to_owned())?.map_err(describe)
    };
    let client = report.step("connect", connect, |_| args.socket.display().to_string()).await?.with_timeout(within);
    let status = async {
        let status = client.status().await.map_err(|error| error.to_string())?;
        let fits = VERSIONS.contains(&&*status.version) && status.healthz == "ok" && is_key_id(&status.key_id);
        if fits {
            Ok(status)
        } else {
            Err(format!("version {:?}, healthz {:?}, key_id {:?}", status.version, status.healthz, status.key_id))
        }
    };
    let status =
        report.step("status", status, |status| format!("{} ok, key_id {}", status.version, status.key_id)).await?;
    report.key_id = Some(status.key_id.clone());
    let mut seed = vec![0; 32];
    aws_lc_rs::rand::fill(&mut seed).ok()?;
    let encrypt = async {
        let sealed = client.encrypt(seed.clone(), "probe").await.map_err(|error| error.to_string())?;
        judge(&sealed, &status.key_id).map(|()| sealed).map_err(str::to_owned)
    };
    let sealed = report.step("encrypt", encrypt, |sealed| format!("{} bytes", sealed.ciphertext.len())).await?;
    let decrypt = async {
        let opened =
            client.decrypt(sealed.ciphertext.to_vec(), "probe", &sealed.key_id, sealed.annotations.clone()).await;
        let opened = opened.map_err(|error| error.to_string())?;
        if opened == seed { Ok(()) } else { Err("what came back is not what was sent".to_owned()) }
    };
    report.step("decrypt", decrypt, |()| "the same 32 bytes came back".to_owned()).await
}

/// What kube-apiserver checks of an Encrypt reply before it uses the seed (`kmsv2/envelope.go`).
fn judge(sealed: &EncryptResponse, announced: &str) -> Result<(), &'static str> {
    let annotations = &sealed.annotations;
    let bytes: usize = annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
    if !is_key_id(&sealed.key_id) {
        Err("its key_id is empty or longer than 1024 bytes")
    } else if sealed.key_id != announced {
        Err("its key_id is not the one of Status")
    } else if sealed.ciphertext.is_empty() || sealed.ciphertext.len() > MAX_FIELD {
        Err("its ciphertext is empty or longer than 1024 bytes")
    } else if bytes > annotations::MAX_BYTES {
        Err("its annotations are larger than 32 KiB")
    } else if !annotations.keys().all(|key| annotations::is_well_formed_key(key)) {
        Err("a key of its annotations is no lower-case DNS name of two labels")
    } else {
        Ok(())
    }
}

fn is_key_id(text: &str) -> bool {
    (1..=MAX_FIELD).contains(&text.len())
}

fn describe(error: ClientError) -> String {
    use std::error::Error;
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let words = inner.to_string();
        if !text.contains(&words) {
            text.push_str(&format!(": {words}"));
        }
        cause = inner.source();
    }
    text
}

impl Report {
    async fn step<T>(
        &mut self,
        name: &'static str,
        work: impl Future<Output = Result<T, String>>,
        tell: impl FnOnce(&T) -> String,
    ) -> Option<T> {
        let began = Instant::now();
        let outcome = work.await;
        let millis = began.elapsed().as_secs_f64() * 1e3;
        let detail = outcome.as_ref().map_or_else(String::clone, tell);
        self.steps.push(Step { name, ok: outcome.is_ok(), millis, detail });
        outcome.ok()
    }
}
