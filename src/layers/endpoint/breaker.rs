//! Which address comes next, and when one that failed is tried again. Healthy ones go in the order of the file. One that
//! does not answer is left alone for a jittered pause; then one call alone tries it, and the others wait behind that one,
//! so that an OpenBao that comes back is not met by everybody at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::error::{Class, Repeat};
use crate::request::Progress;
use crate::telemetry::metrics::{BreakerGauges, PipelineMetrics};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Short, because a call that waits for a trial when a new leader is there already may run out of time: an API server has
/// three seconds, an election takes most of them. One trial at a time costs OpenBao next to nothing.
const LAST_PAUSE: Duration = Duration::from_millis(300);
/// For how long an address that failed comes after the others.
const AFTER: Duration = Duration::from_secs(1);
/// How long one call alone may try an address while others wait: an OpenBao that is merely slow must not be met by one call
/// after the other, and one that never answers must not hold everybody for as long as its caller has patience.
const ALONE: Duration = Duration::from_secs(1);
/// Failures in a row that open a breaker when each may have been the call's own doing.
const DOUBTFUL: u32 = 3;
/// An address at which calls fail although probes are answered is tried by one call so long after its last good probe, while
/// others serve: whatever is wrong there, `sys/health` does not show it.
const PROVED_BY_CALLS: Duration = Duration::from_secs(5);

/// The breakers of all addresses; clones share them.
#[derive(Clone, Debug)]
pub(super) struct Breakers {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<Vec<Address>>,
    changed: Notify,
    /// Whether OpenBao is slow wherever it is asked: then going elsewhere only takes a call's time.
    crawls: AtomicBool,
    /// Which gauges these breakers may move: not those of the ones that took their place.
    gauges: BreakerGauges,
}

#[derive(Clone, Debug)]
struct Address {
    /// When it last failed, if nothing was answered there since: for a while it comes last.
    failed: Option<Instant>,
    /// When a call was last answered there.
    answered: Option<Instant>,
    in_row: u32,
    /// The pause that the next failure leads to; only an answered call makes it short again.
    pause: Duration,
    open: Option<Open>,
}

#[derive(Clone, Debug)]
struct Open {
    until: Instant,
    /// Since when a call tries it.
    trial: Option<Instant>,
    class: Class,
    /// Calls were answered with what may have been their own doing: then a good probe says nothing against it.
    doubtful: bool,
    /// A probe was answered, which proves little here: when one call may try it although others serve.
    probation: Option<Instant>,
}

/// What a call does next.
#[derive(Debug)]
pub(super) enum Pick {
    /// Ask this address. `trial` is there when the call is the only one that may.
    Ask {
        /// Its position.
        at: usize,
        /// Ends the trial when the call is given up.
        trial: Option<Trial>,
    },
    /// Every address has failed: wait until then, or until something changes.
    Wait {
        /// When the next trial is due, unless something changes before.
        until: Instant,
        /// Why the address that is tried next failed.
        class: Class,
    },
}

/// The one call that may ask an address whose breaker is open.
#[derive(Debug)]
pub(super) struct Trial {
    breakers: Breakers,
    at: usize,
    since: Instant,
}

// === impl Address ===

impl Address {
    /// One that serves, as far as is known.
    fn serving(failed: Option<Instant>, answered: Option<Instant>) -> Self {
        Self { failed, answered, in_row: 0, pause: FIRST_PAUSE, open: None }
    }
}

// === impl Open ===

impl Open {
    fn new(until: Instant, class: Class, doubtful: bool) -> Self {
        Self { until, trial: None, class, doubtful, probation: None }
    }

    /// Whether a call may try it although others serve.
    fn may_be_tried(&self, now: Instant) -> bool {
        self.trial.is_none() && self.probation.is_some_and(|due| due <= now)
    }

    /// When the next call may try it.
    fn next(&self) -> Instant {
        self.trial.map_or(self.until, |since| since + ALONE)
    }
}

// === impl Breakers ===

impl Breakers {
    pub(super) fn new(addresses: usize, metrics: Arc<PipelineMetrics>) -> Self {
        let state = Mutex::new(vec![Address::serving(None, None); addresses]);
        let (changed, crawls, gauges) = (Notify::new(), AtomicBool::new(false), metrics.breakers(addresses));
        Self { shared: Arc::new(Shared { state, changed, crawls, gauges }) }
    }

