//! Reading the configuration again while the program runs: all of it takes effect or nothing does, and what was read once
//! at the start is named, because only a restart reads it again.

use std::sync::Arc;

use super::watch::Watch;
use super::{PluginHost, lock};
use crate::config::{self, Config};
use crate::telemetry::{self, events};

/// What the program reads at its start and never again.
pub(super) struct Once {
    telemetry: telemetry::Config,
    memory: lock::Config,
}

/// Reads the files and takes over what they say; what cannot be taken over leaves everything as it is.
pub(super) async fn reload(watch: &Watch, once: &Once, host: &mut PluginHost, telemetry: &telemetry::Guard) {
    let refused = |host: &PluginHost, why: String| {
        tracing::error!(event = events::RELOAD_REFUSED, "the configuration is refused, what ran goes on: {why}");
        host.outlook().config_refused.store(Some(Arc::new(why)));
    };
    let config = match config::load(watch.trying()) {
        Ok(loaded) => loaded.config,
        Err(findings) => return refused(host, findings.to_string()),
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
