//! The real `xfaas` in one network namespace, clients in another: packets reach their session's core, whatever wraps them; what is not
//! ours passes untouched; what is broken is counted and harms nobody; and nothing is left behind.

#[path = "../lab/mod.rs"]
mod lab;

mod connections;
mod datagrams;
mod foreign;
mod hostile;
mod life;
mod modes;
