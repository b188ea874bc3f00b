//! One child process: its output goes to a file, it dies with its guard, and the end of its log is shown when the test
//! that owns it fails.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// A running child.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a command whose output is appended to `folder`/`name`.log, without the OpenBao, Kubernetes, etcd and proxy
    /// settings of whoever runs the tests.
    pub fn start(name: &str, folder: &Path, command: &mut Command) -> Self {
        for (key, _) in std::env::vars_os() {
            let name = key.to_string_lossy();
            let foreign = ["BAO_", "VAULT_", "KUBE", "ETCD"].iter().any(|start| name.starts_with(start));
            if foreign || name.to_ascii_lowercase().ends_with("_proxy") {
                command.env_remove(&key);
            }
        }
        Self::start_with_environment(name, folder, command)
    }

    /// The same with the environment as it is.
    pub fn start_with_environment(name: &str, folder: &Path, command: &mut Command) -> Self {
        let log = folder.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log).expect("a log file");
        let errors = file.try_clone().expect("a second handle");
        let child = command.stdin(Stdio::null()).stdout(file).stderr(errors).spawn();
        let child = child.unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        Self { name: name.to_owned(), child, log }
    }

    /// Everything it has written.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Why it is not running, if it is not.
    pub fn check(&mut self) -> Result<(), String> {
        match self.child.try_wait().expect("a child of ours") {
            None => Ok(()),
            Some(status) => Err(format!("{} ended: {status}", self.name)),
        }
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child of ours")
    }

    /// Asks it to end (SIGTERM) and waits; kills it when it does not.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(status) = self.child.try_wait().expect("a child of ours") {
                return status;
            }
            if Instant::now() > end {
                self.child.kill().expect("a child of ours");
                panic!("{} did not end within a minute of SIGTERM", self.name);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends it a signal, if it still runs.
    pub fn signal(&mut self, signal: Signal) {
        if self.child.try_wait().expect("a child of ours").is_none() {
            let pid = Pid::from_child(&self.child);
            kill_process(pid, signal).expect("our child takes signals");
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself, then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            eprintln!("--- {} said at the end:", self.name);
            for line in &lines[lines.len().saturating_sub(60)..] {
                eprintln!("{line}");
            }
        }
    }
}
