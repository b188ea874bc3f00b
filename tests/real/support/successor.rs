//! A process that took the place of one of ours. It is no child of the test, and is gone with its guard all the same.

use rustix::process::{Pid, Signal, kill_process};

/// The process.
pub struct Successor(Pid);

impl Successor {
    pub fn of(pid: u64) -> Self {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        Self(pid.expect("the number of a process"))
    }

    /// Whether it runs: one that has ended may stay in the table until somebody asks for it.
    pub fn runs(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.as_raw_pid())).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.0, signal).expect("it takes signals");
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        if self.runs() {
            // It may end in this very moment.
            let _ = kill_process(self.0, Signal::KILL);
        }
    }
}
