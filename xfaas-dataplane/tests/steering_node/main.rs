//! The real `xfaas` in one network namespace, clients in another: packets reach their session's core, whatever wraps them; what is not
//! ours passes untouched; what is broken is counted and harms nobody; and nothing is left behind.
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

#[path = "../lab/mod.rs"]
mod lab;

mod connections;
mod containers;
mod datagrams;
mod foreign;
mod hostile;
mod life;
mod modes;
mod moves;
mod neighbours;
mod overload;
mod trace;
