//! Whether metadata shows less of a key than was seen before. A standby that lags does so for a moment, and is passed over;
//! a key that was rolled back or made anew does so until somebody puts it right.

use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Class, Error};
use crate::key::{KeyState, Loss, Metadata};
use crate::request::Progress;

/// For how long metadata behind what was seen may come from a standby that lags.
pub(super) const LAG: Duration = Duration::from_secs(10);

/// Since when metadata has been behind, and which addresses gave such metadata.
#[derive(Default)]
pub(super) struct Hindsight {
    behind: Option<(Instant, Vec<usize>)>,
}

// === impl Hindsight ===

impl Hindsight {
    /// Whether this metadata is to be passed over. By the time that it is an error every other address has been asked.
    pub(super) fn passes_over(
        &mut self,
        key: &KeyState,
        metadata: &Metadata,
        endpoint: Option<usize>,
        now: Instant,
    ) -> Result<bool, Error> {
        let before_us = key.remembered().and_then(|seen| seen.lost_in(metadata));
        let by_us = key.trusted().and_then(|view| view.lost_in(metadata));
        let Some(loss) = before_us.max(by_us) else {
            self.behind = None;
            return Ok(false);
        };
        let (since, laggards) = self.behind.get_or_insert((now, Vec::new()));
        laggards.extend(endpoint.filter(|at| !laggards.contains(at)));
        match loss {
            Loss::Behind if now.duration_since(*since) < LAG => Ok(true),
            Loss::Behind => Err(Error::new(Class::KeyRolledBack, "the highest versions are gone")),
            Loss::Recreated => Err(Error::new(Class::KeyRolledBack, "a version was made at another time than before")),
        }
    }

    /// OpenBao was away: two answers with an outage between are no standby that lags for long.
    pub(super) fn forget(&mut self) {
        self.behind = None;
    }

    /// For a call that had better not ask those whose metadata was behind.
    pub(super) fn beside_laggards(&self) -> Progress {
        let progress = Progress::default();
        for &at in self.behind.iter().flat_map(|(_, laggards)| laggards) {
            progress.avoid(at);
        }
        progress
    }
}
