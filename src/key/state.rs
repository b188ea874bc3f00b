//! What a pipeline knows of its key at this moment: the current view, the announced one, and the health that Status
//! speaks of. Read in nanoseconds, written by the keeper and by what a process before it has left.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;

use super::config::{HealthPolicy, Rotation};
use super::{KeyId, Refresh, Seen, View, Why};
use crate::error::{Bearing, Class};

/// What Status answers once OpenBao has been away for longer than the tolerance.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Outage {
    /// The reason and an empty key_id: kube-apiserver stops writing three minutes after its last good poll.
    #[default]
    StopWrites,
    /// The reason and the last key_id: kube-apiserver goes on writing with the seed it has. For OpenBao's absence only.
    Coast,
}

/// What Status answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StatusReport {
    /// `ok` or the name of a class.
    pub healthz: &'static str,
    /// The announced key_id; `None` is sent as an empty text.
    pub key_id: Option<KeyId>,
}

/// The health of the whole path, as the keeper sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Health {
    /// When the path last worked from end to end.
    pub last_success: Option<Instant>,
    /// What is wrong, and since when.
    pub trouble: Option<(Class, Instant)>,
    /// The last trouble with the key or with the right to use it; only a success disproves it. While there is one, OpenBao's
    /// absence is not tolerated: what was wrong before it went away is still wrong.
    pub key_trouble: Option<Class>,
}

/// Current and announced view with the health beside them.
#[derive(Debug)]
pub struct KeyState {
    current: ArcSwapOption<View>,
    announced: ArcSwapOption<View>,
    /// Held while an answer to Status is made.
    announcing: Mutex<()>,
    first: watch::Sender<bool>,
    health: Mutex<Health>,
    policy: Mutex<Policy>,
    remembered: Mutex<Option<Seen>>,
    refresh: Refresh,
}

/// What the file says of health; a reload may change it.
#[derive(Clone, Copy, Debug)]
struct Policy {
    tolerance: Duration,
    outage: Outage,
    /// A success older than this, with no trouble since, means that nobody looks any more.
    stale_after: Duration,
}

/// How long one round of the keeper may take at most, with every question at its own deadline.
const LONGEST_ROUND: Duration = Duration::from_secs(60);

// === impl KeyState ===

impl KeyState {
    /// A state without a view, under these sections of the file.
    pub fn new(health: &HealthPolicy, rotation: &Rotation, refresh: Refresh) -> Self {
        Self {
            current: ArcSwapOption::empty(),
            announced: ArcSwapOption::empty(),
            announcing: Mutex::new(()),
            first: watch::Sender::new(false),
            health: Mutex::new(Health::default()),
            policy: Mutex::new(Policy::of(health, rotation)),
            remembered: Mutex::new(None),
            refresh,
        }
    }

    /// What a process before this one has seen, as it told or as its witness says: no look may show less. Of two that tell,
    /// the one that has seen more is believed.
    pub fn remember(&self, seen: Seen) {
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        *remembered = Some(remembered.map_or(seen, |known| known.newer(seen)));
    }

