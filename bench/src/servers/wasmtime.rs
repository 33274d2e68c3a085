//! `wasmtime serve` with a component that answers every request with 200 and `1`, which is written in the text format so that no compiler of
//! components is needed. Pooled instances; all threads on the caller's CPUs.

use super::process::{Server, ServerError, directory, free_addresses, installed, write};
use crate::load::{Interrupt, fetch};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

const COMPONENT: &str = include_str!("../../peers/hello.wat");
const BINARY: &str = "wasmtime/wasmtime_cli/wasmtime";

/// `requests_per_instance`: how many requests one instance may serve, one at a time; wasmtime's own choice is 1.
pub fn start_wasmtime(packages: &Path, requests_per_instance: u32, interrupt: &Interrupt) -> Result<Server, ServerError> {
    let binary = installed(packages, BINARY)?;
    let directory = directory("wasmtime")?;
    let [address] = free_addresses()?;
    let component = directory.path().join("hello.wat");
    write(&component, COMPONENT)?;
    let mut command = Command::new(binary);
    command.args(["serve", "-O", "pooling-allocator=y"]);
    // Without it the pages of memory and stack are given back after each request, which costs more than the request.
    command.args(["-O", "pooling-memory-keep-resident=131072", "-O", "pooling-table-keep-resident=65536"]);
    command.args(["-O", "pooling-async-stack-keep-resident=65536", "--addr", &address.to_string()]);
    command.args(["--max-instance-reuse-count", &requests_per_instance.to_string()]).arg(component);
    Server::start("wasmtime", &mut command, address, directory, interrupt, answers)
}

fn answers(address: SocketAddr) -> bool {
    let request = format!("GET / HTTP/1.1\r\nhost: {address}\r\n\r\n");
    fetch(address, request.as_bytes()).is_ok_and(|fetched| fetched.status == 200)
}
