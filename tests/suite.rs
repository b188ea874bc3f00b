//! The integration tests: one binary, one file per subject under `suite/`.

mod suite {
    #[cfg(feature = "dev")]
    mod admin;
    #[cfg(feature = "dev")]
    mod asked;
    mod authority;
    #[cfg(feature = "dev")]
    mod bao;
    mod claims;
    #[cfg(feature = "dev")]
    mod coast;
    #[cfg(feature = "dev")]
    mod collector;
    mod commands;
    mod config;
    #[cfg(feature = "dev")]
    mod contract;
    mod deploy;
    #[cfg(feature = "dev")]
    mod dev;
    #[cfg(feature = "dev")]
    mod disk;
    mod door;
    #[cfg(feature = "dev")]
    mod dying;
    #[cfg(feature = "dev")]
    mod faults;
    mod findings;
    #[cfg(feature = "dev")]
    mod flood;
    #[cfg(feature = "dev")]
    mod gauges;
    mod generated;
    #[cfg(feature = "dev")]
    mod handover;
    #[cfg(feature = "dev")]
    mod hang;
    mod hostile;
    mod house;
    mod inherit;
    #[cfg(feature = "dev")]
    mod isolation;
    #[cfg(feature = "dev")]
    mod key_trouble;
    #[cfg(feature = "dev")]
    mod load;
    #[cfg(feature = "dev")]
    mod logins;
    #[cfg(feature = "dev")]
    mod logs;
    #[cfg(feature = "dev")]
    mod metrics;
    #[cfg(feature = "dev")]
    mod nodes;
    #[cfg(feature = "dev")]
    mod outages;
    mod overlay;
    mod owners;
    mod pages;
    #[cfg(feature = "dev")]
    mod pause;
    mod peers;
    #[cfg(feature = "dev")]
    mod pipe;
    mod probe;
    mod puppet;
    #[cfg(feature = "dev")]
    mod recovery;
    #[cfg(feature = "dev")]
    mod reload;
    #[cfg(feature = "dev")]
    mod reload_login;
    #[cfg(feature = "dev")]
    mod reload_refused;
    #[cfg(feature = "dev")]
    mod reload_taken;
    #[cfg(feature = "dev")]
    mod rotation;
    #[cfg(feature = "dev")]
    mod secrets;
    #[cfg(feature = "dev")]
    mod serve;
    #[cfg(feature = "dev")]
    mod session;
    #[cfg(feature = "dev")]
    mod sigkill;
    #[cfg(feature = "dev")]
    mod silence;
    #[cfg(feature = "dev")]
    mod soak;
    #[cfg(feature = "dev")]
    mod soak_beside;
    mod socket;
    #[cfg(feature = "dev")]
    mod standbys;
    #[cfg(feature = "dev")]
    mod storm;
    #[cfg(feature = "dev")]
    mod stub;
    #[cfg(feature = "dev")]
    mod succession;
    #[cfg(feature = "dev")]
    mod support;
    #[cfg(feature = "dev")]
    mod traces;
    #[cfg(feature = "dev")]
    mod transit;
    #[cfg(feature = "dev")]
    mod user;
    #[cfg(feature = "dev")]
    mod witness;
}
