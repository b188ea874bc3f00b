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
use super::{events, traces};

/// How long the end of the program waits for the last traces.
const FLUSH_WITHIN: Duration = Duration::from_secs(2);

/// Keeps telemetry alive; the last traces are sent when it is shut down.
pub struct Guard {
    level: reload::Handle<Targets, Registry>,
    provider: Option<SdkTracerProvider>,
}

/// Logging was started twice in one process.
#[derive(Debug, thiserror::Error)]
#[error("logging is already set up in this process")]
pub struct InitError;

/// Starts logs, and traces when an exporter is named. Needs a running tokio runtime. An exporter that cannot be built is
/// an event, not an error.
///
/// # Errors
/// When logging was already started in this process.
pub fn init(config: &Config) -> Result<Guard, InitError> {
    let (filter, level) = reload::Layer::new(targets(config.logs.level));
    let (provider, trouble) = match config.traces.otlp.as_ref().map(traces::provider) {
        None => (None, None),
        Some(Ok(provider)) => (Some(provider), None),
        Some(Err(error)) => (None, Some(error)),
    };
    let exported = provider.as_ref().map(|provider| {
        let only_ours = Targets::new().with_target(traces::TARGET, LevelFilter::INFO);
        tracing_opentelemetry::layer().with_tracer(traces::tracer(provider)).with_filter(only_ours)
    });
    let lines = lines(config.logs.format).with_filter(filter);
    tracing_subscriber::registry().with(lines).with(exported).try_init().map_err(|_| InitError)?;
    if let Some(error) = trouble {
        tracing::error!(event = events::EXPORTER_TROUBLE, "traces are not exported: {error}");
    }
    Ok(Guard { level, provider })
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

fn lines<S>(format: Format) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    match format {
        Format::Json => fmt::layer()
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .with_writer(std::io::stderr)
            .boxed(),
        Format::Text => {
            let colour =
                std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            fmt::layer().with_ansi(colour).with_target(false).with_writer(std::io::stderr).boxed()
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

    /// Sends the last traces, waiting two seconds at most.
    pub async fn shutdown(self) {
        let Some(provider) = self.provider else {
            return;
        };
        let flushed = tokio::task::spawn_blocking(move || traces::flush(&provider, FLUSH_WITHIN));
        // The time-out is twice the bound that the provider itself keeps.
        let _ = tokio::time::timeout(FLUSH_WITHIN * 2, flushed).await;
    }
}
