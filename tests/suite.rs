//! The integration tests: one binary, one file per subject under `suite/`.

mod suite {
    mod config;
    #[cfg(feature = "dev")]
    mod contract;
    mod deploy;
    mod generated;
}
