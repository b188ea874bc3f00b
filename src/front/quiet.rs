//! A thing that is said once a minute at most: whoever knocks all day must not fill the log.

use std::time::Duration;

use tokio::time::Instant;

const QUIET: Duration = Duration::from_secs(60);

/// When it was last said.
#[derive(Debug, Default)]
pub(super) struct Quiet(Option<Instant>);

// === impl Quiet ===

impl Quiet {
    /// Whether it is time to say it again; then it counts as said.
    pub(super) fn tells(&mut self) -> bool {
        let now = Instant::now();
        let due = self.0.is_none_or(|told| now.saturating_duration_since(told) >= QUIET);
        if due {
            self.0 = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn once_a_minute() {
        let (mut quiet, mut told) = (Quiet::default(), Vec::new());
        for pause in [0, 1, 58, 1, 1, 60] {
            tokio::time::advance(Duration::from_secs(pause)).await;
            told.push(quiet.tells());
        }
        assert_eq!(told, [true, false, false, true, false, true]);
    }
}
