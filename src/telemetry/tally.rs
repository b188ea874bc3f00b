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

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Mutex;

    use arc_swap::ArcSwap;

    use super::super::metrics::PipelineMetrics;
    use super::super::observed::Observed;
    use super::*;
    use crate::key::config::{HealthPolicy, Rotation};
    use crate::key::{KeyState, refresh};
    use crate::request::Kind;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("lock").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Log {
        /// What was written since the last time, as `call class count`.
        fn taken(&self) -> Vec<String> {
            let text = String::from_utf8(std::mem::take(&mut *self.0.lock().expect("lock"))).expect("text");
            let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
            let mut rows: Vec<_> = lines
                .map(|line| {
                    assert_eq!((line["event"].as_str(), line["level"].as_str()), (Some("calls_failed"), Some("WARN")));
                    format!("{} {} {} {}", line["pipeline"], line["call"], line["class"], line["count"])
                        .replace('"', "")
                })
                .collect();
            rows.sort_unstable();
            rows
        }
    }

    fn observed(metrics: Arc<PipelineMetrics>) -> Observed {
        let (refresh, _requests) = refresh::channel(Duration::from_secs(1));
        Observed {
            name: "a".into(),
            key: Arc::new(KeyState::new(&HealthPolicy::default(), &Rotation::default(), refresh)),
            metrics,
            findings: Arc::new(ArcSwap::from_pointee(Vec::new())),
            fingerprint: String::new(),
            socket: Arc::new(|| Ok(())),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_one_line_for_each_class_and_minute_and_successes_none() {
        let log = Log::default();
        let sink = log.clone();
        let lines = tracing_subscriber::fmt().json().flatten_event(true).with_writer(move || sink.clone()).finish();
        let _guard = tracing::subscriber::set_default(lines);
        let metrics = PipelineMetrics::new();
        let outlook = Arc::new(Outlook::default());
        outlook.pipelines.store(Arc::new(vec![observed(metrics.clone())]));
        let task = tokio::spawn(run(outlook.clone()));
        let answer = |kind, class, times| {
            for _ in 0..times {
                metrics.answered(kind, class, Duration::ZERO);
            }
        };

        tokio::time::sleep(Duration::from_secs(30)).await;
        answer(Kind::Encrypt, None, 500);
        answer(Kind::Decrypt, Some(Class::Sealed), 300);
        answer(Kind::Decrypt, Some(Class::Timeout), 2);
        answer(Kind::Encrypt, Some(Class::Sealed), 1);
        tokio::time::sleep(Duration::from_secs(29)).await;
        assert!(log.taken().is_empty(), "the minute is not over");
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(log.taken(), ["a decrypt sealed 300", "a decrypt timeout 2", "a encrypt sealed 1"]);

        answer(Kind::Decrypt, Some(Class::Sealed), 5);
        tokio::time::sleep(MINUTE).await;
        assert_eq!(log.taken(), ["a decrypt sealed 5"], "what is new, not the sum");
        answer(Kind::Decrypt, None, 5);
        tokio::time::sleep(MINUTE * 3).await;
        assert!(log.taken().is_empty(), "nothing has failed since");

        // A reload that makes the pipeline anew starts its counters at zero.
        let fresh = PipelineMetrics::new();
        fresh.answered(Kind::Decrypt, Some(Class::Sealed), Duration::ZERO);
        outlook.pipelines.store(Arc::new(vec![observed(fresh)]));
        tokio::time::sleep(MINUTE).await;
        assert_eq!(log.taken(), ["a decrypt sealed 1"]);
        task.abort();
    }
}
