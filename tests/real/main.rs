//! x
mod components;
mod install;
mod support;
