//! The kernel's threads that take steered packets up the stack, one on each shard's CPU: `cpumap/CPU/map:ID`, kernel/bpf/cpumap.c.
//! Called once, when the map of CPUs is filled.

use crate::sys::realtime::make_batch;
use std::io::{Error, ErrorKind};
use std::path::Path;

/// Keeps these threads from interrupting the shards beside them. Such a thread wakes for every few packets; as an ordinary one it takes the
/// CPU from the shard each time, and most of the core goes to changing threads and to packets that are then dropped at a full socket. As
/// `SCHED_BATCH` it waits until the shard has nothing to do, or for the shard's slice of the scheduler, and takes all packets at once.
///
/// Input: the map's ID and the CPUs of the shards. Errors: not all threads were found, as in a PID namespace, or no right to.
pub(super) fn let_shards_finish(map: u32, cpus: &[u16]) -> std::io::Result<()> {
    let names: Vec<String> = cpus.iter().map(|cpu| format!("cpumap/{cpu}/map:{map}")).collect();
    let mut missing = names.len();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(thread) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        if names.iter().any(|name| is_named(&entry.path(), name)) {
            make_batch(thread)?;
            missing -= 1;
        }
    }
    if missing == 0 { Ok(()) } else { Err(Error::new(ErrorKind::NotFound, "the kernel's threads are not seen from here")) }
}

/// The kernel gives its threads' whole names since Linux 5.17.
fn is_named(process: &Path, name: &str) -> bool {
    std::fs::read_to_string(process.join("comm")).is_ok_and(|comm| comm.trim_end() == name)
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
