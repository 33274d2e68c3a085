//! redis as a yardstick: one server that keeps nothing on disk.

use super::process::{Server, ServerError, directory, free_addresses, takes_connections};
use crate::load::Interrupt;
use std::process::Command;

/// redis on loopback, all its threads on `cpu`.
pub fn start_redis(cpu: u16, interrupt: &Interrupt) -> Result<Server, ServerError> {
    let directory = directory("redis")?;
    let [address] = free_addresses()?;
    let mut command = Command::new("redis-server");
    command.args(["--bind", &address.ip().to_string(), "--port", &address.port().to_string(), "--save", "", "--appendonly", "no"]);
    command.args(["--server_cpulist", &cpu.to_string(), "--daemonize", "no"]).arg("--dir").arg(directory.path());
    Server::start("redis", &mut command, address, directory, interrupt, takes_connections)
}
