//! x
mod components;
mod contract;
mod install;
mod support;
