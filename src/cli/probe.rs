//! `probe`: what kube-apiserver would meet at a socket, step by step, as the calling user.

use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;

use super::{Exit, complain, runtime, say};
use crate::front::client::{Client, ClientError, Code, EncryptResponse, StatusResponse};
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
    /// What to do about it, when it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    help: Option<&'static str>,
}

/// Why a step failed, and what to do.
struct Failure {
    detail: String,
    help: &'static str,
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
        complain("the runtime cannot start");
        return Exit::Unexpected;
    };
    let report = runtime.block_on(probe(args));
    let text = if args.json {
        format!("{}\n", serde_json::to_string_pretty(&report).unwrap_or_default())
    } else {
        report.steps.iter().map(Step::line).collect()
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

const NOBODY: &str = "start the service; when it runs, its log says why it has no socket";
const NOT_ALLOWED: &str = "run it as the user that kube-apiserver runs as, or with a group that socket.mode, socket.group and allowPeers let in";
const UNHEALTHY: &str = "the log and /readyz say more; docs/failure.md says what recovers it";
const SLOW: &str = "see in the log and in /readyz what is slow, or allow more with --timeout";
const BROKEN: &str = "kube-apiserver would refuse it too: be sure that this is the socket of a bao-kms-provider";

/// Every step in order; `None` at the first that fails.
async fn steps(args: &Args, report: &mut Report) -> Option<()> {
    let within = args.timeout;
    let connect = async { Client::connect(&args.socket).await.map_err(Failure::of) };
    let client = report.step("connect", within, connect, |_| args.socket.display().to_string()).await?;
    let client = client.with_timeout(within.get());
    let status = async {
        let status = client.status().await.map_err(Failure::of)?;
        let said = || format!("version {:?}, healthz {:?}, key_id {:?}", status.version, status.healthz, status.key_id);
        if !VERSIONS.contains(&&*status.version) {
            Err(Failure { detail: said(), help: BROKEN })
        } else if status.healthz != "ok" {
            Err(Failure { detail: said(), help: UNHEALTHY })
        } else if !is_key_id(&status.key_id) {
            Err(Failure { detail: format!("{}: empty or longer than 1024 bytes", said()), help: BROKEN })
        } else {
            Ok(status)
        }
    };
    let told = |status: &StatusResponse| format!("{} ok, key_id {}", status.version, status.key_id);
    let status = report.step("status", within, status, told).await?;
    report.key_id = Some(status.key_id.clone());
    let mut seed = vec![0; 32];
    aws_lc_rs::rand::fill(&mut seed).ok()?;
    let encrypt = async {
        let sealed = client.encrypt(seed.clone(), "probe").await.map_err(Failure::of)?;
        judge(&sealed, &status.key_id).map(|()| sealed).map_err(Failure::broken)
    };
    let told = |sealed: &EncryptResponse| format!("{} bytes", sealed.ciphertext.len());
    let sealed = report.step("encrypt", within, encrypt, told).await?;
    let decrypt = async {
        let opened =
            client.decrypt(sealed.ciphertext.to_vec(), "probe", &sealed.key_id, sealed.annotations.clone()).await;
        let opened = opened.map_err(Failure::of)?;
        if opened == seed { Ok(()) } else { Err(Failure::broken("what came back is not what was sent")) }
    };
    report.step("decrypt", within, decrypt, |()| "the same 32 bytes came back".to_owned()).await
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

// === impl Failure ===

impl Failure {
    fn broken(detail: &str) -> Self {
        Self { detail: detail.to_owned(), help: BROKEN }
    }

    fn of(error: ClientError) -> Self {
        use std::error::Error;
        use std::io::ErrorKind;
        let (mut detail, mut system) = (error.to_string(), None);
        let mut cause = error.source();
        while let Some(inner) = cause {
            let words = inner.to_string();
            if !detail.contains(&words) {
                detail.push_str(&format!(": {words}"));
            }
            system = system.or(inner.downcast_ref::<std::io::Error>().map(std::io::Error::kind));
            cause = inner.source();
        }
        let help = match &error {
            ClientError::Connect { .. } => match system {
                Some(ErrorKind::NotFound | ErrorKind::ConnectionRefused) => NOBODY,
                // Refused by the file's mode, or let in and shown out: the door does that to whom it does not know.
                _ => NOT_ALLOWED,
            },
            ClientError::Call(status) => match status.code() {
                Code::DeadlineExceeded => SLOW,
                // What the client makes of its own clock.
                Code::Cancelled if status.message() == "Timeout expired" => SLOW,
                // A connection that ends before it answers: shown out, a moment later.
                Code::Cancelled | Code::Unknown => NOT_ALLOWED,
                Code::Unavailable if status.source().is_some() => NOT_ALLOWED,
                _ => UNHEALTHY,
            },
        };
        Self { detail, help }
    }
}

// === impl Step ===

impl Step {
    /// As a person reads it.
    fn line(&self) -> String {
        let word = if self.ok { "ok  " } else { "FAIL" };
        let line = format!("{word} {:<8} {:>8.2} ms  {}\n", self.name, self.millis, self.detail);
        match self.help {
            Some(help) => format!("{line}     help: {help}\n"),
            None => line,
        }
    }
}

// === impl Report ===

impl Report {
    /// One step, which may take so long; what it cannot do is noted.
    async fn step<T>(
        &mut self,
        name: &'static str,
        within: Span,
        work: impl Future<Output = Result<T, Failure>>,
        tell: impl FnOnce(&T) -> String,
    ) -> Option<T> {
        let began = Instant::now();
        // A server that accepts and never speaks is not for the client's own clock to find: the connection comes first.
        let late = |_| Err(Failure { detail: format!("no answer within {within}"), help: SLOW });
        let outcome = tokio::time::timeout(within.get(), work).await.unwrap_or_else(late);
        let millis = began.elapsed().as_secs_f64() * 1e3;
        let (detail, help) = match &outcome {
            Ok(done) => (tell(done), None),
            Err(failure) => (failure.detail.clone(), Some(failure.help)),
        };
        self.steps.push(Step { name, ok: outcome.is_ok(), millis, detail, help });
        outcome.ok()
    }
}
