//! Starts the binary `limit`, which lies beside the one that runs.

use super::process::{Server, ServerError, directory, free_addresses, takes_connections};
use crate::load::Interrupt;
use std::process::Command;

/// The bare io_uring echo on `cpu`.
pub fn start_limit(cpu: u16, interrupt: &Interrupt) -> Result<Server, ServerError> {
    let own = std::env::current_exe().map_err(|source| ServerError::File { operation: "find", path: "this program".into(), source })?;
    let binary = own.with_file_name("limit");
    if !binary.is_file() {
        return Err(ServerError::Missing { path: binary, hint: "build it with `cargo build --release -p xfaas-bench --bins`" });
    }
    let [address] = free_addresses()?;
    let mut command = Command::new(binary);
    command.args(["--listen", &address.to_string(), "--cpu", &cpu.to_string()]);
    Server::start("limit", &mut command, address, directory("limit")?, interrupt, takes_connections)
}