    /// What a process before this one has seen, if there was one.
    pub fn remembered(&self) -> Option<Seen> {
        *self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over other sections.
    pub fn set_policy(&self, health: &HealthPolicy, rotation: &Rotation) {
        *self.policy.lock().unwrap_or_else(PoisonError::into_inner) = Policy::of(health, rotation);
    }

    fn policy(&self) -> Policy {
        *self.policy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer to Status. A healthy one announces the current view: from then on Encrypt uses it.
    pub fn status(&self, now: Instant) -> StatusReport {
        // Of two at once the one that looked first must not announce last.
        let _turn = self.announcing.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.current.load_full();
        let trouble = self.shown_trouble(now);
        match (current, trouble) {
            (Some(view), None) => {
                let key_id = Some(view.active().key_id.clone());
                self.announced.store(Some(view));
                StatusReport { healthz: "ok", key_id }
            }
            (None, trouble) => StatusReport { healthz: trouble.unwrap_or(Class::Starting).name(), key_id: None },
            (Some(_), Some(class)) => {
                let coasts = self.policy().outage == Outage::Coast
                    && class.bearing() == Bearing::Absence
                    && self.health().key_trouble.is_none();
                let announced = if coasts { self.announced.load_full() } else { None };
                StatusReport { healthz: class.name(), key_id: announced.map(|view| view.active().key_id.clone()) }
            }
        }
    }

    /// The trouble that Status shows at this moment: absence only once the last success is older than the tolerance.
    pub fn shown_trouble(&self, now: Instant) -> Option<Class> {
        let (health, policy) = (self.health(), self.policy());
        let younger = |than: Duration| health.last_success.is_some_and(|at| now.saturating_duration_since(at) < than);
        let Some((class, _)) = health.trouble else {
            return match health.last_success {
                // Metadata alone proves no right to use the key.
                None => Some(Class::Starting),
                // A keeper that has come to a standstill must not leave Status at `ok` for ever.
                Some(_) => (!younger(policy.stale_after)).then_some(Class::Internal),
            };
        };
        let tolerated =
            class.bearing() == Bearing::Absence && health.key_trouble.is_none() && younger(policy.tolerance);
        (!tolerated).then_some(class)
    }

    /// Why nothing may be sealed even though OpenBao might do it: the key is not the one that was seen before, or does not
    /// open what it seals.
    pub fn seals_nothing(&self) -> Option<Class> {
        self.health().key_trouble.filter(|class| closes(*class) > 0)
    }

    /// The health as the keeper sees it, tolerated trouble included.
    pub fn health(&self) -> Health {
        *self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The keeper: the path works from end to end.
    pub fn succeeded(&self, now: Instant) {
        *self.health.lock().unwrap_or_else(PoisonError::into_inner) =
            Health { last_success: Some(now), ..Health::default() };
    }

    /// The keeper: the path does not work. The time of the first failure in a row is kept.
    pub fn failed(&self, class: Class, now: Instant) {
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        let since = health.trouble.map_or(now, |(_, since)| since);
        health.trouble = Some((class, since));
        // Another key than before is not excused by a right that is missing as well.
        if class.bearing() == Bearing::Key && health.key_trouble.map_or(0, closes) <= closes(class) {
            health.key_trouble = Some(class);
        }
    }

    /// The keeper: a newer view. Whoever waits for the first one goes on.
    pub fn publish(&self, view: Arc<View>) {
        self.current.store(Some(view));
        self.first.send_replace(true);
    }

    /// The current view, if there is one.
    pub fn peek(&self) -> Option<Arc<View>> {
        self.current.load_full()
    }

    /// Whether the key shows less than was seen of it, be it that nothing is said yet because a standby may lag.
    pub fn is_in_doubt(&self) -> bool {
        let rolled_back = self.health().key_trouble == Some(Class::KeyRolledBack);
        rolled_back || (self.peek().is_some() && self.trusted().is_none())
    }

    /// The most that was seen of the key, by this process or one before it.
    pub fn seen(&self) -> Option<Seen> {
        let by_us = self.trusted().map(|view| view.seen());
        by_us.into_iter().chain(self.remembered()).reduce(Seen::newer)
    }

    /// The current view, unless it lacks what was seen before it: then it is there to open what is left, and no yardstick.
    pub fn trusted(&self) -> Option<Arc<View>> {
        let remembered = self.remembered();
        self.peek().filter(|view| remembered.and_then(|seen| seen.lost_in_view(view)).is_none())
    }

    /// The view that the last healthy Status announced, if there was one.
    pub fn peek_announced(&self) -> Option<Arc<View>> {
        self.announced.load_full()
    }

    /// For Decrypt: the current view; waits for the first one.
    pub async fn current(&self) -> Arc<View> {
        loop {
            if let Some(view) = self.current.load_full() {
                return view;
            }
            let mut first = self.first.subscribe();
            // The sender lives as long as `self`; an error cannot happen while we are borrowed.
            let _ = first.wait_for(|published| *published).await;
        }
    }

    /// For Encrypt: the announced view, so that its key_id is what Status last said; the current one before the first
    /// Status, and when OpenBao no longer permits encrypting with the announced version.
    pub async fn announced(&self) -> Arc<View> {
        let current = self.current().await;
        match self.announced.load_full() {
            Some(announced) if current.may_encrypt(announced.active().number) => announced,
            _ => current,
        }
    }

    /// Asks the keeper to read the metadata now; see [`Refresh::ask`].
    pub async fn refresh(&self, why: Why) {
        self.refresh.ask(why).await;
    }

    /// A call has met this: what touches the key or the right to use it must show in Status at once, not with the keeper's
    /// next look.
    pub fn call_met(&self, class: Class) {
        if class.bearing() == Bearing::Key && self.health().trouble.is_none() {
            self.refresh.hint(Why::KeyTrouble);
        }
    }
}

/// How strongly trouble with the key forbids to seal: the greater is remembered. 0: OpenBao itself refuses, or may be asked.
fn closes(class: Class) -> u8 {
    match class {
        Class::KeyRolledBack => 2,
        Class::KeyUnusable => 1,
        _ => 0,
    }
}

// === impl Policy ===

impl Policy {
    fn of(health: &HealthPolicy, rotation: &Rotation) -> Self {
        let tolerance = health.tolerance.get();
        let stale_after = tolerance.max(rotation.metadata_interval.get() * 2) + LONGEST_ROUND;
        Self { tolerance, outage: health.outage, stale_after }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::identity::{Identity, tests::config};
    use crate::key::{Metadata, refresh};

    const TOLERANCE: Duration = Duration::from_secs(180);

    fn state(outage: Outage) -> KeyState {
        let health = HealthPolicy { outage, ..HealthPolicy::default() };
        KeyState::new(&health, &Rotation::default(), refresh::channel(Duration::from_secs(30)).0)
    }

    fn view(keys: &[(u32, u64)], min_encryption: u32) -> Arc<View> {
        let identity = Identity::new(&config(), "").expect("identity");
        let metadata = Metadata {
            key_type: "aes256-gcm96".into(),
            derived: false,
            convergent_encryption: false,
            exportable: false,
            allow_plaintext_backup: false,
            deletion_allowed: false,
            soft_deleted: false,
            supports_encryption: true,
            supports_decryption: true,
            latest_version: keys.len() as u32,
            min_decryption_version: 1,
            min_encryption_version: min_encryption,
            min_available_version: 0,
            keys: keys.iter().copied().collect(),
        };
        Arc::new(View::at(&identity, &metadata, 1_000_000, 120, None).expect("view"))
    }

    #[test]
    fn status_says_starting_then_why_then_ok() {
        let (state, now) = (state(Outage::StopWrites), Instant::now());
        assert_eq!(state.status(now), StatusReport { healthz: "starting", key_id: None });
        state.failed(Class::Unreachable, now);
        assert_eq!(state.status(now), StatusReport { healthz: "unreachable", key_id: None });
        let state = super::tests::state(Outage::StopWrites);
        state.publish(view(&[(1, 1)], 0));
        assert_eq!(state.status(now), StatusReport { healthz: "starting", key_id: None }, "nothing is proved yet");
        state.succeeded(now);
        assert_eq!(state.status(now).healthz, "ok");
        assert!(state.status(now).key_id.is_some());
    }

    #[test]
    fn absence_is_tolerated_for_a_while_and_trouble_with_the_key_is_not() {
        let (state, now) = (state(Outage::StopWrites), Instant::now());
        state.publish(view(&[(1, 1)], 0));
        state.succeeded(now);
        state.failed(Class::Sealed, now + Duration::from_secs(1));
        assert_eq!(state.status(now + TOLERANCE - Duration::from_millis(1)).healthz, "ok");
        assert_eq!(state.status(now + TOLERANCE), StatusReport { healthz: "sealed", key_id: None });
        state.succeeded(now + TOLERANCE);
        state.failed(Class::KeySoftDeleted, now + TOLERANCE);
        assert_eq!(state.status(now + TOLERANCE), StatusReport { healthz: "key_soft_deleted", key_id: None });
    }

    #[test]
    fn coasting_keeps_the_last_key_id_for_absence_only() {
        let (state, now) = (state(Outage::Coast), Instant::now());
        state.publish(view(&[(1, 1)], 0));
        state.succeeded(now);
        let announced = state.status(now).key_id;
        state.failed(Class::Unreachable, now);
        assert_eq!(state.status(now + TOLERANCE), StatusReport { healthz: "unreachable", key_id: announced.clone() });
        state.failed(Class::TokenRejected, now);
        assert_eq!(state.status(now + TOLERANCE), StatusReport { healthz: "token_rejected", key_id: None });
    }

    #[test]
    fn absence_after_trouble_with_the_key_is_neither_tolerated_nor_coasted_through() {
        let (state, now) = (state(Outage::Coast), Instant::now());
        state.publish(view(&[(1, 1)], 0));
        state.succeeded(now);
        state.status(now);
        state.failed(Class::KeyRolledBack, now);
        state.failed(Class::TokenRejected, now);
        state.failed(Class::Unreachable, now);
        assert_eq!(state.status(now), StatusReport { healthz: "unreachable", key_id: None });
        assert_eq!(state.status(now + TOLERANCE * 2), StatusReport { healthz: "unreachable", key_id: None });
        assert_eq!(state.seals_nothing(), Some(Class::KeyRolledBack));
        state.succeeded(now);
        assert_eq!((state.status(now).healthz, state.seals_nothing()), ("ok", None));
    }

    #[test]
    fn a_success_that_nobody_repeats_does_not_last_for_ever() {
        let (state, now) = (state(Outage::StopWrites), Instant::now());
        state.publish(view(&[(1, 1)], 0));
        state.succeeded(now);
        assert_eq!(state.status(now + TOLERANCE).healthz, "ok");
        let later = now + Duration::from_secs(3_600);
        assert_eq!(state.status(later), StatusReport { healthz: "internal", key_id: None });
        state.succeeded(later);
        assert_eq!(state.status(later).healthz, "ok");
    }

    #[tokio::test]
    async fn encrypt_uses_what_status_announced_and_decrypt_what_is_current() {
        let (state, now) = (state(Outage::StopWrites), Instant::now());
        let (old, new) = (view(&[(1, 1)], 0), view(&[(1, 1), (2, 2)], 0));
        state.publish(old.clone());
        state.succeeded(now);
        state.status(now);
        state.publish(new.clone());
        assert_eq!(state.announced().await.active().number, 1);
        assert_eq!(state.current().await.active().number, 2);
        assert_eq!(state.status(now).key_id.as_ref(), Some(&new.active().key_id));
        assert_eq!(state.announced().await.active().number, 2);
    }

    #[tokio::test]
    async fn encrypt_leaves_an_announced_version_that_may_no_longer_encrypt() {
        let (state, now) = (state(Outage::StopWrites), Instant::now());
        state.publish(view(&[(1, 1)], 0));
        state.succeeded(now);
        state.status(now);
        state.publish(view(&[(1, 1), (2, 2)], 2));
        assert_eq!(state.announced().await.active().number, 2);
    }

    #[test]
    fn a_view_that_lacks_what_is_remembered_is_no_yardstick_and_hides_nothing() {
        let (state, second) = (state(Outage::StopWrites), view(&[(1, 1), (2, 2)], 0).seen());
        state.publish(view(&[(1, 1)], 0));
        assert_eq!(state.seen(), state.trusted().map(|view| view.seen()));
        state.remember(second);
        assert_eq!((state.seen(), state.trusted()), (Some(second), None));
        state.publish(view(&[(1, 1), (2, 2), (3, 3)], 0));
        assert_eq!(state.seen().map(|seen| seen.latest), Some((3, 3)));
        assert!(state.trusted().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn calls_wait_for_the_first_view() {
        let state = Arc::new(state(Outage::StopWrites));
        let waiting = tokio::spawn({
            let state = state.clone();
            async move { state.current().await.active().number }
        });
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(!waiting.is_finished());
        state.publish(view(&[(1, 1)], 0));
        assert_eq!(waiting.await.expect("task"), 1);
    }
}
