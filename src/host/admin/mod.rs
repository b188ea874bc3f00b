//! The admin listener: `/metrics`, `/livez` (this process) and `/readyz` (the whole path, with reasons). A port that is
//! taken is a finding that is tried again, never an exit.

mod config;
mod connections;
mod ready;
mod tls;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

pub use config::{Config, Tls};

use crate::files;
use crate::telemetry::events;
use crate::telemetry::observed::Outlook;
use crate::telemetry::registry;

/// The pause before a port that is taken is tried again; doubles up to [`LAST_PAUSE`]. Short at first, because the process
/// whose place we take lets go of it in a moment.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause between two tries.
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// Serves until it is aborted.
pub async fn run(config: Config, outlook: Arc<Outlook>) {
    let mut told = false;
    let mut pause = FIRST_PAUSE;
    loop {
        let trouble = match TcpListener::bind(config.listen).await {
            Ok(listener) => match serve(&config, listener, outlook.clone()).await {
                Ok(()) => return,
                Err(error) => error,
            },
            Err(error) => error.to_string(),
        };
        if !told {
            told = true;
            tracing::warn!(event = events::ADMIN_TROUBLE, listen = %config.listen, "the admin listener cannot be had, it is tried again: {trouble}");
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

async fn serve(config: &Config, listener: TcpListener, outlook: Arc<Outlook>) -> Result<(), String> {
    let tls = config.tls.clone();
    let hangs = || {
        tracing::warn!(
            event = events::ADMIN_TROUBLE,
            listen = %config.listen,
            help = "find out what the volume waits for; nothing has to be started again",
            "the admin listener waits for the files of admin.tls, whose volume does not answer"
        );
    };
    let loaded = files::beside(|| tls.map(tls::Identity::load).transpose(), hangs).await;
    let identity = loaded.map_err(|_| "reading the files of admin.tls broke off".to_owned())??;
    connections::serve(listener, identity, router(outlook)).await;
    Ok(())
}

fn router(outlook: Arc<Outlook>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .with_state(outlook)
}

async fn metrics(State(outlook): State<Arc<Outlook>>) -> Response {
    match registry::render(&outlook) {
        Ok(text) => ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
            .into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn readyz(State(outlook): State<Arc<Outlook>>) -> Response {
    let report = ready::report(&outlook);
    let status = if report.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, [(header::CONTENT_TYPE, "application/json")], serde_json::to_string(&report).unwrap_or_default())
        .into_response()
}
