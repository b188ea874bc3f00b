//! Logs on standard error, JSON or text, and the hook-up of the trace exporter. The level can change while the program
//! runs; libraries below ours are held at warnings, because they log what they carry.

use std::io::IsTerminal;
use std::time::Duration;

use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Subscriber;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

use super::config::{Config, Format, Level};
use super::exporter::Exporter;
use super::{events, traces, writer};
use crate::files;

/// How long the end of the program waits for the last traces.
const FLUSH_WITHIN: Duration = Duration::from_secs(2);

/// Keeps telemetry alive; the last traces and lines are sent when it is shut down.
pub struct Guard {
    level: reload::Handle<Targets, Registry>,
    provider: Option<SdkTracerProvider>,
    lines: writer::Flush,
}

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// Logging was started twice in one process.
    #[error("logging is already set up in this process; this is a defect, please report it")]
    Twice,
    /// The thread that writes.
    #[error("the thread that writes the log cannot start: {0}; raise the limit on threads (TasksMax=)")]
    Thread(#[from] std::io::Error),
}

/// Starts logs, and traces when an exporter is named. Needs a running tokio runtime. An exporter that cannot be built is
/// an event, not an error: it is tried again.
///
/// # Errors
/// When logging was already started in this process, or its thread cannot start.
pub fn init(config: &Config) -> Result<Guard, InitError> {
    let (filter, level) = reload::Layer::new(targets(config.logs.level));
    let (writer, flush) = writer::start()?;
    let exporter = config.traces.otlp.as_ref().map(|otlp| (otlp, Exporter::new(otlp, traces::resource())));
    let provider = exporter.as_ref().map(|(otlp, exporter)| traces::provider(otlp, exporter.clone()));
    let exported = provider.as_ref().map(|provider| {
        let only_ours = Targets::new().with_target(traces::TARGET, LevelFilter::INFO);
        tracing_opentelemetry::layer().with_tracer(traces::tracer(provider)).with_filter(only_ours)
    });
    let lines = lines(config.logs.format, writer).with_filter(filter);
    let registry = tracing_subscriber::registry().with(lines);
    // An absent layer would not be one without interest: each span of a call would be judged anew.
    let started = match exported {
        Some(exported) => registry.with(exported).try_init(),
        None => registry.try_init(),
    };
    started.map_err(|_| InitError::Twice)?;
    // Built now and not at the first span, so that a wrong file shows in the log of the start; and beside it, because a
    // volume that hangs must not keep the sockets waiting for traces.
    if let Some((_, exporter)) = exporter {
        tokio::spawn(build(exporter));
    }
    Ok(Guard { level, provider, lines: flush })
}

async fn build(exporter: Exporter) {
    let hangs = || {
        tracing::error!(
            event = events::EXPORTER_TROUBLE,
            help = "find out what the volume waits for; nothing has to be started again",
            "traces are not exported: they wait for the CA certificates of the collector, whose volume does not answer"
        );
    };
    let built = files::beside(move || exporter.current().map(drop), hangs).await;
    if let Ok(Err(error)) = built {
        tracing::error!(event = events::EXPORTER_TROUBLE, "traces are not exported, it is tried again: {error}");
    }
}

/// Ours at the configured level, libraries at warnings, spans of calls never.
fn targets(level: Level) -> Targets {
    let ours = match level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    };
    Targets::new()
        .with_default(ours.min(LevelFilter::WARN))
        .with_target("bao_kms_provider", ours)
        .with_target(traces::TARGET, LevelFilter::OFF)
}

fn lines<S>(format: Format, writer: writer::Writer) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    match format {
        Format::Json => fmt::layer()
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .with_writer(writer)
            .boxed(),
        Format::Text => {
            let colour =
                std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            fmt::layer().with_ansi(colour).with_target(false).with_writer(writer).boxed()
        }
    }
}

// === impl Guard ===

impl Guard {
    /// Another level from now on.
    pub fn set_level(&self, level: Level) {
        if let Err(error) = self.level.reload(targets(level)) {
            tracing::error!(event = events::RELOAD_REFUSED, "the log level cannot be changed: {error}");
        }
    }

    /// Sends the last traces, waiting two seconds at most, and the last lines, waiting one.
    pub async fn shutdown(self) {
        let Self { provider, lines, .. } = self;
        if let Some(provider) = provider {
            let flushed = tokio::task::spawn_blocking(move || traces::flush(&provider, FLUSH_WITHIN));
            // The time-out is twice the bound that the provider itself keeps.
            let _ = tokio::time::timeout(FLUSH_WITHIN * 2, flushed).await;
        }
        // The drop waits, within its own bound.
        let _ = tokio::task::spawn_blocking(move || drop(lines)).await;
    }
}
