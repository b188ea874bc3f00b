//! What an OpenBao cluster remembers, and the hooks by which tests reach into it. It outlives every [`super::Server`] in
//! front of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::calls::Calls;
use super::clock::Clock;
use super::faults::Faults;
use super::namespaces::Namespace;
use super::reply::{fill, random_text, uuid};
use super::tls::Authority;
use super::tokens::{Mint, Tokens};

/// The cluster behind one or more servers.
pub struct State {
    inner: Mutex<Inner>,
    pub(super) clock: Clock,
    pub(super) faults: Faults,
    pub(super) calls: Calls,
    authority: Authority,
    root_token: String,
    pub(super) unseal_key: [u8; 32],
    pub(super) cluster_id: String,
}

/// What the lock guards.
pub struct Inner {
    pub sealed: bool,
    /// By path: `""` is root, others end in `/`.
    pub namespaces: BTreeMap<String, Namespace>,
    pub tokens: Tokens,
}

impl State {
    /// A fresh, unsealed cluster with this root token, or a random one.
    ///
    /// # Errors
    /// When the certificates cannot be made.
    pub fn new(root_token: Option<String>) -> Result<Arc<State>, rcgen::Error> {
        let root_token = root_token.unwrap_or_else(|| format!("s.{}", random_text(24)));
        let clock = Clock::default();
        let mut tokens = Tokens::default();
        tokens.mint(Mint::root(root_token.clone()), clock.now());
        let mut unseal_key = [0u8; 32];
        fill(&mut unseal_key);
        Ok(Arc::new(State {
            inner: Mutex::new(Inner {
                sealed: false,
                namespaces: BTreeMap::from([(String::new(), Namespace::root())]),
                tokens,
            }),
            clock,
            faults: Faults::default(),
            calls: Calls::default(),
            authority: Authority::generate()?,
            root_token,
            unseal_key,
            cluster_id: uuid(),
        }))
    }

    /// The root token.
    pub fn root_token(&self) -> String {
        self.root_token.clone()
    }

    /// The unseal key, as `sys/unseal` takes it.
    pub fn unseal_key(&self) -> String {
        STANDARD.encode(self.unseal_key)
    }

    /// The authority that signs the certificates of every server, as PEM.
    pub fn ca_pem(&self) -> String {
        self.authority.pem()
    }

    /// Faults of every node.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// What all nodes together have answered.
    pub fn calls(&self) -> &Calls {
        &self.calls
    }

    /// Shifts the cluster's clock by `ms` milliseconds against the system's (negative: behind). Token lifetimes, JWT times,
    /// creation times and the `Date` header follow.
    pub fn set_clock_offset_ms(&self, ms: i64) {
        self.clock.set_offset_ms(ms);
    }

    /// Seals the cluster: everything but health, seal status and unseal answers 503.
    pub fn seal(&self) {
        self.lock().sealed = true;
    }

    /// Unseals the cluster. Tokens and keys are as before.
    pub fn unseal(&self) {
        self.lock().sealed = false;
    }

    /// Ends every token but the root token.
    pub fn revoke_all_tokens(&self) {
        self.lock().tokens.revoke_all_but(&self.root_token);
    }

    /// How many tokens are alive, the root token included.
    pub fn live_tokens(&self) -> usize {
        self.lock().tokens.live(self.clock.now())
    }

    /// The tokens that are alive, the root token included: for tests that search where none may stand.
    pub fn tokens(&self) -> Vec<String> {
        self.lock().tokens.ids(self.clock.now())
    }

    pub(super) fn authority(&self) -> &Authority {
        &self.authority
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
