//! x
mod support;
mod components;
mod contract;
mod install;
