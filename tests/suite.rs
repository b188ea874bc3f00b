//! The integration tests: one binary, one file per subject under `suite/`.

mod suite {
    mod deploy;
}
