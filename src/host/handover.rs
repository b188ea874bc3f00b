//! A new process in the place of this one, without a gap: SIGUSR2 starts the program's file, whatever it is by now, with
//! the sockets this process holds. The new one logs in and reads the key's metadata; only when it can serve what this one
//! serves, this one closes its doors, finishes its calls and ends. Whatever goes wrong before, this one goes on.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::{PluginHost, systemd};
use crate::front::Inherited;
use crate::front::handover::{FORMAT, Giver, Taken, Taker, VARIABLE};
use crate::telemetry::events;
use crate::telemetry::observed::Outlook;

/// How long the new process tries to get every pipeline healthy that was healthy before.
const TAKER_PATIENCE: Duration = Duration::from_secs(20);
/// How long this process waits for the new one, which gives up earlier and says why.
const GIVER_PATIENCE: Duration = Duration::from_secs(30);
/// How often the new process looks at its pipelines.
const LOOK: Duration = Duration::from_millis(10);
/// What a service manager set for this process alone.
const OURS_ALONE: [&str; 4] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID"];

/// Why nobody takes our place.
#[derive(Debug, thiserror::Error)]
pub enum HandOverError {
    /// The container would end with us.
    #[error("this process is the first of its container, which would end with it; restart the container instead")]
    First,
    /// The next process would close as we do, or, without a witness, take the key for what it is.
    #[error(
        "pipeline {pipeline}: its key is older than what was seen of it (key_rolled_back), and a new process would not \
         mend that; restore the newest backup of the key, or, if what was lost is accepted, remove its witness file \
         if it has one and restart the service"
    )]
    RolledBack {
        /// The pipeline's label.
        pipeline: String,
    },
    /// The new process could not be started.
    #[error("the new process cannot be started: {0}")]
    Start(#[from] std::io::Error),
    /// It ended.
    #[error("the new process ended before it was ready; what it wrote says why")]
    Ended,
    /// It took too long.
    #[error("the new process was not ready after {} s", GIVER_PATIENCE.as_secs())]
    Late,
}

/// The process that is to take our place.
pub struct Successor {
    child: Child,
    giver: Giver,
    deadline: Instant,
}

/// The process whose place we take, and what has to be healthy before we do.
pub struct Predecessor {
    taker: Taker,
    announcing: HashSet<String>,
    open: watch::Sender<bool>,
}

/// The path of the program's file, whatever is there by now. As it was called, when that is a whole path: a symlink may lead
/// to another version after an upgrade, and the system would name what it led to.
///
/// # Errors
/// When the system does not say either.
pub fn program() -> std::io::Result<PathBuf> {
    let called = std::env::args_os().next().map(PathBuf::from).filter(|path| path.is_absolute());
    called.map_or_else(std::env::current_exe, Ok)
}

// === impl Successor ===

impl Successor {
    /// Starts the program's file with our arguments and sockets.
    pub fn start(program: &Path, host: &PluginHost) -> Result<Self, HandOverError> {
        if std::process::id() == 1 {
            return Err(HandOverError::First);
        }
        let mut sockets = Vec::new();
        for pipeline in host.pipelines() {
            if pipeline.key().is_in_doubt() {
                return Err(HandOverError::RolledBack { pipeline: pipeline.config().name.clone() });
            }
            sockets.extend(pipeline.give()?);
        }
        let (giver, theirs) = Giver::give(&sockets)?;
        let mut command = Command::new(program);
        command.args(std::env::args_os().skip(1)).env(VARIABLE, FORMAT).stdin(Stdio::from(theirs));
        for variable in OURS_ALONE {
            command.env_remove(variable);
        }
        let child = command.spawn()?;
        tracing::info!(
            event = events::HANDING_OVER,
            pid = child.id(),
            "a new process prepares to take the sockets over"
        );
        Ok(Self { child, giver, deadline: Instant::now() + GIVER_PATIENCE })
    }

    /// Resolves when it is ready, or has failed. May be dropped and asked again.
    pub async fn outcome(&self) -> Result<(), HandOverError> {
        match tokio::time::timeout_at(self.deadline, self.giver.ready()).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(HandOverError::Ended),
            Err(_) => Err(HandOverError::Late),
        }
    }

    /// Lets it serve, and tells systemd whom to watch from now on.
    pub fn go(self) {
        systemd::main_pid(self.child.id());
        self.giver.go();
        tracing::info!(event = events::HANDED_OVER, pid = self.child.id(), "the new process serves the sockets");
    }

    /// Ends it.
    pub fn give_up(mut self) {
        // It has ended already, or holds nothing that its end would harm.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// === impl Predecessor ===

impl Predecessor {
    /// The process before us and the sockets that it sent; none when this is an ordinary start.
    pub fn find() -> std::io::Result<Option<(Self, Inherited)>> {
        let Some((taker, Taken { sources, announcing, known })) = Taker::receive()? else {
            return Ok(None);
        };
        let (open, opening) = watch::channel(false);
        Ok(Some((Self { taker, announcing, open }, Inherited::of(sources, known, opening))))
    }

    /// Waits until the host can serve what the process before serves, then lets its doors open. False when it cannot.
    pub async fn take_over(self, outlook: Arc<Outlook>) -> bool {
        let healthy = async {
            let mut look = tokio::time::interval(LOOK);
            while !self.may_leave(&outlook) {
                look.tick().await;
            }
        };
        let able = tokio::select! {
            () = healthy => true,
            // Nobody serves the sockets any more: whatever we can do is better.
            () = self.taker.alone() => true,
            () = tokio::time::sleep(TAKER_PATIENCE) => false,
        };
        if able {
            self.taker.ready().await;
            self.open.send_replace(true);
        }
        able
    }

    /// Whether Status can give a key_id behind every pipeline where it gives one now: a view, and no trouble that is shown.
    /// One that our configuration does not know is none of ours.
    fn may_leave(&self, outlook: &Outlook) -> bool {
        let now = Instant::now();
        outlook.pipelines.load().iter().all(|one| one.healthy(now) || !self.announcing.contains(&*one.name))
    }
}
