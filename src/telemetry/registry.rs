//! The text that Prometheus reads: the instruments of every pipeline under its label, and what is only known at the
//! moment of the scrape.

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::borrow::Cow;
use std::fmt;
use std::sync::atomic::AtomicU64;
use tokio::time::Instant;

use super::observed::{Observed, Outlook};

type Labels = Vec<(&'static str, String)>;

/// Everything that is known, as OpenMetrics text.
///
/// # Errors
/// Never for a string; the signature is that of the encoder.
pub fn render(outlook: &Outlook) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("bao_kms");
    let build = Family::<Labels, Gauge>::default();
    build.get_or_create(&vec![("version", env!("CARGO_PKG_VERSION").to_owned())]).set(1);
    registry.register("build_info", "The version that runs.", build);
    let refused = Gauge::<i64>::default();
    refused.set(outlook.config_refused.load().is_some().into());
    registry.register(
        "config_refused",
        "1 when the configuration on disk was refused: what runs is not what a restart would run.",
        refused,
    );
    let waiting = Gauge::<i64>::default();
    waiting.set(i64::try_from(outlook.restart_needed.load().len()).unwrap_or(i64::MAX));
    registry.register(
        "config_restart_needed",
        "How many settings of the file on disk only a restart puts in force; /readyz names them.",
        waiting,
    );
    // Without a runtime there is nobody who could scrape.
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        let tasks = Gauge::<i64>::default();
        tasks.set(i64::try_from(runtime.metrics().num_alive_tasks()).unwrap_or(i64::MAX));
        registry.register(
            "runtime_tasks",
            "Tasks of this process: connections, calls, and what runs in the background.",
            tasks,
        );
    }
    for pipeline in outlook.pipelines.load().iter() {
        let label = (Cow::Borrowed("pipeline"), Cow::Owned(pipeline.name.to_string()));
        let registry = registry.sub_registry_with_label(label);
        pipeline.metrics.register(registry);
        moment(registry, pipeline);
    }
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

/// Values that follow from the clock and the state.
fn moment(registry: &mut Registry, pipeline: &Observed) {
    let now = Instant::now();
    let health = pipeline.key.health();
    let age = Gauge::<f64, AtomicU64>::default();
    age.set(health.last_success.map_or(f64::NAN, |at| now.saturating_duration_since(at).as_secs_f64()));
    registry.register(
        "last_success_age_seconds",
        "Seconds since a look at the path last succeeded: the key was read, and a seed sealed and opened when that was due; \
         NaN before the first time.",
        age,
    );
    let socket = Gauge::<i64>::default();
    socket.set((pipeline.socket)().is_ok().into());
    registry.register(
        "socket_ready",
        "1 while the socket accepts connections and is as configured; 0: `/readyz` says why not.",
        socket,
    );

    let status = Family::<Labels, Gauge>::default();
    let view = pipeline.key.peek();
    let reason = match pipeline.key.shown_trouble(now) {
        Some(class) => class.name(),
        None if view.is_none() => "starting",
        None => "ok",
    };
    status.get_or_create(&vec![("reason", reason.to_owned())]).set(1);
    registry.register("status", "What Status says: 1 at the current reason.", status);

    let trouble = Family::<Labels, Gauge>::default();
    if let Some((class, _)) = health.trouble {
        trouble.get_or_create(&vec![("class", class.name().to_owned())]).set(1);
    }
    registry.register("trouble", "What is wrong with the path, tolerated or not.", trouble);

    let (active, latest) = (Gauge::<i64>::default(), Gauge::<i64>::default());
    let key_id = Family::<Labels, Gauge>::default();
    if let Some(view) = &view {
        active.set(view.active().number.into());
        latest.set(view.latest().into());
        let hash = kube_hash(view.active().key_id.as_str());
        key_id.get_or_create(&vec![("key_id_hash", hash)]).set(1);
    }
    registry.register("active_key_version", "The Transit version that encrypts; 0 before the first view.", active);
    registry.register("latest_key_version", "The highest Transit version; 0 before the first view.", latest);
    registry.register("key_id_info", "The current key_id as kube-apiserver hashes it.", key_id);

    let identity = Family::<Labels, Gauge>::default();
    identity.get_or_create(&vec![("fingerprint", pipeline.fingerprint.clone())]).set(1);
    registry.register("identity_info", "The fingerprint of the identity that runs.", identity);
}

/// `sha256:` and the hex digest, as kube-apiserver's envelope metrics label a key_id.
pub fn kube_hash(key_id: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, key_id.as_bytes());
    digest.as_ref().iter().fold("sha256:".to_owned(), |mut text, byte| {
        text.push_str(&format!("{byte:02x}"));
        text
    })
}
