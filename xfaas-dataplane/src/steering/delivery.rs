//! The kernel's threads that take steered packets up the stack, one on each shard's CPU: `cpumap/CPU/map:ID`, kernel/bpf/cpumap.c.
//! Called once, when the map of CPUs is filled.

use crate::sys::realtime::make_batch;
use std::collections::BTreeSet;
use std::io::{Error, ErrorKind};

/// Keeps these threads from interrupting the shards beside them. Such a thread wakes for every few packets; as an ordinary one it takes the
/// CPU from the shard each time, and most of the core goes to changing threads and to packets that are then dropped at a full socket. As
/// `SCHED_BATCH` it waits until the shard has nothing to do, or for the shard's slice of the scheduler, and takes all packets at once.
///
/// Threads are known by their names, which the kernel gives whole since Linux 5.17. Input: the map's ID and the CPUs of the shards. Errors: not
/// all threads were found, as in a PID namespace, or no right to.
pub(super) fn let_shards_finish(map: u32, cpus: &[u16]) -> std::io::Result<()> {
    let names: BTreeSet<String> = cpus.iter().map(|cpu| format!("cpumap/{cpu}/map:{map}")).collect();
    let mut missing = names.clone();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(thread) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // Some end while they are looked at: then they are none of ours.
        let Ok(name) = std::fs::read_to_string(entry.path().join("comm")) else { continue };
        if names.contains(name.trim_end()) {
            make_batch(thread)?;
            missing.remove(name.trim_end());
        }
    }
    if missing.is_empty() { Ok(()) } else { Err(Error::new(ErrorKind::NotFound, "the kernel's threads are not seen from here")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_are_not_there_are_missed() {
        assert!(let_shards_finish(u32::MAX, &[]).is_ok());
        assert_eq!(let_shards_finish(u32::MAX, &[0]).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
