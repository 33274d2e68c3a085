//! redis as a yardstick: one server that keeps nothing on disk, or one that syncs every write before it answers.

use super::process::{Server, ServerError, directory, free_addresses, takes_connections};
use crate::load::Interrupt;
use std::path::PathBuf;
use std::process::Command;

/// In the server's directory, where it runs.
const SOCKET: &str = "redis.sock";

/// redis on loopback, all its threads on `cpu`.
pub fn start_redis(cpu: u16, interrupt: &Interrupt) -> Result<Server, ServerError> {
    start(cpu, interrupt, &["--appendonly", "no"])
}

/// The same with `appendfsync always`, its log in the directory for temporary files.
pub fn start_redis_always(cpu: u16, interrupt: &Interrupt) -> Result<Server, ServerError> {
    start(cpu, interrupt, &["--appendonly", "yes", "--appendfsync", "always"])
}

/// The same as the first, with a socket file too: for a host in a network of its own, which does not reach loopback. Output: also that file.
pub fn start_redis_with_socket(cpu: u16, interrupt: &Interrupt) -> Result<(Server, PathBuf), ServerError> {
    let server = start(cpu, interrupt, &["--appendonly", "no", "--unixsocket", SOCKET])?;
    let socket = server.directory().join(SOCKET);
    Ok((server, socket))
}

fn start(cpu: u16, interrupt: &Interrupt, durability: &[&str]) -> Result<Server, ServerError> {
    let directory = directory("redis")?;
    let [address] = free_addresses()?;
    let mut command = Command::new("redis-server");
    command.args(["--bind", &address.ip().to_string(), "--port", &address.port().to_string(), "--save", ""]).args(durability);
    command.args(["--server_cpulist", &cpu.to_string(), "--daemonize", "no"]).arg("--dir").arg(directory.path());
    Server::start("redis", &mut command, address, directory, interrupt, takes_connections)
}
