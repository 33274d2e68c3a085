//! xfaas with functions and settings of one's own, that can be killed and started again on what it left behind.

use super::contained::{Contained, Program};
use super::process::{Server, ServerError, directory, free_addresses, scratch_directory, write};
use super::xfaas::{Steered, XfaasFiles, configuration_text, quoted};
use crate::load::{Interrupt, fetch};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use tempfile::TempDir;

/// A function to deploy.
#[derive(Clone, Copy, Debug)]
pub struct NodeFunction<'a> {
    pub name: &'a str,
    /// Name of its module.
    pub guest: &'a str,
    /// More lines of its entry in `xfaas.toml`, each with its line end; `app` among them if it is not the name.
    pub keys: &'a str,
}

/// Where a node's files are, and where it listens. Nothing runs; removed with its guard.
pub struct NodePlace {
    binary: PathBuf,
    files: TempDir,
    shared: TempDir,
    http: SocketAddr,
    admin: SocketAddr,
    rpc: SocketAddr,
    /// The request that must be answered before the node counts as started.
    probe: Vec<u8>,
}

impl NodePlace {
    /// A node with one shard on `cpu`, its shared memory on tmpfs and the rest in the directory for temporary files.
    /// `limits`: lines of `[limits]`. Errors: a module or the program is not there.
    pub fn new(files: &XfaasFiles, cpu: u16, limits: &str, functions: &[NodeFunction<'_>]) -> Result<NodePlace, ServerError> {
        NodePlace::on_cpus(files, &[cpu], limits, functions)
    }

    /// The same with a shard on each of `cpus`.
    pub fn on_cpus(files: &XfaasFiles, cpus: &[u16], limits: &str, functions: &[NodeFunction<'_>]) -> Result<NodePlace, ServerError> {
        files.check_binary()?;
        let [http, admin, rpc] = free_addresses()?;
        let shared = scratch_directory("node").map_err(|source| ServerError::File {
            operation: "make a directory in",
            path: "/dev/shm".into(),
            source,
        })?;
        let place = directory("node")?;
        let mut text = configuration_text((place.path(), shared.path()), http, admin, rpc, &Steered { cpus, mode: "off" });
        write!(text, "\n[limits]\n{limits}").expect("a String takes all");
        for NodeFunction { name, guest, keys } in functions {
            let wasm = quoted(&files.guest(guest)?);
            write!(text, "\n[[function]]\nname = \"{name}\"\nwasm = {wasm}\n{keys}").expect("a String takes all");
        }
        write(&place.path().join("xfaas.toml"), &text)?;
        // Deployed last: when it is there, all are.
        let last = functions.last().map_or("none", |function| function.name);
        let probe = format!("GET /f/{last} HTTP/1.1\r\nhost: {http}\r\nx-session-id: is-it-there-yet\r\n\r\n").into_bytes();
        Ok(NodePlace { binary: files.binary.clone(), files: place, shared, http, admin, rpc, probe })
    }

    /// Starts the node on what is there, and waits until its last function answers, whatever it answers.
    pub fn start(&self, interrupt: &Interrupt) -> Result<Server, ServerError> {
        self.start_with(interrupt, &[])
    }

    /// The same with more flags of `xfaas run`.
    pub fn start_with(&self, interrupt: &Interrupt, flags: &[&str]) -> Result<Server, ServerError> {
        let mut command = self.command();
        command.args(flags);
        let is_ready = |http| fetch(http, &self.probe).is_ok_and(|fetched| fetched.status != 404);
        Server::start("xfaas", &mut command, self.http, directory("output")?, interrupt, is_ready)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("run").arg("--config").arg(self.files.path().join("xfaas.toml"));
        command
    }

    /// Starts the node as a traditional container on `cpu`, and waits until its last function answers with 200.
    pub fn start_contained(&self, cpu: u16, interrupt: &Interrupt) -> Result<Contained, ServerError> {
        let program = Program { name: "xfaas", command: self.command(), address: self.http, request: &self.probe };
        Contained::start(program, cpu, interrupt)
    }

    /// Starts a container of this node on `cpu`, where its shards share the node's CPU, and waits until its functions run there.
    /// It asks for everything by RPC, as one on another machine must. Only while the node runs.
    pub fn start_container(&self, cpu: u16, interrupt: &Interrupt) -> Result<Server, ServerError> {
        let [http, admin] = free_addresses()?;
        let folder = directory("container")?;
        let mut command = Command::new(&self.binary);
        command.args(["container", "--no-map", "--join", &self.rpc.to_string(), "--listen", &http.to_string()]);
        command.args(["--admin", &admin.to_string(), "--cpus", &cpu.to_string(), "--state-dir"]).arg(folder.path());
        let is_ready = |_| fetch(admin, b"GET /readyz HTTP/1.1\r\nhost: xfaas\r\n\r\n").is_ok_and(|fetched| fetched.status == 200);
        Server::start("xfaas container", &mut command, http, folder, interrupt, is_ready)
    }

    /// Where `/metrics` is.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Where containers of other processes connect.
    pub fn rpc(&self) -> SocketAddr {
        self.rpc
    }

    /// What the machine's end would do to the shared memory. Only while no node runs.
    pub fn forget_shared_memory(&self) -> Result<(), ServerError> {
        let failed = |source| ServerError::File { operation: "empty", path: self.shared.path().to_owned(), source };
        for entry in std::fs::read_dir(self.shared.path()).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            removed.map_err(failed)?;
        }
        Ok(())
    }
}
