//! The hallway: one file a layer, composed here and nowhere else.
//!
//! Every service of this program is always ready and waits inside the future of its call. So each wait lies within the
//! deadline of the call that waits, and a clone of a service carries no reservation.

mod aad;
mod admit;
mod batch;
mod coalesce;
mod deadline;
mod endpoint;
mod limits;
mod retry;
#[cfg(test)]
mod stack_tests;
#[cfg(test)]
mod testing;
mod token;
mod trace;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tower::{Service, ServiceBuilder};

pub use endpoint::Endpoint;

use crate::auth::Session;
use crate::error::{Class, Error};
use crate::key::KeyState;
use crate::plugin::Plugin;
use crate::request::{BaoService, KmsService, Lot, Outcomes, Progress};
use crate::telemetry::events;
use crate::telemetry::metrics::PipelineMetrics;

/// What a layer's call returns.
type Answer<T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send>>;

/// The time of a call is up: its caller learns that, which part was slow, and what the last attempt met.
fn late(progress: &Progress) -> Error {
    let mut error = Error::from(Class::DeadlineExceeded);
    if let Some(stage) = progress.stage() {
        error = error.with_stage(stage);
    }
    if let Some(reason) = progress.last_met() {
        error = error.with_reason(reason);
    }
    error
}

/// What several callers share has panicked: a defect, which none of them can tell. The panic itself was printed where it
/// happened; what it carried may hold anything and is dropped.
fn panicked(metrics: &PipelineMetrics) {
    metrics.panicked();
    tracing::error!(event = events::PANIC, "what several calls share panicked; please report this");
}

macro_rules! layers {
    ($($name:literal $($field:ident: $config:ty)?, $summary:literal, $why:literal;)+) => {
        /// `layers`: settings of the stack; the order is the program's, not the file's.
        #[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
        #[serde(deny_unknown_fields, rename_all = "camelCase", default)]
        #[schemars(rename = "Layers")]
        pub struct Config {
            $($(#[doc = $summary] pub $field: $config,)?)+
        }

        /// The layers from the street to the vault.
        pub const TABLE: &[Plugin] = &[
            $(Plugin { room: "layers", name: $name, summary: $summary, why: $why },)+
        ];
    };
}

layers! {
    "trace" trace: trace::Config, "Span, counters, the caller's trace context; counts callers that hang up.",
        "Outermost, so that it sees every call and every end of one, refused and abandoned ones too.";
    "limits" limits: limits::Config, "Sizes, shapes and the number of calls inside at once: the memory bound.",
        "Before any work, so that nothing oversized or shapeless costs anything.";
    "deadline" deadline: deadline::Config, "The caller's patience less a margin, capped; everything below lives inside it.",
        "Above everything that may wait, so that every wait is bounded.";
    "aad", "Local validation and associated data; nothing invalid goes further, and below it no call without associated data exists.",
        "Before coalescing, so that what is compared is the bound call; inside the deadline, because the first view may be waited for.";
    "coalesce" coalesce: coalesce::Config, "Identical decrypts in flight share one flight.",
        "Above retry and admit, so that a shared flight is repeated once and holds one slot.";
    "retry" retry: retry::Config, "The only place that repeats, by class, with jittered back-off and a budget.",
        "Above batch and admit, so that each item of a batch is repeated for itself and a call in back-off holds no slot.";
    "batch" batch: batch::Config, "Decrypts that come while others are on their way share one exchange.",
        "Above admit, so that a batch holds one slot; below coalesce, so that no item stands in it twice.";
    "admit" admit: admit::Config, "Counts exchanges in flight; a bounded queue beyond; one slot is kept for Encrypt.",
        "Right above the exchange, so that it counts what OpenBao is really asked.";
    "token", "Attaches the session's token; a 403 leads to one shared login and one repeat.",
        "Below Transit, so that metadata reads and probes share it with KMS calls.";
    "endpoint", "One attempt: one address, one exchange, at most one redirect to a listed host; a breaker for each address.",
        "Last, so that login and renewal, which carry no session token, share the choice of address.";
}

/// Encrypt and Decrypt from the door to Transit. The only place where the order is written.
pub fn stack<S>(config: &Config, key: Arc<KeyState>, transit: S, metrics: Arc<PipelineMetrics>) -> KmsService
where
    S: Service<Lot, Response = Outcomes, Error = Error> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    KmsService::new(
        ServiceBuilder::new()
            // Outermost: sees every call and every end of one.
            .layer_fn(|inner| trace::Trace::new(inner, &config.trace, metrics.clone()))
            // Before any work: what is oversized or one too many costs nothing.
            .layer_fn(|inner| limits::Limits::new(inner, &config.limits))
            // Above everything that may wait.
            .layer_fn(|inner| deadline::Deadline::new(inner, &config.deadline))
            // From here on a call is bound to a key version and its associated data.
            .layer_fn(|inner| aad::Aad::new(inner, key.clone()))
            // Above retry and admit: a shared flight is repeated once and holds one slot.
            .layer_fn(|inner| coalesce::Coalesce::new(inner, &config.coalesce, metrics.clone()))
            // Above batch and admit: each item is repeated for itself, and a call in back-off holds no slot.
            .layer_fn(|inner| retry::Retry::new(inner, &config.retry, metrics.clone()))
            // Above admit: a batch holds one slot. What waits here waits for a slot, so admit's bound counts.
            .layer_fn(|inner| batch::Batch::new(inner, &config.batch, config.admit.max_queued, metrics.clone()))
            // Right above the exchange: counts what OpenBao is really asked.
            .layer_fn(|inner| admit::Admit::new(inner, &config.admit, metrics.clone()))
            .service(transit),
    )
}

/// What Transit stands on: a token for each question, an address for each attempt.
pub fn bao_stack(session: Arc<Session>, endpoint: BaoService) -> BaoService {
    BaoService::new(token::AttachToken::new(endpoint, session))
}
