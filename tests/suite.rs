//! The integration tests: one binary, one file per subject under `suite/`.

mod suite {
    #[cfg(feature = "dev")]
    mod admin;
    mod authority;
    #[cfg(feature = "dev")]
    mod bao;
    #[cfg(feature = "dev")]
    mod collector;
    mod config;
    #[cfg(feature = "dev")]
    mod contract;
    mod deploy;
    #[cfg(feature = "dev")]
    mod dev;
    mod door;
    #[cfg(feature = "dev")]
    mod faults;
    #[cfg(feature = "dev")]
    mod gauges;
    mod generated;
    #[cfg(feature = "dev")]
    mod handover;
    mod hostile;
    mod house;
    mod inherit;
    #[cfg(feature = "dev")]
    mod logs;
    mod pages;
    mod peers;
    #[cfg(feature = "dev")]
    mod pipe;
    mod probe;
    mod puppet;
    #[cfg(feature = "dev")]
    mod serve;
    #[cfg(feature = "dev")]
    mod session;
    #[cfg(feature = "dev")]
    mod soak;
    mod socket;
    #[cfg(feature = "dev")]
    mod stub;
    #[cfg(feature = "dev")]
    mod support;
    #[cfg(feature = "dev")]
    mod traces;
    #[cfg(feature = "dev")]
    mod transit;
    #[cfg(feature = "dev")]
    mod user;
}
