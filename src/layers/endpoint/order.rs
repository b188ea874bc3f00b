//! Which address comes next: the healthy ones in the order of the file, then those that failed longest ago. A call that
//! is repeated meets another address, because the one that failed it has just moved to the end.

use std::sync::{Mutex, PoisonError};

/// For each address, when it last failed in a row; counted, not timed.
#[derive(Debug)]
pub(super) struct Order {
    failed: Mutex<Failures>,
}

#[derive(Debug)]
struct Failures {
    at: Vec<Option<u64>>,
    count: u64,
}

// === impl Order ===

impl Order {
    pub(super) fn new(addresses: usize) -> Self {
        Self { failed: Mutex::new(Failures { at: vec![None; addresses], count: 0 }) }
    }

    /// The address for the next attempt. 0 when there is none, which the configuration excludes.
    pub(super) fn pick(&self) -> usize {
        let failures = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = failures.at.iter().enumerate().min_by_key(|(at, failed)| (failed.unwrap_or(0), *at));
        oldest.map_or(0, |(at, _)| at)
    }

    /// How an attempt with an address ended.
    pub(super) fn note(&self, address: usize, well: bool) {
        let mut failures = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failures.count += 1;
        let now = failures.count;
        if let Some(known) = failures.at.get_mut(address) {
            *known = (!well).then_some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_decides_until_an_address_fails() {
        let order = Order::new(3);
        assert_eq!(order.pick(), 0);
        order.note(0, false);
        assert_eq!(order.pick(), 1);
        order.note(1, false);
        assert_eq!(order.pick(), 2);
        order.note(2, false);
        assert_eq!(order.pick(), 0, "all failed: the one that failed longest ago");
        order.note(0, true);
        assert_eq!(order.pick(), 0);
    }
}
