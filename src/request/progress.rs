//! Where a call is, which addresses it has tried and what it met there: left by the layers on its way, read by whoever
//! picks the next address and by whoever has to say why the call was late.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use crate::error::Class;

/// A part of the path, for "which part was slow".
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Stage {
    /// Waiting for a look at the key.
    View,
    /// Waiting for an identical call in flight.
    Flight,
    /// Between two attempts.
    Backoff,
    /// Waiting for a slot.
    Queue,
    /// Waiting for a token.
    Token,
    /// Waiting for OpenBao.
    OpenBao,
}

/// Shared by the layers that a call walks through.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    here: Arc<Here>,
    /// Those who are wherever this one is: the calls of a lot.
    others: Option<Arc<[Progress]>>,
}

#[derive(Debug, Default)]
struct Here {
    stage: AtomicU8,
    /// One bit for each address; a configuration has at most sixteen.
    tried: AtomicU32,
    met: AtomicU8,
    /// Whether another address served when the last attempt failed.
    elsewhere: AtomicBool,
    /// The call whose flight this one shares.
    leader: OnceLock<Progress>,
}

// === impl Stage ===

impl Stage {
    const ALL: [Stage; 6] = [Self::View, Self::Flight, Self::Backoff, Self::Queue, Self::Token, Self::OpenBao];

    /// The words for messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::View => "look at the key",
            Self::Flight => "identical call in flight",
            Self::Backoff => "back-off between attempts",
            Self::Queue => "queue for a slot",
            Self::Token => "login",
            Self::OpenBao => "OpenBao",
        }
    }
}

// === impl Progress ===

impl Progress {
    /// One that takes all of these along.
    pub fn of_all(all: impl Iterator<Item = Progress>) -> Self {
        Self { here: Arc::default(), others: Some(all.collect()) }
    }

    /// Notes that the call is now in this part.
    pub fn enter(&self, stage: Stage) {
        self.each(&|here| here.stage.store(stage as u8 + 1, Ordering::Relaxed));
    }

    /// The part that the call is in; `None` before the first.
    pub fn stage(&self) -> Option<Stage> {
        let at = usize::from(self.here.stage.load(Ordering::Relaxed)).checked_sub(1)?;
        let stage = Stage::ALL.get(at).copied()?;
        let led = self.here.leader.get().filter(|_| stage == Stage::Flight).and_then(Progress::stage);
        Some(led.unwrap_or(stage))
    }

    /// Notes that this address is no good to the call.
    pub fn avoid(&self, address: usize) {
        self.each(&|here| {
            here.tried.fetch_or(bit(address), Ordering::Relaxed);
        });
    }

    /// Whether this address was no good to the call, or to any call of its lot.
    pub fn avoids(&self, address: usize) -> bool {
        let others = self.others.iter().flat_map(|others| others.iter());
        self.here.tried.load(Ordering::Relaxed) & bit(address) != 0 || others.into_iter().any(|one| one.avoids(address))
    }

    /// Notes whether an address serves, as far as is known, that the call has not tried.
    pub fn may_go_elsewhere(&self, may: bool) {
        self.each(&|here| here.elsewhere.store(may, Ordering::Relaxed));
    }

    /// Whether the next attempt meets another address than those that failed.
    pub fn goes_elsewhere(&self) -> bool {
        self.here.elsewhere.load(Ordering::Relaxed)
    }

    /// Notes what an attempt of the call met.
    pub fn met(&self, class: Class) {
        self.each(&|here| here.met.store(class as u8 + 1, Ordering::Relaxed));
    }

    /// Whether the last attempt of the call, or of any call of its lot, met this.
    pub fn has_met(&self, class: Class) -> bool {
        let others = self.others.iter().flat_map(|others| others.iter());
        self.last_met() == Some(class) || others.into_iter().any(|one| one.has_met(class))
    }

    /// What the last attempt of the call met; `None` when none has failed.
    pub fn last_met(&self) -> Option<Class> {
        let own = usize::from(self.here.met.load(Ordering::Relaxed)).checked_sub(1);
        let own = own.and_then(|at| Class::ALL.get(at).copied());
        own.or_else(|| self.here.leader.get().and_then(Progress::last_met))
    }

    /// From now on the call is wherever the one is whose flight it shares.
    pub fn follow(&self, leader: &Progress) {
        self.enter(Stage::Flight);
        if !Arc::ptr_eq(&self.here, &leader.here) {
            // A call joins one flight in its life.
            let _ = self.here.leader.set(leader.clone());
        }
    }

    fn each(&self, note: &dyn Fn(&Here)) {
        note(&self.here);
        for other in self.others.iter().flat_map(|others| others.iter()) {
            other.each(note);
        }
    }
}

fn bit(address: usize) -> u32 {
    u32::try_from(address).ok().and_then(|at| 1_u32.checked_shl(at)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_says_where_a_call_is() {
        let progress = Progress::default();
        assert_eq!(progress.stage(), None);
        for stage in Stage::ALL {
            progress.enter(stage);
            assert_eq!(progress.stage(), Some(stage));
        }
    }

    #[test]
    fn a_lot_takes_its_calls_along_and_knows_what_they_tried() {
        let calls = [Progress::default(), Progress::default()];
        calls[1].avoid(1);
        let lot = Progress::of_all(calls.iter().cloned());
        assert!(lot.avoids(1) && !lot.avoids(0));
        lot.avoid(0);
        lot.met(Class::Sealed);
        lot.enter(Stage::OpenBao);
        for call in &calls {
            assert!(call.avoids(0));
            assert_eq!((call.stage(), call.last_met()), (Some(Stage::OpenBao), Some(Class::Sealed)));
        }
        assert!(!calls[0].avoids(1), "what one tried is not what another one tried");
    }

    #[test]
    fn who_shares_a_flight_is_where_the_flight_is() {
        let (first, second) = (Progress::default(), Progress::default());
        second.follow(&first);
        assert_eq!(second.stage(), Some(Stage::Flight));
        first.enter(Stage::OpenBao);
        first.met(Class::NoLeader);
        assert_eq!((second.stage(), second.last_met()), (Some(Stage::OpenBao), Some(Class::NoLeader)));
        first.follow(&first);
        assert_eq!(first.stage(), Some(Stage::Flight), "nobody follows itself");
    }
}
