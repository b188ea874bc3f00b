//! The plugin host: builds pipelines from the configuration, runs them side by side, reloads, drains, and tells
//! systemd and the admin listener how they are. The only room that sees every other.

pub mod admin;
mod engine;
mod handover;
mod keeper;
pub mod lock;
mod memory;
pub mod pipeline;
pub mod run;
mod switch;
mod systemd;
mod watch;

use std::sync::Arc;

use tokio::task::JoinHandle;

use crate::config::Config;
use crate::front::Inherited;
use crate::telemetry::observed::Outlook;

pub use pipeline::{Pipeline, PipelineError, SocketState, fingerprint};
pub use run::serve;

/// Everything that runs.
pub struct PluginHost {
    pipelines: Vec<Pipeline>,
    outlook: Arc<Outlook>,
    inherited: Inherited,
    admin: Option<Admin>,
}

struct Admin {
    config: admin::Config,
    task: JoinHandle<()>,
}

// === impl PluginHost ===

impl PluginHost {
    /// Starts every pipeline of the configuration and the admin listener. Waits for nothing.
    pub fn start(config: Config, inherited: Inherited) -> Self {
        let mut host = Self { pipelines: Vec::new(), outlook: Arc::default(), inherited, admin: None };
        host.pipelines = config.pipelines.into_iter().map(|one| Pipeline::start(one, &host.inherited)).collect();
        host.observe();
        host.run_admin(config.admin);
        host
    }

    /// Lets go of sockets that were handed over for pipelines which this configuration does not have.
    pub fn forget_unclaimed(&self) {
        self.inherited.forget();
    }

    /// The pipelines that run.
    pub fn pipelines(&self) -> &[Pipeline] {
        &self.pipelines
    }

    /// Takes over another configuration: all of it or, when a running pipeline's identity would change, nothing of it.
    /// Pipelines that did not change are not touched; those whose socket section did not change keep their socket.
    pub async fn reload(&mut self, next: Config) -> Result<(), PipelineError> {
        for new in &next.pipelines {
            if let Some(old) = self.pipelines.iter().find(|old| old.config().name == new.name) {
                old.check_replacement(new)?;
            }
        }
        let mut old: Vec<Pipeline> = std::mem::take(&mut self.pipelines);
        for new in next.pipelines {
            let kept = old.iter().position(|old| old.config().name == new.name).map(|at| old.remove(at));
            let pipeline = match kept {
                Some(same) if *same.config() == new => same,
                Some(mut changed) if changed.keeps_socket(&new) => {
                    changed.replace(new).await;
                    changed
                }
                Some(moved) => {
                    moved.stop().await;
                    Pipeline::start(new, &self.inherited)
                }
                None => Pipeline::start(new, &self.inherited),
            };
            self.pipelines.push(pipeline);
        }
        for gone in old {
            gone.stop().await;
        }
        self.observe();
        self.run_admin(next.admin);
        Ok(())
    }

    /// What the admin listener and the minute's summary look at.
    pub fn outlook(&self) -> &Arc<Outlook> {
        &self.outlook
    }

    /// Closes all doors at once, lets calls in flight end, gives tokens back.
    pub async fn stop(self) {
        let mut stops = tokio::task::JoinSet::new();
        for pipeline in self.pipelines {
            stops.spawn(pipeline.stop());
        }
        stops.join_all().await;
        if let Some(admin) = self.admin {
            admin.task.abort();
        }
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
