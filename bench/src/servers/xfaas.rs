//! xfaas itself, as a user starts it: `xfaas run --config`, one shard, steering off.

use super::process::{Server, ServerError, directory, free_addresses_in, scratch_directory, write};
use crate::load::{Interrupt, fetch};
use crate::network::Network;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Name and module of each function, and whether it only reads. All counters are of one app, so that each can be read.
pub const FUNCTIONS: [(&str, bool); 4] = [("echo", false), ("counter-read", true), ("counter-rmw", false), ("counter-rmw-linear", false)];

/// The one whose sessions' state is asked for over RPC.
pub const RPC_FUNCTION: &str = "counter-rmw";
/// The app of all counters.
pub const RPC_APP: &str = "counters";

/// Where what is measured comes from.
#[derive(Clone, Debug)]
pub struct XfaasFiles {
    /// The `xfaas` binary.
    pub binary: PathBuf,
    /// Directory of `<function>.wasm`.
    pub guests: PathBuf,
}

impl XfaasFiles {
    /// Errors: the program is not there.
    pub(super) fn check_binary(&self) -> Result<(), ServerError> {
        if self.binary.is_file() {
            return Ok(());
        }
        let hint = "build it with `cargo build --release -p xfaas-dataplane`, or say where it is with XFAAS_BIN";
        Err(ServerError::Missing { path: self.binary.clone(), hint })
    }

    /// Errors: the first file that is not there.
    pub fn check(&self) -> Result<(), ServerError> {
        self.check_binary()?;
        FUNCTIONS.iter().try_for_each(|(function, _)| self.guest(function).map(drop))
    }

    /// The module of `function`. Errors: it is not there.
    pub fn guest(&self, function: &str) -> Result<PathBuf, ServerError> {
        let path = self.guests.join(format!("{function}.wasm"));
        let absolute = std::path::absolute(&path).map_err(|source| ServerError::File { operation: "find", path: path.clone(), source })?;
        if absolute.is_file() {
            return Ok(absolute);
        }
        Err(ServerError::Missing { path, hint: "build the guests with `cargo xtask build`, or say where they are with XFAAS_GUESTS" })
    }
}

/// xfaas with one shard on `cpu` and the sample functions deployed, on loopback. HTTP and datagrams have the same address.
pub fn start_xfaas(files: &XfaasFiles, cpu: u16, interrupt: &Interrupt) -> Result<Server, ServerError> {
    start_xfaas_in(&Network::loopback(), files, cpu, interrupt).map(|(server, _)| server)
}

/// The same in `network`. Output: also the address of the RPC port.
pub fn start_xfaas_in(network: &Network, files: &XfaasFiles, cpu: u16, interrupt: &Interrupt) -> Result<(Server, SocketAddr), ServerError> {
    start_xfaas_steered(network, files, &Steered { cpus: &[cpu], mode: "off" }, interrupt)
}

/// Where xfaas runs, one shard on each CPU, and how packets find their shard.
#[derive(Clone, Copy, Debug)]
pub struct Steered<'a> {
    pub cpus: &'a [u16],
    /// `[steering] mode`; all but `off` need a veth pair and rights.
    pub mode: &'a str,
}

/// The same on many CPUs, or with the kernel's help.
pub fn start_xfaas_steered(
    network: &Network,
    files: &XfaasFiles,
    steered: &Steered<'_>,
    interrupt: &Interrupt,
) -> Result<(Server, SocketAddr), ServerError> {
    let directory = shared_directory()?;
    let shared = directory.path().join("shared");
    start_configured(network, files, steered, interrupt, (directory, &shared, ""))
}

/// The same with `durability = "sync"`, its log in the directory for temporary files. Output: also where its shared memory is.
pub fn start_xfaas_sync(files: &XfaasFiles, cpu: u16, interrupt: &Interrupt) -> Result<(Server, TempDir), ServerError> {
    let shared = shared_directory()?;
    let place = (directory("xfaas")?, shared.path(), "durability = \"sync\"\n");
    let (server, _) = start_configured(&Network::loopback(), files, &Steered { cpus: &[cpu], mode: "off" }, interrupt, place)?;
    Ok((server, shared))
}

fn shared_directory() -> Result<TempDir, ServerError> {
    scratch_directory("xfaas").map_err(|source| ServerError::File { operation: "make a directory in", path: "/dev/shm".into(), source })
}

/// `place`: of its files, of its shared memory, and what each function's entry has besides.
fn start_configured(
    network: &Network,
    files: &XfaasFiles,
    steered: &Steered<'_>,
    interrupt: &Interrupt,
    place: (TempDir, &Path, &str),
) -> Result<(Server, SocketAddr), ServerError> {
    files.check()?;
    let (directory, shared, keys) = place;
    let [http, admin, rpc] = free_addresses_in(network)?;
    let mut text = configuration_text((directory.path(), shared), http, admin, rpc, steered);
    if steered.mode != "off"
        && let Some(device) = network.server_device()?
    {
        writeln!(text, "iface = \"{device}\"").expect("a String takes all");
    }
    for (function, read_only) in FUNCTIONS {
        let app = if function == "echo" { "echo" } else { RPC_APP };
        let wasm = quoted(&files.guest(function)?);
        write!(text, "\n[[function]]\nname = \"{function}\"\napp = \"{app}\"\nwasm = {wasm}\nread_only = {read_only}\n{keys}")
            .expect("a String takes all");
    }
    let configuration = directory.path().join("xfaas.toml");
    write(&configuration, &text)?;
    let mut command = network.server_command(&files.binary);
    command.arg("run").arg("--config").arg(&configuration);
    // A namespace that is gone meanwhile is no answer either.
    let is_ready = |http| network.at_server(|| answers_for_every_function(http)).unwrap_or(false);
    Ok((Server::start("xfaas", &mut command, http, directory, interrupt, is_ready)?, rpc))
}

/// True when each function answers: it listens a moment before the last one is deployed.
fn answers_for_every_function(http: SocketAddr) -> bool {
    FUNCTIONS.iter().all(|(function, _)| {
        let request = format!("GET /f/{function} HTTP/1.1\r\nhost: {http}\r\nx-session-id: is-it-there-yet\r\n\r\n");
        fetch(http, request.as_bytes()).is_ok_and(|fetched| fetched.status == 200)
    })
}

pub(super) fn configuration_text(
    (directory, shared): (&Path, &Path),
    http: SocketAddr,
    admin: SocketAddr,
    rpc: SocketAddr,
    steered: &Steered<'_>,
) -> String {
    let Steered { cpus, mode } = steered;
    // The sessions' state lies in the directory too: a benchmark must leave nothing behind.
    let (state, shared) = (quoted(&directory.join("state")), quoted(shared));
    format!(
        "state_dir = {state}\nshared_memory_dir = {shared}\n\n\
         [listen]\nhttp = \"{http}\"\nudp = \"{http}\"\nadmin = \"{admin}\"\nrpc = \"{rpc}\"\n\n\
         [shards]\ncpus = {cpus:?}\n\n[steering]\nmode = \"{mode}\"\n"
    )
}

/// A path as a TOML basic string, which takes what a JSON string is.
pub(super) fn quoted(path: &Path) -> String {
    serde_json::Value::from(path.to_string_lossy().into_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_quoted() {
        assert_eq!(quoted(Path::new("/a b/\"c\"")), r#""/a b/\"c\"""#);
    }
}
