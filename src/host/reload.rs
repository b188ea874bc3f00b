//! Reading the configuration again while the program runs: all of it takes effect or nothing does, and what was read once
//! at the start is named, because only a restart reads it again. A volume that hangs holds up the reading alone.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::watch::Watch;
use super::{PluginHost, lock};
use crate::config::{self, Config};
use crate::telemetry::{self, events};

/// Files that have not been read for so long are said to hang.
const HANGS: Duration = Duration::from_secs(10);

/// What the files say, or why that is refused.
type Read = Result<Config, String>;

/// The files being read, when somebody has asked for it.
pub(super) struct Reading {
    watch: Arc<Watch>,
    under_way: Option<UnderWay>,
    /// Asked for once more since it began.
    again: bool,
}

struct UnderWay {
    task: JoinHandle<Read>,
    /// When it is said to hang; `None`: it has been said.
    hangs: Option<Instant>,
}

/// What the program reads at its start and never again.
pub(super) struct Once {
    telemetry: telemetry::Config,
    memory: lock::Config,
}

/// Takes over what was read; what cannot be taken over leaves everything as it is.
pub(super) async fn reload(read: Read, once: &Once, host: &mut PluginHost, telemetry: &telemetry::Guard) {
    let refused = |host: &PluginHost, why: String| {
        tracing::error!(event = events::RELOAD_REFUSED, "the configuration is refused, what ran goes on: {why}");
        host.outlook().config_refused.store(Some(Arc::new(why)));
    };
    let config = match read {
        Ok(config) => config,
        Err(why) => return refused(host, why),
    };
    let level = config.telemetry.logs.level;
    let mut waiting = once.differs_from(&config);
    if let Err(error) = host.reload(config).await {
        return refused(host, error.to_string());
    }
    telemetry.set_level(level);
    waiting.extend(host.needs_restart());
    if waiting.is_empty() {
        tracing::info!(event = events::RELOADED, "the configuration took effect");
    } else {
        let restart_needed = waiting.join(", ");
        tracing::warn!(
            event = events::RELOADED,
            restart_needed,
            "the configuration took effect, except for what only a restart puts in force"
        );
    }
    host.outlook().config_refused.store(None);
    host.outlook().restart_needed.store(Arc::new(waiting));
}

// === impl Reading ===

impl Reading {
    /// Of the files that are watched.
    pub(super) fn of(watch: Arc<Watch>) -> Self {
        Self { watch, under_way: None, again: false }
    }

    /// Reads the files; once more, if they are being read already.
    pub(super) fn begin(&mut self) {
        if self.under_way.is_some() {
            self.again = true;
            return;
        }
        let watch = self.watch.clone();
        let read = move || config::load(watch.trying()).map(|loaded| loaded.config).map_err(|found| found.to_string());
        let hangs = Some(Instant::now() + HANGS);
        self.under_way = Some(UnderWay { task: tokio::task::spawn_blocking(read), hangs });
    }

    /// What was read, and once that it hangs; never, while nobody has asked. Nothing is lost when this is not waited for.
    pub(super) async fn over(&mut self) -> Read {
        let Some(UnderWay { task, hangs }) = &mut self.under_way else {
            return std::future::pending().await;
        };
        let read = match *hangs {
            Some(due) => tokio::time::timeout_at(due, task).await,
            None => Ok(task.await),
        };
        let Ok(read) = read else {
            *hangs = None;
            let files: Vec<_> = self.watch.files().iter().map(|file| file.display().to_string()).collect();
            return Err(format!(
                "{}: not read within {} s: the volume of a file hangs; look at that volume, what it holds is taken over \
                 when it answers",
                files.join(", "),
                HANGS.as_secs()
            ));
        };
        self.under_way = None;
        if std::mem::take(&mut self.again) {
            self.begin();
        }
        // Reading does not panic; if it does, what ran goes on all the same.
        read.unwrap_or_else(|_| Err("reading the files broke off; please report this".to_owned()))
    }
}

// === impl Once ===

impl Once {
    /// What this configuration says.
    pub(super) fn of(config: &Config) -> Self {
        Self { telemetry: config.telemetry.clone(), memory: config.memory.clone() }
    }

    /// The key paths of what another configuration says otherwise.
    fn differs_from(&self, next: &Config) -> Vec<String> {
        let (ours, theirs) = (&self.telemetry, &next.telemetry);
        let rows = [
            ("telemetry.logs.format", ours.logs.format != theirs.logs.format),
            ("telemetry.metrics", ours.metrics != theirs.metrics),
            ("telemetry.traces", ours.traces != theirs.traces),
            ("memory", self.memory != next.memory),
        ];
        rows.iter().filter(|(_, differs)| *differs).map(|(path, _)| (*path).to_owned()).collect()
    }
}
