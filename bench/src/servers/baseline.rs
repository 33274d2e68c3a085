//! The paper's baseline: the guests of xfaas on the program `baseline`, which lies beside the one that runs, with their state in a store.

use super::contained::{Contained, Program};
use super::process::{Server, ServerError, directory, free_addresses};
use super::xfaas::XfaasFiles;
use crate::load::{Interrupt, fetch};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

/// Where the baseline keeps the sessions' state.
#[derive(Clone, Copy, Debug)]
pub enum BaselineStore<'a> {
    Redis(SocketAddr),
    /// An S3-compatible store, and the bucket.
    Objects(SocketAddr, &'a str),
}

/// The baseline's host on `cpu`, serving the functions of figures.
pub fn start_baseline(files: &XfaasFiles, store: BaselineStore<'_>, cpu: u16, interrupt: &Interrupt) -> Result<Server, ServerError> {
    let [address] = free_addresses()?;
    let mut command = command(files, address, cpu)?;
    match store {
        BaselineStore::Redis(store) => command.args(["--state", &format!("redis://{store}")]),
        BaselineStore::Objects(store, bucket) => {
            command.args(["--state", &format!("s3://{bucket}"), "--endpoint", &format!("http://{store}")])
        }
    };
    Server::start("baseline", &mut command, address, directory("baseline")?, interrupt, answers)
}

/// The same as a traditional container that hosts `function` alone, its state in the redis at `socket`: until it has answered its first request.
pub fn start_contained_baseline(
    files: &XfaasFiles,
    socket: &Path,
    function: &str,
    cpu: u16,
    interrupt: &Interrupt,
) -> Result<Contained, ServerError> {
    let [address] = free_addresses()?;
    let mut command = command(files, address, cpu)?;
    command.args(["--state", &format!("redis+unix://{}", socket.display()), "--function", function]);
    let request = format!("GET /f/{function} HTTP/1.1\r\nhost: {address}\r\nx-session-id: is-it-there-yet\r\n\r\n");
    let program = Program { name: "baseline", command, address, request: request.as_bytes() };
    Contained::start(program, cpu, interrupt)
}

fn command(files: &XfaasFiles, address: SocketAddr, cpu: u16) -> Result<Command, ServerError> {
    let own = std::env::current_exe().map_err(|source| ServerError::File { operation: "find", path: "this program".into(), source })?;
    // Tests and benches lie in a folder of their own.
    let mut folders = own.ancestors().skip(1).take(2).map(|folder| folder.join("baseline"));
    let binary = folders.find(|path| path.is_file()).ok_or_else(|| ServerError::Missing {
        path: own.with_file_name("baseline"),
        hint: "build it with `cargo build --release -p xfaas-bench --bins`",
    })?;
    let guests = std::path::absolute(&files.guests);
    let guests = guests.map_err(|source| ServerError::File { operation: "find", path: files.guests.clone(), source })?;
    let mut command = Command::new(binary);
    command.args(["--listen", &address.to_string(), "--cpu", &cpu.to_string()]).arg("--guests").arg(guests);
    Ok(command)
}

fn answers(address: SocketAddr) -> bool {
    let request = format!("GET /f/echo HTTP/1.1\r\nhost: {address}\r\nx-session-id: is-it-there-yet\r\n\r\n");
    fetch(address, request.as_bytes()).is_ok_and(|fetched| fetched.status == 200)
}