    /// What a call does now that had better not go to the addresses of which `avoids` holds.
    pub(super) fn pick(&self, now: Instant, avoids: impl Fn(usize) -> bool) -> Pick {
        let mut state = self.state();
        let closed = state.iter().enumerate().filter(|(_, address)| address.open.is_none());
        let order = |(at, address): &(usize, &Address)| {
            (avoids(*at), address.failed.filter(|failed| now < *failed + AFTER), *at)
        };
        if let Some((best, _)) = closed.min_by_key(order) {
            // Only where the file prefers it: there is no need to try what would not be asked.
            let preferred = state.iter_mut().enumerate().take(best);
            let mut open = preferred.filter_map(|(at, one)| one.open.as_mut().map(|open| (at, open)));
            return match open.find(|(at, open)| open.may_be_tried(now) && !avoids(*at)) {
                Some((at, open)) => Pick::Ask { at, trial: Some(self.trial(at, open, now)) },
                None => Pick::Ask { at: best, trial: None },
            };
        }
        let open = state.iter_mut().enumerate().filter_map(|(at, one)| one.open.as_mut().map(|open| (at, open)));
        match open.min_by_key(|(at, open)| (open.next(), avoids(*at), *at)) {
            Some((at, open)) if open.next() <= now => Pick::Ask { at, trial: Some(self.trial(at, open, now)) },
            Some((_, open)) => Pick::Wait { until: open.next(), class: open.class },
            None => Pick::Wait { until: now + LAST_PAUSE, class: Class::Unreachable },
        }
    }

    fn trial(&self, at: usize, open: &mut Open, now: Instant) -> Trial {
        open.trial = Some(now);
        Trial { breakers: self.clone(), at, since: now }
    }

    /// Whether a redirect may lead to this address now: it serves, or nobody tries it and its pause is over.
    pub(super) fn may_follow(&self, at: usize, now: Instant) -> Option<Option<Trial>> {
        match self.state().get_mut(at)?.open.as_mut() {
            None => Some(None),
            Some(open) if open.next() <= now => Some(Some(self.trial(at, open, now))),
            Some(_) => None,
        }
    }

    /// Whether a call that fails at this address has another one to go to that may be faster.
    pub(super) fn has_other(&self, than: usize) -> bool {
        !self.is_crawling() && self.state().iter().enumerate().any(|(at, address)| at != than && address.open.is_none())
    }

    /// Whether an address serves, as far as is known, that a call with this progress has not found wanting.
    pub(super) fn has_untried(&self, progress: &Progress) -> bool {
        let serves = |(at, address): (usize, &Address)| address.open.is_none() && !progress.avoids(at);
        !self.is_crawling() && self.state().iter().enumerate().any(serves)
    }

    /// Whether OpenBao is slow wherever it is asked, as far as is known.
    pub(super) fn is_crawling(&self) -> bool {
        self.shared.crawls.load(Ordering::Relaxed)
    }

    /// Why calls keep away from the first of the addresses that they keep away from.
    pub(super) fn known_trouble(&self) -> Option<Class> {
        self.state().iter().find_map(|address| address.open.as_ref().map(|open| open.class))
    }

    /// Whether OpenBao is slow at more than one address: two of them have let a call wait in vain, or one answers fast.
    pub(super) fn crawls(&self, crawls: bool) {
        // Rarely another one: reading is cheaper than writing.
        if self.is_crawling() != crawls {
            self.shared.crawls.store(crawls, Ordering::Relaxed);
        }
    }

    /// An open address whose pause is over while others serve: a probe may ask it, no call should.
    pub(super) fn probe_due(&self, now: Instant) -> Option<(usize, Trial)> {
        let mut state = self.state();
        let mut open = state.iter_mut().enumerate().filter_map(|(at, one)| one.open.as_mut().map(|o| (at, o)));
        let due = |open: &Open| open.next() <= now && open.probation.is_none_or(|due| due <= now);
        let (at, open) = open.find(|(_, open)| due(open))?;
        let trial = self.trial(at, open, now);
        Some((at, trial))
    }

