//! The plugin host: builds pipelines from the configuration, runs them side by side, reloads, drains, and tells
//! systemd and the admin listener how they are. The only room that sees every other.

pub mod admin;
mod engine;
mod entrance;
mod handover;
mod hindsight;
mod keeper;
pub mod lock;
mod memory;
pub mod pipeline;
mod reload;
pub mod run;
mod switch;
mod systemd;
mod watch;
pub mod witness;

use std::sync::Arc;

use tokio::task::{JoinHandle, JoinSet};

use crate::config::Config;
use crate::front::Inherited;
use crate::telemetry::events;
use crate::telemetry::observed::Outlook;

pub use entrance::SocketState;
pub use pipeline::{Pipeline, PipelineError, fingerprint};
pub use run::serve;
pub use watch::Watch;

/// Everything that runs.
pub struct PluginHost {
    pipelines: Vec<Pipeline>,
    outlook: Arc<Outlook>,
    inherited: Inherited,
    admin: Option<Admin>,
    /// What was replaced or taken away and ends its last calls.
    leaving: JoinSet<()>,
}

struct Admin {
    config: admin::Config,
    task: JoinHandle<()>,
}

// === impl PluginHost ===

impl PluginHost {
    /// Starts every pipeline of the configuration and the admin listener. Waits for nothing.
    pub fn start(config: Config, inherited: Inherited) -> Self {
        let outlook = Arc::default();
        let mut host = Self { pipelines: Vec::new(), outlook, inherited, admin: None, leaving: JoinSet::new() };
        host.pipelines = config.pipelines.into_iter().map(|one| Pipeline::start(one, &host.inherited)).collect();
        host.tell_unclaimed();
        host.observe();
        host.run_admin(config.admin);
        host
    }

    /// Lets go of sockets that were handed over for pipelines which this configuration does not have.
    pub fn forget_unclaimed(&self) {
        self.inherited.forget_unclaimed();
    }

    fn tell_unclaimed(&self) {
        let names = self.inherited.unclaimed();
        if !names.is_empty() {
            let help = "let FileDescriptorName= of the socket unit be the name of its pipeline, or remove the unit";
            tracing::warn!(
                event = events::SOCKET_REFUSED,
                help,
                "sockets came for pipelines that the configuration does not have: {}",
                names.join(", ")
            );
        }
    }

    /// The pipelines that run.
    pub fn pipelines(&self) -> &[Pipeline] {
        &self.pipelines
    }

    /// Resolves when no pipeline is still on its way to its socket.
    pub async fn sockets_tried(&self) {
        for pipeline in &self.pipelines {
            // A pipeline whose entrance has ended does not try any more.
            let _ = pipeline.socket().clone().wait_for(|socket| *socket != SocketState::Pending).await;
        }
    }

    /// Takes over another configuration: all of it or, when a running pipeline's identity would change, nothing of it.
    /// Pipelines that did not change are not touched, but look at the files that they name. Nobody waits for calls in flight:
    /// what is replaced ends them beside what replaces it.
    ///
    /// # Errors
    /// When a running pipeline's identity would change.
    pub async fn reload(&mut self, next: Config) -> Result<(), PipelineError> {
        for new in &next.pipelines {
            if let Some(old) = self.pipelines.iter().find(|old| old.config().name == new.name) {
                old.check_replacement(new)?;
            }
        }
        while self.leaving.try_join_next().is_some() {}
        let mut old: Vec<Pipeline> = std::mem::take(&mut self.pipelines);
        for new in next.pipelines {
            let kept = old.iter().position(|old| old.config().name == new.name).map(|at| old.remove(at));
            let pipeline = match kept {
                Some(same) if *same.config() == new => {
                    same.look();
                    same
                }
                Some(mut changed) => {
                    changed.replace(new, &self.inherited, &mut self.leaving).await;
                    changed
                }
                None => Pipeline::start(new, &self.inherited),
            };
            self.pipelines.push(pipeline);
        }
        for gone in old {
            self.leaving.spawn(gone.stop());
        }
        self.observe();
        self.run_admin(next.admin);
        Ok(())
    }

    /// Settings of pipelines that only a restart puts in force, as key paths.
    pub fn needs_restart(&self) -> Vec<String> {
        let named = |one: &Pipeline| {
            let name = one.config().name.clone();
            one.needs_restart().map(move |path| format!("pipelines.{name}.{path}")).collect::<Vec<_>>()
        };
        self.pipelines.iter().flat_map(named).collect()
    }

    /// What the admin listener and the minute's summary look at.
    pub fn outlook(&self) -> &Arc<Outlook> {
        &self.outlook
    }

    /// Frees the admin port, closes all doors at once, lets calls in flight end, gives tokens back.
    pub async fn stop(mut self) {
        // First: a process that takes our place wants the port, and it must not hear of us any more.
        if let Some(admin) = self.admin {
            admin.task.abort();
            let _ = admin.task.await;
        }
        for pipeline in self.pipelines {
            self.leaving.spawn(pipeline.stop());
        }
        while self.leaving.join_next().await.is_some() {}
    }

    fn observe(&self) {
        self.outlook.pipelines.store(Arc::new(self.pipelines.iter().map(Pipeline::observed).collect()));
    }

    fn run_admin(&mut self, config: Option<admin::Config>) {
        if self.admin.as_ref().map(|admin| &admin.config) == config.as_ref() {
            return;
        }
        if let Some(old) = self.admin.take() {
            old.task.abort();
        }
        self.admin =
            config.map(|config| Admin { task: tokio::spawn(admin::run(config.clone(), self.outlook.clone())), config });
    }
}
