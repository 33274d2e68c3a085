//! What the kernel counts of the shards' threads and CPUs, read from `/proc` again and again. A look takes the CPU from a shard where there is no other,
//! and every request of that moment is late by it: so files stay open, buffers are kept, and what is of all CPUs is read once for all shards.

use super::{KernelWork, micros};
use crate::sys::clock;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const TICK_US: f64 = 10_000.0;
/// Bytes of a buffer in the beginning: for the line of the fiftieth CPU, and any thread's file.
const TEXT_BYTES: usize = 4_096;

/// What the kernel had counted of a shard's thread and CPU at a time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Look {
    pub at_ns: u64,
    pub page_faults: u64,
    pub off_cpu_ns: u64,
    pub softirq_ticks: u64,
    pub steal_ticks: u64,
}

impl Look {
    pub fn work_since(&self, earlier: &Look) -> KernelWork {
        KernelWork {
            window_us: micros(self.at_ns.saturating_sub(earlier.at_ns)),
            page_faults: self.page_faults.saturating_sub(earlier.page_faults),
            off_cpu_us: micros(self.off_cpu_ns.saturating_sub(earlier.off_cpu_ns)),
            softirq_us: self.softirq_ticks.saturating_sub(earlier.softirq_ticks) as f64 * TICK_US,
            steal_us: self.steal_ticks.saturating_sub(earlier.steal_ticks) as f64 * TICK_US,
        }
    }
}

/// A text file of the kernel's that is read anew each time.
struct Text {
    file: File,
    bytes: Vec<u8>,
    length: usize,
}

impl Text {
    /// `None`: it is not to be had, as on a hardened `/proc`.
    fn open(path: &Path) -> Option<Text> {
        Some(Text { file: File::open(path).ok()?, bytes: vec![0; TEXT_BYTES], length: 0 })
    }

    /// In one read, since the kernel writes the whole text for each. Empty from then on if it cannot be read, as when the thread has ended.
    fn refresh(&mut self) {
        loop {
            self.length = self.file.read_at(&mut self.bytes, 0).unwrap_or(0);
            if self.length < self.bytes.len() {
                return;
            }
            self.bytes.resize(2 * self.length, 0);
        }
    }

    fn as_str(&self) -> Option<&str> {
        str::from_utf8(&self.bytes[..self.length]).ok()
    }

    fn refreshed(&mut self) -> Option<&str> {
        self.refresh();
        self.as_str()
    }
}

/// Of one thread.
pub(super) struct ThreadFiles {
    stat: Text,
    schedstat: Text,
}

impl ThreadFiles {
    /// Input: the thread's folder in `/proc`.
    pub fn open(thread: &Path) -> Option<ThreadFiles> {
        Some(ThreadFiles { stat: Text::open(&thread.join("stat"))?, schedstat: Text::open(&thread.join("schedstat"))? })
    }
}

/// Of all CPUs.
pub(super) struct CpuFile(Option<Text>);

impl CpuFile {
    pub fn open() -> CpuFile {
        CpuFile(Text::open(Path::new("/proc/stat")))
    }

    pub fn refresh(&mut self) {
        if let Some(stat) = &mut self.0 {
            stat.refresh();
        }
    }

    /// What is counted of a thread now, and of the CPU on which it ran last when this was refreshed. `None`: some of it is not to be had.
    pub fn look_at(&self, thread: &mut ThreadFiles) -> Option<Look> {
        let (page_faults, cpu) = faults_and_cpu(thread.stat.refreshed()?)?;
        let (softirq_ticks, steal_ticks) = softirq_and_steal(self.0.as_ref()?.as_str()?, cpu)?;
        let off_cpu_ns = thread.schedstat.refreshed()?.split_ascii_whitespace().nth(1)?.parse().ok()?;
        Some(Look { at_ns: clock::monotonic_ns(), page_faults, off_cpu_ns, softirq_ticks, steal_ticks })
    }
}

/// Minor and major faults, and the CPU it ran on last. proc_pid_stat(5), fields 10, 12 and 39; the name in field 2 may hold anything.
fn faults_and_cpu(stat: &str) -> Option<(u64, usize)> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    // Field 3 comes first, and each call takes what is behind the field before.
    let minor: u64 = fields.nth(10 - 3)?.parse().ok()?;
    let major: u64 = fields.nth(12 - 11)?.parse().ok()?;
    Some((minor + major, fields.nth(39 - 13)?.parse().ok()?))
}

/// proc_stat(5): `cpuN user nice system idle iowait irq softirq steal ...`.
fn softirq_and_steal(stat: &str, cpu: usize) -> Option<(u64, u64)> {
    let name = format!("cpu{cpu}");
    let line = stat.lines().find(|line| line.split_ascii_whitespace().next() == Some(&name))?;
    let mut counts = line.split_ascii_whitespace().skip(7).map(str::parse);
    Some((counts.next()?.ok()?, counts.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn the_kernels_files_are_understood_and_nonsense_is_not() {
        let stat = "12 (a) b (c) S 1 1 1 0 -1 64 70 0 5 0 1 2 0 0 20 0 9 0 11 1 1 1 1 1 1 1 1 0 0 0 0 0 0 0 17 3 0 0";
        assert_eq!(faults_and_cpu(stat), Some((75, 3)));
        assert_eq!(faults_and_cpu("12 (a) S 1"), None);
        assert_eq!(faults_and_cpu(""), None);
        let cpus = "cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 1 2 3 4 5 6 70 80 9 10\ncpu10 1 2 3 4 5 6 700 800 0 0\n";
        assert_eq!(softirq_and_steal(cpus, 0), Some((70, 80)));
        assert_eq!(softirq_and_steal(cpus, 10), Some((700, 800)));
        assert_eq!(softirq_and_steal(cpus, 1), None);
    }

    #[test]
    fn a_text_is_read_anew_and_whole_however_long_it_has_become() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut text = Text::open(file.path()).unwrap();
        assert_eq!(text.refreshed(), Some(""));
        for length in [10, TEXT_BYTES - 1, TEXT_BYTES, 9 * TEXT_BYTES, 1] {
            std::fs::write(file.path(), "x".repeat(length)).unwrap();
            assert_eq!(text.refreshed().map(str::len), Some(length));
        }
    }

    #[test]
    fn this_thread_is_looked_at_and_one_that_ended_no_more() {
        let own_files = || ThreadFiles::open(&std::fs::canonicalize("/proc/thread-self").unwrap()).unwrap();
        let (mut cpus, mut own) = (CpuFile::open(), own_files());
        assert!(cpus.look_at(&mut own).is_none(), "nobody looked at the CPUs");
        cpus.refresh();
        let before = cpus.look_at(&mut own).unwrap();
        let mut fresh = memmap2::MmapMut::map_anon(TEXT_BYTES).unwrap();
        fresh[0] = 1;
        let work = cpus.look_at(&mut own).unwrap().work_since(&before);
        assert!(work.page_faults > 0 && work.window_us > 0.0, "{work:?}");
        let mut ended = std::thread::spawn(own_files).join().unwrap();
        // A thread that was joined is on its way out of the kernel.
        let deadline = Instant::now() + Duration::from_secs(30);
        while cpus.look_at(&mut ended).is_some() {
            assert!(Instant::now() < deadline, "it has ended");
            std::thread::yield_now();
        }
    }
}
