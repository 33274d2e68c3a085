//! A server as a traditional container has it: a process of its own in new namespaces (processes, mounts, network, IPC, host name), made with
//! `unshare`. No image, no layers of a file system, no limits, no link to the outside: what a container of a runtime needs at least.

use super::parent::{DeathSignal, dying_with_us, spawn_lasting};
use super::process::{Server, ServerError, directory};
use crate::load::{Interrupt, fetch};
use crate::network::{NetworkError, in_namespace_at};
use rustix::process::{Pid, Signal, kill_process};
use std::cell::Cell;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use xfaas_dataplane::sys::clock::monotonic_ns;

/// In its own network only the loopback device is there, and it is down.
const UP_AND_BECOME: &str = "ip link set lo up && exec \"$@\"";
/// Between two looks. Short, because starts of some milliseconds are timed.
const LOOK_INTERVAL: Duration = Duration::from_micros(100);
const START_TIMEOUT: Duration = Duration::from_secs(15);
const CONNECT_TIMEOUT: Duration = Duration::from_millis(200);

/// What runs in it.
pub(super) struct Program<'a> {
    pub(super) name: &'static str,
    pub(super) command: Command,
    /// On loopback, in the container's own network.
    pub(super) address: SocketAddr,
    /// A whole request that it answers with 200 when it is there.
    pub(super) request: &'a [u8],
}

/// When a container had done what, in ns since it was asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct ContainedStart {
    /// The program runs: its namespaces are made.
    pub running_ns: u64,
    /// It takes connections.
    pub listening_ns: u64,
    /// It has answered its first request.
    pub answered_ns: u64,
}

/// A running one. Dropping it ends its processes.
pub struct Contained {
    /// Of the program, as the outside sees it.
    pid: u32,
    start: ContainedStart,
    /// `unshare`, which ends with the program. After `pid` is killed.
    _server: Server,
}

impl Contained {
    pub fn pid(&self) -> u32 {
        self.pid
    }

    pub fn start_times(&self) -> ContainedStart {
        self.start
    }

    /// On `cpu`, all threads. Waits until the first request is answered, and does so on the caller's CPU. Outlives the calling thread, not us.
    /// Needs root.
    pub(super) fn start(program: Program<'_>, cpu: u16, interrupt: &Interrupt) -> Result<Contained, ServerError> {
        let own = program.command.get_program().to_owned();
        if !rustix::process::geteuid().is_root() {
            let source = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
            return Err(ServerError::Start { program: "unshare".to_owned(), hint: ": namespaces need root", source });
        }
        let mut command = Command::new("taskset");
        command.args(["--cpu-list", &cpu.to_string(), "unshare", "--pid", "--mount", "--net", "--ipc", "--uts"]);
        command.args(["--fork", "--kill-child", "--mount-proc", "sh", "-c", UP_AND_BECOME, "sh"]);
        command.arg(&own).args(program.command.get_args());
        // `unshare` blocks SIGTERM; with it ends its child, and with that everything in its namespace.
        let mut command = dying_with_us(&command, DeathSignal::Kill)?;
        let binary = std::fs::canonicalize(&own).unwrap_or_else(|_| own.into());
        let others = running(&binary);
        let (address, started_ns) = (program.address, monotonic_ns());
        let found = Cell::new(None);
        let is_ready = |_| {
            let seen = wait_for(&others, &binary, (address, program.request), started_ns, interrupt);
            found.set(seen.ok().flatten());
            found.get().is_some()
        };
        let place = directory("contained")?;
        let server = Server::start_by(spawn_lasting, program.name, &mut command, address, place, interrupt, is_ready)?;
        let (pid, start) = found.get().expect("it is ready only when it was found");
        Ok(Contained { pid, start, _server: server })
    }
}

impl Drop for Contained {
    fn drop(&mut self) {
        // The first process of a namespace gets no other signal from outside; one that is gone is what we want.
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) {
            kill_process(pid, Signal::KILL).ok();
        }
    }
}

/// Waits for all steps of a start. None: one does not come; it has ended then, or hangs. `others`: running before, and not it.
fn wait_for(
    others: &[u32],
    binary: &Path,
    (address, request): (SocketAddr, &[u8]),
    started_ns: u64,
    interrupt: &Interrupt,
) -> Result<Option<(u32, ContainedStart)>, NetworkError> {
    let since = || monotonic_ns() - started_ns;
    let new = || running(binary).into_iter().find(|pid| !others.contains(pid));
    let Some(pid) = until(interrupt, || Some(new())) else { return Ok(None) };
    let running_ns = since();
    let is_there = PathBuf::from(format!("/proc/{pid}"));
    // One thread enters its network and stays: entering costs what would be counted as its start.
    let times = in_namespace_at("of a container", &is_there.join("ns/net"), || {
        let alive = || is_there.exists().then_some(());
        until(interrupt, || alive().map(|()| TcpStream::connect_timeout(&address, CONNECT_TIMEOUT).ok()))?;
        let listening_ns = since();
        until(interrupt, || alive().map(|()| fetch(address, request).ok().filter(|fetched| fetched.status == 200)))?;
        Some((listening_ns, since()))
    })?;
    Ok(times.map(|(listening_ns, answered_ns)| (pid, ContainedStart { running_ns, listening_ns, answered_ns })))
}

/// Looks again and again. None: too long, interrupted, or `look` gives up.
fn until<T>(interrupt: &Interrupt, look: impl Fn() -> Option<Option<T>>) -> Option<T> {
    let began = Instant::now();
    while began.elapsed() < START_TIMEOUT && !interrupt.is_set() {
        if let Some(seen) = look()? {
            return Some(seen);
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
    None
}

/// Descendants of this process that run `binary`.
fn running(binary: &Path) -> Vec<u32> {
    let mut family = children(std::process::id());
    let mut next = 0;
    while next < family.len() {
        family.extend(children(family[next]));
        next += 1;
    }
    family.retain(|pid| std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|own| own == binary));
    family
}

/// None of one that has ended meanwhile.
fn children(pid: u32) -> Vec<u32> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|child| child.parse().ok()).collect::<Vec<u32>>()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descendant_is_found_by_its_program() {
        let mut child = Command::new("sh").args(["-c", "sleep 60 & wait"]).spawn().unwrap();
        let sleep = std::fs::canonicalize("/bin/sleep").unwrap();
        let found = until(&Interrupt::default(), || Some(running(&sleep).first().copied()));
        let pid = Pid::from_raw(found.unwrap() as i32).unwrap();
        kill_process(pid, Signal::KILL).unwrap();
        assert!(child.wait().unwrap().code().is_some());
        assert!(running(Path::new("/nonexistent")).is_empty());
        let interrupted = Interrupt::default();
        interrupted.set();
        assert_eq!(until(&interrupted, || Some(Some(1))), None);
    }
}