    /// A call was answered there.
    pub(super) fn answered(&self, at: usize, now: Instant) {
        self.change(at, |address| *address = Address::serving(None, Some(now)));
    }

    /// A probe was answered there. Where others serve, calls may go again, and the next failure is not forgiven sooner than the
    /// last one; if calls were answered as well, and badly, one of them finds out first, and not at once. That is for an address
    /// that all calls would go to; one behind those that serve is only there for when they fail. Where none serves, a
    /// standby may have answered that knows no leader: one call finds out, before all go.
    pub(super) fn probed(&self, at: usize, now: Instant) {
        let first = self.state().iter().position(|address| address.open.is_none());
        if let Some(first) = first {
            self.change(at, |address| match &mut address.open {
                Some(open) if open.doubtful && at < first => open.probation = Some(now + PROVED_BY_CALLS),
                _ => (address.open, address.failed) = (None, None),
            });
        } else if let Some(open) = self.state().get_mut(at).and_then(|address| address.open.as_mut()) {
            open.until = now;
            self.shared.changed.notify_waiters();
        }
    }

    /// The node there serves and does not know the newest key version yet: for a while others come first.
    pub(super) fn lags(&self, at: usize, now: Instant) {
        self.change(at, |address| *address = Address::serving(Some(now), Some(now)));
    }

    /// A probe that began then failed there. That it found nobody is older news than an answer that came since.
    pub(super) fn probe_failed(&self, at: usize, class: Class, began: Instant, now: Instant) {
        let found_nobody = matches!(class, Class::Timeout | Class::Unreachable | Class::ConnectionLost);
        self.fail(at, class, now, found_nobody.then_some(began), false);
    }

    /// A call failed there.
    pub(super) fn failed(&self, at: usize, class: Class, now: Instant) {
        self.fail(at, class, now, None, class.repeat() != Repeat::Free);
    }

    /// `unless_answered`: nothing is said of an address that has answered a call since. `doubtful`: a good probe does not
    /// disprove it, unless a probe has shown it as well.
    fn fail(&self, at: usize, class: Class, now: Instant, unless_answered: Option<Instant>, doubtful: bool) {
        let mut state = self.state();
        let Some(address) = state.get_mut(at) else { return };
        if unless_answered.is_some_and(|since| address.answered.is_some_and(|answered| answered > since)) {
            return;
        }
        address.failed = Some(now);
        address.in_row = address.in_row.saturating_add(1);
        // What did no work says that the address does not serve; anything else may be this one call's doing.
        let opens = class.repeat() == Repeat::Free || address.in_row >= DOUBTFUL;
        // A call that began before it was opened tells nothing new.
        let known = address.open.as_ref().is_some_and(|open| open.trial.is_none());
        if opens && !known {
            let pause = address.pause.mul_f64(0.5 + fastrand::f64());
            address.pause = (address.pause * 2).min(LAST_PAUSE);
            address.open = Some(Open::new(now + pause, class, doubtful));
            self.shared.gauges.set(at, true);
            drop(state);
            self.shared.changed.notify_waiters();
        }
    }

    /// Waits for a change; begun before the look that it follows, so that none is missed.
    pub(super) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.shared.changed.notified()
    }

    fn change(&self, at: usize, how: impl FnOnce(&mut Address)) {
        let mut state = self.state();
        let Some(address) = state.get_mut(at) else { return };
        let was_open = address.open.is_some();
        how(address);
        if was_open && address.open.is_none() {
            self.shared.gauges.set(at, false);
            drop(state);
            self.shared.changed.notify_waiters();
        }
    }

    fn state(&self) -> MutexGuard<'_, Vec<Address>> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        let mut state = self.breakers.state();
        if let Some(open) = state.get_mut(self.at).and_then(|address| address.open.as_mut())
            && open.trial == Some(self.since)
        {
            open.trial = None;
            // It ended without a verdict, which must not make the next call pay at once.
            open.probation = open.probation.map(|due| due.max(Instant::now() + PROVED_BY_CALLS));
        }
        drop(state);
        self.breakers.shared.changed.notify_waiters();
    }
}

#[cfg(test)]
#[path = "breaker_tests.rs"]
mod tests;
