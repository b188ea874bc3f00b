//! The program between a real OpenBao, a real etcd and a real kube-apiserver. `tests/real/run` builds those and starts
//! this; a missing component is a failure, never a test that is passed over.

mod support;

mod clock;
mod components;
mod contract;
mod install;
mod login;
mod nodes;
mod old;
mod outage;
mod raft;
mod repair;
mod service;
mod snapshot;
mod socket;
mod stored;
mod trouble;
