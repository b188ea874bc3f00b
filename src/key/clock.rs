//! OpenBao's clock: the `Date` header of a metadata reply, carried forward by the monotonic clock. A node's own wall
//! clock may be years off without changing which version is active.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// OpenBao's time as last heard. Never goes backwards: a node of OpenBao whose clock lags cannot undo an activation.
#[derive(Clone, Copy, Debug, Default)]
pub struct BaoClock {
    anchor: Option<(u64, Instant)>,
}

// === impl BaoClock ===

impl BaoClock {
    /// Hears OpenBao's time. A time behind what is already known is ignored.
    pub fn observe(&mut self, date: SystemTime, heard: Instant) {
        let seconds = date.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if self.now(heard).is_none_or(|known| seconds > known) {
            self.anchor = Some((seconds, heard));
        }
    }

    /// OpenBao's time, Unix seconds; `None` before it was heard.
    pub fn now(&self, at: Instant) -> Option<u64> {
        let (seconds, heard) = self.anchor?;
        Some(seconds.saturating_add(at.saturating_duration_since(heard).as_secs()))
    }

    /// How long from `at` until OpenBao's clock shows this Unix second; `None` before its time was heard, and for a second
    /// that never comes.
    pub fn until(&self, second: u64, at: Instant) -> Option<Duration> {
        let (seconds, heard) = self.anchor?;
        // Whatever a reply says, it must not overflow a clock.
        let due = heard.checked_add(Duration::from_secs(second.saturating_sub(seconds)))?;
        Some(due.saturating_duration_since(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn date(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn the_monotonic_clock_carries_openbaos_time_forward() {
        let start = Instant::now();
        let mut clock = BaoClock::default();
        assert_eq!(clock.now(start), None);
        clock.observe(date(1_000), start);
        assert_eq!(clock.now(start + Duration::from_secs(30)), Some(1_030));
        assert_eq!(clock.until(1_040, start + Duration::from_secs(30)), Some(Duration::from_secs(10)));
        assert_eq!(clock.until(900, start), Some(Duration::ZERO));
        assert_eq!(clock.until(u64::MAX, start), None);
    }

    #[test]
    fn a_lagging_node_does_not_turn_time_back() {
        let start = Instant::now();
        let mut clock = BaoClock::default();
        clock.observe(date(1_000), start);
        clock.observe(date(500), start + Duration::from_secs(5));
        assert_eq!(clock.now(start + Duration::from_secs(5)), Some(1_005));
        clock.observe(date(2_000), start + Duration::from_secs(6));
        assert_eq!(clock.now(start + Duration::from_secs(6)), Some(2_000));
    }
}
