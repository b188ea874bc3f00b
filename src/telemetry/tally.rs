//! One summary for each class and minute, made from the counters, so that no layer writes a line per call.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::events;
use super::observed::Outlook;
use crate::error::Class;

const MINUTE: Duration = Duration::from_secs(60);

/// Writes summaries until it is aborted.
pub async fn run(outlook: Arc<Outlook>) {
    let mut before: HashMap<(Arc<str>, Class, &'static str), u64> = HashMap::new();
    loop {
        tokio::time::sleep(MINUTE).await;
        for pipeline in outlook.pipelines.load().iter() {
            for (call, class, count) in pipeline.metrics.failures() {
                let known = before.insert((pipeline.name.clone(), class, call), count).unwrap_or(0);
                // A reload may have put fresh counters under the same label.
                let new = count.checked_sub(known).unwrap_or(count);
                if new > 0 {
                    tracing::warn!(
                        event = events::CALLS_FAILED,
                        pipeline = &*pipeline.name,
                        call,
                        class = class.name(),
                        count = new,
                        help = class.help(),
                        "{new} calls failed in the last minute: {}",
                        class.meaning()
                    );
                }
            }
        }
    }
}
