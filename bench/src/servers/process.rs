//! A child process that outlives neither its guard nor the thread that started it, and the directory it works in.

use super::parent::{DeathSignal, dying_with_us};
use crate::load::Interrupt;
use crate::network::{Network, NetworkError};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const READY_TIMEOUT: Duration = Duration::from_secs(20);
const END_TIMEOUT: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_millis(5);
const CONNECT_TIMEOUT: Duration = Duration::from_millis(200);
/// Bytes of a failed server's log that go into the error.
const LOG_EXCERPT_BYTES: usize = 2_000;

#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("{operation} {}", path.display())]
    File {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("no free port")]
    Port(#[source] std::io::Error),
    #[error("cannot start {program:?}{hint}")]
    Start {
        program: String,
        hint: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("{} is missing: {hint}", path.display())]
    Missing { path: PathBuf, hint: &'static str },
    #[error("{name} ended while starting ({status}); its log ends with:\n{log}")]
    Ended { name: &'static str, status: String, log: String },
    #[error("{name} did not answer within {} s; its log ends with:\n{log}", READY_TIMEOUT.as_secs())]
    NotReady { name: &'static str, log: String },
    #[error("the network cannot be used")]
    Network(#[from] NetworkError),
    #[error("interrupted")]
    Interrupted,
}

impl ServerError {
    /// Its program is not there.
    pub fn is_missing(&self) -> bool {
        matches!(self, ServerError::Missing { .. } | ServerError::Start { .. })
    }
}

/// A running server. Dropping it ends the process and removes its directory.
pub struct Server {
    name: &'static str,
    address: SocketAddr,
    child: Child,
    directory: TempDir,
}

impl Server {
    /// Where it serves.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it works in.
    pub(super) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Ends the process at once, as the kernel does it, with no word to it.
    pub fn kill(mut self) -> Result<(), ServerError> {
        let failed = |source| ServerError::File { operation: "kill the process of", path: self.directory.path().to_owned(), source };
        self.child.kill().map_err(failed)?;
        self.child.wait().map_err(failed).map(drop)
    }

    /// Starts `command` with its output in `directory`. Waits until `is_ready` of `address`, at most 20 s. It runs where the calling thread may,
    /// and ends with it: by SIGTERM, also where this whole process is killed.
    /// Errors: it ends, or does not answer in time; its log is in the error.
    pub(super) fn start(
        name: &'static str,
        command: &mut Command,
        address: SocketAddr,
        directory: TempDir,
        interrupt: &Interrupt,
        is_ready: impl Fn(SocketAddr) -> bool,
    ) -> Result<Server, ServerError> {
        let mut command = dying_with_us(command, DeathSignal::Term)?;
        Server::start_by(Command::spawn, name, &mut command, address, directory, interrupt, is_ready)
    }

    /// The same of a command that says itself with whom it ends, started by `spawn`.
    pub(super) fn start_by(
        spawn: impl FnOnce(&mut Command) -> std::io::Result<Child>,
        name: &'static str,
        command: &mut Command,
        address: SocketAddr,
        directory: TempDir,
        interrupt: &Interrupt,
        is_ready: impl Fn(SocketAddr) -> bool,
    ) -> Result<Server, ServerError> {
        let path = log_path(directory.path());
        let file = |source| ServerError::File { operation: "create", path: path.clone(), source };
        let log = File::create(&path).map_err(file)?;
        command.stdin(Stdio::null()).stdout(log.try_clone().map_err(file)?).stderr(log);
        let program = command.get_program().to_string_lossy().into_owned();
        let child = spawn(command).map_err(|source| ServerError::Start { hint: start_hint(&source), program, source })?;
        let mut server = Server { name, address, child, directory };
        server.wait_ready(interrupt, is_ready)?;
        Ok(server)
    }

    fn wait_ready(&mut self, interrupt: &Interrupt, is_ready: impl Fn(SocketAddr) -> bool) -> Result<(), ServerError> {
        let started = Instant::now();
        while !is_ready(self.address) {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(ServerError::Ended { name: self.name, status: status.to_string(), log: self.log_excerpt() });
            }
            if started.elapsed() > READY_TIMEOUT {
                return Err(ServerError::NotReady { name: self.name, log: self.log_excerpt() });
            }
            if interrupt.is_set() {
                return Err(ServerError::Interrupted);
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    /// The end of what the server wrote.
    pub fn log_excerpt(&self) -> String {
        let text = std::fs::read(log_path(self.directory.path())).unwrap_or_default();
        String::from_utf8_lossy(&text[text.len().saturating_sub(LOG_EXCERPT_BYTES)..]).into_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // TERM first: nginx' master must end its worker. A process that is gone already is what we want.
        kill_process(Pid::from_child(&self.child), Signal::TERM).ok();
        let asked = Instant::now();
        while asked.elapsed() < END_TIMEOUT && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(POLL_INTERVAL);
        }
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Readiness of a server that takes connections only when it can answer.
pub(super) fn takes_connections(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, CONNECT_TIMEOUT).is_ok()
}

fn log_path(directory: &Path) -> PathBuf {
    directory.join("output.log")
}

/// What to do about it.
pub(super) fn start_hint(source: &std::io::Error) -> &'static str {
    if source.kind() == std::io::ErrorKind::NotFound { ": it is not installed; `cargo xtask setup` says how to get it" } else { "" }
}

/// A new directory that is removed with its guard.
pub(super) fn directory(name: &str) -> Result<TempDir, ServerError> {
    let made = tempfile::Builder::new().prefix(&prefix(name)).tempdir();
    made.map_err(|source| ServerError::File { operation: "make a directory in", path: std::env::temp_dir(), source })
}

/// As `directory`, in memory where the machine has a tmpfs for all: for state that is mapped.
pub fn scratch_directory(name: &str) -> std::io::Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    let prefix = prefix(name);
    let builder = builder.prefix(&prefix);
    // Not there, or not for us: a disk is slower and still right.
    builder.tempdir_in("/dev/shm").or_else(|_| builder.tempdir())
}

fn prefix(name: &str) -> String {
    format!("xfaas-bench-{name}-")
}

pub(super) fn write(path: &Path, text: &str) -> Result<(), ServerError> {
    std::fs::write(path, text).map_err(|source| ServerError::File { operation: "write", path: path.to_owned(), source })
}

/// A file of an installed peer, as an absolute path. Errors: it is not there.
pub(super) fn installed(packages: &Path, file: &str) -> Result<PathBuf, ServerError> {
    let path = packages.join(file);
    let path = std::path::absolute(&path).map_err(|source| ServerError::File { operation: "find", path, source })?;
    if path.is_file() {
        return Ok(path);
    }
    Err(ServerError::Missing { path, hint: "`cargo xtask bench peers` installs it, where the package registries can be reached" })
}

/// Addresses of a server on loopback, with different ports that are free now.
pub(super) fn free_addresses<const COUNT: usize>() -> Result<[SocketAddr; COUNT], ServerError> {
    free_addresses_in(&Network::loopback())
}

/// Addresses of a server in `network`, with different ports that are free now.
pub(super) fn free_addresses_in<const COUNT: usize>(network: &Network) -> Result<[SocketAddr; COUNT], ServerError> {
    let any = network.server_address(0);
    let mut listeners = Vec::with_capacity(COUNT);
    let mut addresses = [any; COUNT];
    for address in &mut addresses {
        let listener = network.at_server(|| TcpListener::bind(any))?.map_err(ServerError::Port)?;
        *address = listener.local_addr().map_err(ServerError::Port)?;
        listeners.push(listener); // held until all are found, so that none is given twice
    }
    Ok(addresses)
}

/// Prints an error and its causes to stderr, for the binaries.
pub fn print_error(error: &dyn std::error::Error) {
    eprintln!("error: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprintln!("  caused by: {error}");
        cause = error.source();
    }
}

/// What a binary ends with: its error is printed.
pub fn exit_code(result: Result<(), Box<dyn std::error::Error>>) -> std::process::ExitCode {
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            print_error(error.as_ref());
            std::process::ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_ends_at_once_is_an_error_with_its_log() {
        let directory = directory("test").unwrap();
        let path = directory.path().to_owned();
        let [address] = free_addresses().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo it broke >&2; exit 3"]);
        let error = Server::start("sh", &mut command, address, directory, &Interrupt::default(), takes_connections).err().unwrap();
        assert!(matches!(&error, ServerError::Ended { log, .. } if log.contains("it broke")), "{error}");
        assert!(!path.exists());
    }

    #[test]
    fn addresses_differ() {
        let [a, b, c] = free_addresses().unwrap();
        assert!(a != b && b != c && a != c);
    }
}
