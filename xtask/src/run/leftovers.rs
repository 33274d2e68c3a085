//! What a run makes outside itself (namespaces, folders), whose it is, and how it is removed: at the end of the run, or by the next
//! run when its owner was killed.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::lab::NAME_PREFIXES;
use crate::paths;
use crate::process::{run_quiet, say};

/// Where `ip netns` keeps names.
const NAMESPACE_FOLDER: &str = "/run/netns";
const SHARED_MEMORY_ROOT: &str = "/dev/shm";
const SHARED_MEMORY_PREFIX: &str = "xfaas-lab-";
/// How long a process in a namespace may take to end when asked, before it is killed.
const END_WAIT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);

/// The folders of this run, removed when dropped.
pub struct RunFolders {
    state: PathBuf,
    shared_memory: Option<PathBuf>,
}

impl RunFolders {
    pub fn new() -> Result<Self> {
        let process = std::process::id().to_string();
        let state = paths::target("lab").join(&process);
        let shared_memory = Path::new(SHARED_MEMORY_ROOT);
        let shared_memory = shared_memory.is_dir().then(|| shared_memory.join(format!("{SHARED_MEMORY_PREFIX}{process}")));
        fs::create_dir_all(state.join("state")).with_context(|| format!("make {}", state.display()))?;
        Ok(RunFolders { state, shared_memory })
    }

    /// The configuration and the server's state.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Where session state goes; the server makes it.
    pub fn shared_memory(&self) -> Option<PathBuf> {
        self.shared_memory.clone()
    }
}

impl Drop for RunFolders {
    fn drop(&mut self) {
        for folder in [Some(&self.state), self.shared_memory.as_ref()].into_iter().flatten() {
            if let Err(error) = remove_folder(folder) {
                say(&format!("{error:#}"));
            }
        }
    }
}

/// Removes what runs left whose process is gone. Errors: something cannot be removed.
pub fn remove() -> Result<()> {
    for name in namespaces()? {
        if NAME_PREFIXES.iter().any(|prefix| is_ownerless(&name, prefix)) {
            say(&format!("removing {name}, left by a run that was killed"));
            remove_namespace(&name)?;
        }
    }
    for (parent, prefix) in [(paths::target("lab"), ""), (PathBuf::from(SHARED_MEMORY_ROOT), SHARED_MEMORY_PREFIX)] {
        for name in names_in(&parent)?.iter().filter(|name| is_ownerless(name, prefix)) {
            remove_folder(&parent.join(name))?;
        }
    }
    Ok(())
}

/// Names of all network namespaces.
pub fn namespaces() -> Result<Vec<String>> {
    names_in(Path::new(NAMESPACE_FOLDER))
}

fn names_in(folder: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("list {}", folder.display())),
    };
    let names = entries.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()));
    names.collect::<Result<_, _>>().with_context(|| format!("list {}", folder.display()))
}

/// Whether the name is `prefix` and the number of a process that is gone, or is another program by now.
fn is_ownerless(name: &str, prefix: &str) -> bool {
    let Some(process) = name.strip_prefix(prefix).and_then(|number| number.parse::<u32>().ok()) else { return false };
    !fs::read_to_string(format!("/proc/{process}/comm")).is_ok_and(|program| program.trim().starts_with("xtask"))
}

/// Removes a namespace of ours, and ends what runs in it. Nothing to do when it does not exist.
pub fn remove_namespace(name: &str) -> Result<()> {
    if !Path::new(NAMESPACE_FOLDER).join(name).exists() {
        return Ok(());
    }
    end_processes(name)?;
    run_quiet(Command::new("ip").args(["netns", "delete", name])).map(drop)
}

fn end_processes(namespace: &str) -> Result<()> {
    for signal in [Signal::TERM, Signal::KILL] {
        let started = Instant::now();
        let mut signalled = Vec::new();
        while started.elapsed() < END_WAIT {
            let processes = processes_in(namespace)?;
            if processes.is_empty() {
                return Ok(());
            }
            for process in processes {
                if !signalled.contains(&process) {
                    // It may end by itself meanwhile: then there is nothing to do.
                    kill_process(process, signal).ok();
                    signalled.push(process);
                }
            }
            std::thread::sleep(POLL);
        }
    }
    bail!("processes in the namespace {namespace} do not end: `ip netns pids {namespace}` lists them")
}

fn processes_in(namespace: &str) -> Result<Vec<Pid>> {
    let listed = run_quiet(Command::new("ip").args(["netns", "pids", namespace]))?;
    // A zombie has ended, and only waits for its parent to ask.
    let runs = |process: &i32| fs::read_to_string(format!("/proc/{process}/stat")).is_ok_and(|stat| !is_zombie(&stat));
    Ok(listed.lines().filter_map(|line| line.trim().parse().ok()).filter(runs).filter_map(Pid::from_raw).collect())
}

/// Source: proc_pid_stat(5): the state is the letter after the program's name in parentheses.
fn is_zombie(stat: &str) -> bool {
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
}

fn remove_folder(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).with_context(|| format!("remove {}", folder.display())),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_ours_with_a_dead_owner_are_taken() {
        assert!(is_ownerless("xfaas-srv-0", "xfaas-srv-"));
        assert!(!is_ownerless(&format!("xfaas-srv-{}", std::process::id()), "xfaas-srv-"), "this test's process is alive");
        assert!(is_ownerless("xfaas-srv-1", "xfaas-srv-"), "process 1 is no xtask");
        for name in ["xfaas-srv-", "xfaas-srv-12a", "other-0", "xfaas-test-0"] {
            assert!(!is_ownerless(name, "xfaas-srv-"), "{name}");
        }
    }

    #[test]
    fn a_zombie_is_told_by_its_state_whatever_its_name() {
        assert!(is_zombie("12 (a) R) Z 1 2 3"));
        assert!(!is_zombie("12 (Z) S 1 2 3"));
    }

    #[test]
    fn folders_of_a_run_go_with_it() {
        let folders = RunFolders::new().expect("made");
        let state = folders.state().to_path_buf();
        assert!(state.join("state").is_dir());
        drop(folders);
        assert!(!state.exists());
    }
}
