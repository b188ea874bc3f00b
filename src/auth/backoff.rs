//! When a login or renewal that failed is tried again: after a growing pause by itself, sooner when there is reason to
//! believe that it fares better. However many ask, OpenBao is not flooded.

use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Class, Error};

const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// After a refusal, which seldom heals by itself within a second.
const FIRST_PAUSE_REFUSED: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(30);
/// Two logins are at least this far apart, whoever asks for them.
pub(super) const APART: Duration = Duration::from_millis(500);

/// How often OpenBao is asked by login whether a repair was made, while something needs it: a refused login may succeed, a
/// new token may have rights that the old one lacks, and nothing but a login tells. A repair is to be noticed within two
/// seconds; what is left of them is for the login itself and the call that waits for it.
pub const REPAIR_INTERVAL: Duration = Duration::from_millis(1_800);

/// Growing pauses between attempts that fail.
#[derive(Default)]
pub(super) struct Backoff(Duration);

/// When the next attempt may begin.
pub(super) struct Pause {
    /// When OpenBao is known to be back: at once after its absence, and no sooner than a repair may be asked for after a
    /// refusal, which is OpenBao's answer and no absence.
    pub(super) woken: Instant,
    /// When a call asks for a token and there is none.
    pub(super) asked: Instant,
    /// When nobody asks.
    pub(super) end: Instant,
}

// === impl Backoff ===

impl Backoff {
    /// The pause after an attempt that began then and failed now: doubles up to 30 s, a quarter more or less so that nodes
    /// do not ask in step. `Retry-After` counts against every reason, up to 30 s: it may be a mistake.
    pub(super) fn after(&mut self, error: &Error, began: Instant) -> Pause {
        let now = Instant::now();
        let first = if is_refusal(error.class()) { FIRST_PAUSE_REFUSED } else { FIRST_PAUSE };
        let pause = self.0.clamp(first, LAST_PAUSE);
        self.0 = pause * 2;
        let told = now + error.retry_after().unwrap_or_default().min(LAST_PAUSE);
        let apart = if has_answered(error.class()) { REPAIR_INTERVAL } else { APART };
        let woken = told.max(began + apart);
        let asked = told.max(began + REPAIR_INTERVAL);
        Pause { woken, asked, end: woken.max(now + pause.mul_f64(0.75 + 0.5 * fastrand::f64())) }
    }
}

/// Whether OpenBao has said no, as opposed to not having answered.
pub(super) fn is_refusal(class: Class) -> bool {
    matches!(class, Class::LoginRefused | Class::NamespaceMissing)
}

/// Whether it was OpenBao itself, or what stands before it, that did not grant the login: that somebody is there is no reason
/// to ask again at once.
fn has_answered(class: Class) -> bool {
    is_refusal(class) || matches!(class, Class::RateLimited | Class::BadReply)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pauses(error: &Error, times: usize) -> Vec<Pause> {
        let mut backoff = Backoff::default();
        (0..times).map(|_| backoff.after(error, Instant::now())).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_to_half_a_minute_and_start_later_after_a_refusal() {
        let now = Instant::now();
        for (class, first) in [(Class::Unreachable, 500), (Class::LoginRefused, 1_800)] {
            let ends: Vec<_> = pauses(&class.into(), 10).iter().map(|pause| pause.end - now).collect();
            assert_eq!(
                ends[0],
                Duration::from_millis(first),
                "{class}: no sooner than two logins may follow each other"
            );
            assert!(ends[4] >= Duration::from_secs(3), "{class}: {ends:?}");
            for end in &ends[8..] {
                let (least, most) = (LAST_PAUSE.mul_f64(0.75), LAST_PAUSE.mul_f64(1.25));
                assert!(*end >= least && *end <= most, "{class}: {ends:?}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn waking_helps_at_once_after_an_absence_and_later_after_an_answer() {
        let now = Instant::now();
        for (class, woken) in [
            (Class::Unreachable, APART),
            (Class::Sealed, APART),
            (Class::CredentialUnavailable, APART),
            (Class::LoginRefused, REPAIR_INTERVAL),
            (Class::NamespaceMissing, REPAIR_INTERVAL),
            (Class::RateLimited, REPAIR_INTERVAL),
            (Class::BadReply, REPAIR_INTERVAL),
        ] {
            for pause in pauses(&class.into(), 10) {
                assert_eq!((pause.woken - now, pause.asked - now), (woken, REPAIR_INTERVAL), "{class}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_openbao_asks_for_is_kept_within_bounds() {
        let now = Instant::now();
        for (told, kept) in [(7, 7), (86_400, 30)] {
            let error = Error::from(Class::RateLimited).with_retry_after(Some(Duration::from_secs(told)));
            for pause in pauses(&error, 10) {
                assert_eq!(
                    (pause.woken - now, pause.asked - now),
                    (Duration::from_secs(kept), Duration::from_secs(kept))
                );
                assert!(pause.end >= pause.woken);
            }
        }
    }
}
