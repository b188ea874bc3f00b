//! Faults on command: what a broken network, a broken server or a broken reply looks like to a client. A rule matches a
//! part of the path and may be limited to a number of requests.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What goes wrong.
#[derive(Debug, Clone)]
pub enum Fault {
    /// An answer of this status and body instead of the real one.
    Reply {
        /// HTTP status.
        status: u16,
        /// The body, word for word.
        body: String,
    },
    /// 429 of a rate limit quota, with this `Retry-After` in seconds where there is one.
    Limited(Option<u64>),
    /// The real answer, later.
    Delay(Duration),
    /// The connection is cut before any answer; the request was **not** carried out.
    Reset,
    /// The request is carried out and the connection cut in the middle of its answer.
    ResetMidBody,
    /// No answer, ever; the request was not carried out.
    Hang,
    /// The head of the answer comes, its body never does.
    HangMidBody,
    /// 307 to this base URL, with the request's own path added.
    Redirect(String),
    /// 200 with this many bytes of JSON.
    Huge(usize),
    /// 200 with half a JSON document.
    Malformed,
    /// The real answer, with another `key_version` beside the ciphertext (encrypt only).
    WrongKeyVersion(u64),
}

/// Names a rule, so that it can be taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultId(u64);

struct Rule {
    id: u64,
    part: String,
    left: Option<u64>,
    fault: Fault,
}

/// A list of rules; the first that matches acts.
#[derive(Default)]
pub struct Faults {
    rules: Mutex<Vec<Rule>>,
    next: AtomicU64,
}

impl Faults {
    /// Every request whose path contains `part` fails, until the rule is taken back. `""` matches every request; `part` is
    /// compared with the path below `/v1/`, such as `transit/decrypt/k`.
    pub fn add(&self, part: &str, fault: Fault) -> FaultId {
        self.push(part, fault, None)
    }

    /// As [`Faults::add`], for the next `times` matching requests.
    pub fn add_times(&self, part: &str, fault: Fault, times: u64) -> FaultId {
        self.push(part, fault, Some(times))
    }

    /// Takes one rule back. Requests it already holds stay held.
    pub fn remove(&self, id: FaultId) {
        self.lock().retain(|rule| rule.id != id.0);
    }

    /// Takes every rule back.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// The fault for a request, if any; counts down the rule it comes from.
    pub(super) fn take(&self, path: &str) -> Option<Fault> {
        let mut rules = self.lock();
        let at = rules.iter().position(|rule| path.contains(&rule.part) && rule.left != Some(0))?;
        let rule = &mut rules[at];
        let fault = rule.fault.clone();
        if let Some(left) = &mut rule.left {
            *left -= 1;
        }
        rules.retain(|rule| rule.left != Some(0));
        Some(fault)
    }

    fn push(&self, part: &str, fault: Fault, left: Option<u64>) -> FaultId {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().push(Rule { id, part: part.to_owned(), left, fault });
        FaultId(id)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Rule>> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_match_in_order_and_run_out() {
        let faults = Faults::default();
        let hang = faults.add("decrypt", Fault::Hang);
        faults.add_times("", Fault::Malformed, 1);
        assert!(matches!(faults.take("transit/decrypt/k"), Some(Fault::Hang)));
        assert!(matches!(faults.take("transit/encrypt/k"), Some(Fault::Malformed)));
        assert!(faults.take("transit/encrypt/k").is_none());
        faults.remove(hang);
        assert!(faults.take("transit/decrypt/k").is_none());
    }
}
