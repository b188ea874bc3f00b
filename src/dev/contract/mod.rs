//! A table of requests with the answers that OpenBao gives, in order, for any OpenBao. The embedded server and real OpenBao
//! are held to the same rows, byte for byte except where a row says that a value is free.

mod access;
mod batch;
mod crypt;
mod keys;
mod login;
mod row;
mod run;
mod sys;
mod tokens;

pub use row::Row;
pub use run::{ContractError, Failure, Report, Target, run};

/// All rows, in the order in which they build on each other. They want an OpenBao that nobody has used yet.
pub fn rows() -> Vec<Row> {
    [keys::rows(), crypt::rows(), batch::rows(), access::rows(), tokens::rows(), login::rows(), sys::rows()].concat()
}
