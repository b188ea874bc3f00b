//! `memory.lock`: nothing of this process is ever written to swap. The kubelet asks for a node without swap anyway; this is
//! for nodes that have some.

use rustix::io::Errno;
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{Resource, geteuid, getrlimit};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::telemetry::events;

/// `memory`: what becomes of this process's memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[schemars(rename = "Memory")]
pub struct Config {
    /// Whether memory is locked, so that none of it is swapped out. Needs RLIMIT_MEMLOCK to be unlimited (systemd:
    /// LimitMEMLOCK=infinity); without that the log says so and the program serves all the same. Read at start. Default false.
    pub lock: bool,
}

/// Does what the section says. What cannot be had is said and is no reason not to serve.
pub(super) fn apply(config: &Config) {
    if config.lock
        && let Err(why) = lock()
    {
        let help = "set LimitMEMLOCK=infinity in the unit, or switch swap off and memory.lock too";
        tracing::warn!(event = events::MEMORY_NOT_LOCKED, help, "memory is not locked: {why}");
    }
}

fn lock() -> Result<(), String> {
    // Under a limit the lock itself may work and a later allocation fail, which ends the process.
    if getrlimit(Resource::Memlock).current.is_some() && !geteuid().is_root() {
        return Err("RLIMIT_MEMLOCK is not unlimited".to_owned());
    }
    // Pages count once they are touched: what nobody uses stays out of memory.
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    mlockall(flags).map_err(|error: Errno| error.to_string())
}
