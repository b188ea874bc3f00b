//! The server's clock: the system's, shifted by a test's offset. Every time the server speaks of, the `Date` header
//! included, comes from here.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A clock that can be shifted.
#[derive(Debug, Default)]
pub struct Clock {
    offset_ms: AtomicI64,
}

impl Clock {
    /// The time now.
    pub fn now(&self) -> SystemTime {
        let offset = self.offset_ms.load(Ordering::Relaxed);
        let shift = Duration::from_millis(offset.unsigned_abs());
        let now = SystemTime::now();
        if offset < 0 { now.checked_sub(shift) } else { now.checked_add(shift) }.unwrap_or(now)
    }

    /// Unix time now, in whole seconds.
    pub fn unix(&self) -> u64 {
        unix(self.now())
    }

    /// Moves the clock to the system's time plus `ms` milliseconds (negative: behind).
    pub fn set_offset_ms(&self, ms: i64) {
        self.offset_ms.store(ms, Ordering::Relaxed);
    }
}

/// Unix seconds of `time`; 0 before 1970.
pub fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// `time` as Go's RFC3339Nano prints it: UTC, no zeros at the end of the fraction.
pub fn rfc3339(time: SystemTime) -> String {
    let text = humantime::format_rfc3339_nanos(time).to_string();
    let digits = text.trim_end_matches('Z').trim_end_matches('0').trim_end_matches('.');
    format!("{digits}Z")
}

/// A duration as OpenBao's warnings print it: Go's form without zero units at the end (`2h`, `1h30m`, `90s` as `1m30s`).
pub fn go_duration(seconds: u64) -> String {
    let (hours, minutes, rest) = (seconds / 3600, seconds % 3600 / 60, seconds % 60);
    let mut text = String::new();
    if hours > 0 {
        text += &format!("{hours}h");
    }
    if minutes > 0 {
        text += &format!("{minutes}m");
    }
    if rest > 0 || text.is_empty() {
        text += &format!("{rest}s");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_print_as_go_prints_them() {
        let at = |ns| UNIX_EPOCH + Duration::new(1_795_463_274, ns);
        assert_eq!(rfc3339(at(127_227_060)), "2026-11-23T19:47:54.12722706Z");
        assert_eq!(rfc3339(at(0)), "2026-11-23T19:47:54Z");
        assert_eq!(go_duration(7200), "2h");
        assert_eq!(go_duration(5400), "1h30m");
        assert_eq!(go_duration(90), "1m30s");
        assert_eq!(go_duration(0), "0s");
    }

    #[test]
    fn the_offset_moves_the_clock_both_ways() {
        let clock = Clock::default();
        let real = unix(SystemTime::now());
        clock.set_offset_ms(3_600_000);
        assert!(clock.unix() >= real + 3599);
        clock.set_offset_ms(-3_600_000);
        assert!(clock.unix() <= real - 3590);
    }
}
