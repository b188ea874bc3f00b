//! The command line: one file per command, and the exit codes as a contract.

mod config;
#[cfg(feature = "dev")]
mod dev;
mod hygiene;
mod print;
mod probe;
mod serve;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// Exit codes; they do not change between releases.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Exit {
    /// It worked.
    Ok = 0,
    /// Something that should not happen.
    Unexpected = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The text of a configuration file is wrong.
    Configuration = 3,
    /// A check failed.
    CheckFailed = 4,
    /// The program cannot run: no socket could be had for a minute.
    Runtime = 5,
}

/// Kubernetes KMS v2 plugin host that keeps etcd encrypted with OpenBao Transit.
#[derive(Debug, Parser)]
#[command(name = "bao-kms-provider", version, after_help = EXIT_CODES, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 ok, 1 unexpected, 2 usage, 3 configuration, 4 a check failed, 5 runtime.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the configured pipelines until a signal ends it.
    #[command(
        after_help = "Example:\n  bao-kms-provider serve --config /etc/bao-kms-provider/config.yaml\n\nSIGTERM drains, SIGHUP reloads, SIGUSR2 hands the sockets to a new process of the program's file."
    )]
    Serve(Files),
    /// Show the whole path work against an embedded server. No place for keys.
    #[cfg(feature = "dev")]
    #[command(after_help = "Example:\n  bao-kms-provider dev --once")]
    Dev(dev::Args),
    /// Ask a socket for Status, Encrypt and Decrypt as the calling user, step by step.
    #[command(after_help = "Example:\n  bao-kms-provider probe --socket /run/openbao-kms/kms.sock --json")]
    Probe(probe::Args),
    /// Validate, show, explain the configuration, or print its schema.
    #[command(subcommand)]
    Config(config::Command),
    /// What the configuration can choose by name.
    #[command(subcommand)]
    Plugins(print::Plugins),
    /// The version.
    #[command(after_help = "Example:\n  bao-kms-provider version --json")]
    Version {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// A completion script for a shell.
    #[command(after_help = "Example:\n  bao-kms-provider completions bash > /etc/bash_completion.d/bao-kms-provider")]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// The manual page, or that of a command.
    #[command(after_help = "Example:\n  bao-kms-provider man config show | man -l -")]
    Man {
        /// The command; none: the whole program.
        command: Vec<String>,
    },
}

/// The files of a configuration.
#[derive(Debug, clap::Args)]
struct Files {
    /// Configuration file; several are merged in order, the last one winning.
    #[arg(long = "config", value_name = "FILE", default_value = "/etc/bao-kms-provider/config.yaml")]
    files: Vec<PathBuf>,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are errors to clap; a closed pipe is nobody's trouble.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage.into() } else { Exit::Ok.into() };
        }
    };
    let exit = match arguments.command {
        Command::Serve(files) => {
            hygiene::deny();
            serve::run(files.files)
        }
        #[cfg(feature = "dev")]
        Command::Dev(args) => dev::run(&args),
        Command::Probe(args) => probe::run(&args),
        Command::Config(command) => config::run(command),
        Command::Plugins(plugins) => print::plugins(&plugins),
        Command::Version { json } => print::version(json),
        Command::Completions { shell } => print::completions(shell, Arguments::command()),
        Command::Man { command } => print::man(Arguments::command(), &command),
    };
    exit.into()
}

/// Writes to standard output; a reader that has gone away ends the command quietly.
fn say(text: &str) -> Exit {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Exit::Ok,
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Exit::Ok,
        Err(_) => Exit::Unexpected,
    }
}

/// Writes a line to standard error. When nobody reads it the exit code still says what happened; `eprintln!` would panic.
fn complain(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The runtime that a command runs on.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(workers()).enable_all().build()
}

/// Two at least, because a handshake with a hardware token blocks one; four at most, because the work is small.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(2, |cores| cores.get().clamp(2, 4))
}
