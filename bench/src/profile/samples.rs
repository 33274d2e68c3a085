//! What `perf script` prints, taken apart: one sample is a line with its time and the stack below it. Pure functions of text.

use std::collections::BTreeMap;

/// One sample: its lines as they came, and when it was taken on the clock that perf was told to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample<'a> {
    pub text: &'a str,
    pub thread: &'a str,
    pub at_ns: u64,
}

impl<'a> Sample<'a> {
    /// The frames, innermost first: symbol and the file it is of.
    pub fn frames(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.text.lines().skip(1).filter_map(frame)
    }
}

/// `   7f12 symbol+0x12 (/path/to/file)`.
fn frame(line: &str) -> Option<(&str, &str)> {
    let (_, rest) = line.trim_start().split_once(' ')?;
    let (symbol, file) = rest.rsplit_once(" (")?;
    let symbol = symbol.rsplit_once("+0x").map_or(symbol, |(symbol, _)| symbol);
    Some((symbol, file.strip_suffix(')')?))
}

/// The samples of `perf script`'s output; what is not one is left out.
pub fn samples(output: &str) -> Vec<Sample<'_>> {
    output.split("\n\n").filter_map(|text| sample(text.trim_matches('\n'))).collect()
}

fn sample(text: &str) -> Option<Sample<'_>> {
    let (thread, at_ns) = head(text.lines().next()?)?;
    Some(Sample { text, thread, at_ns })
}

/// Thread and time of a line `thread  tid [cpu] seconds.micros: period event:`, where the thread's name may hold spaces.
pub fn head(line: &str) -> Option<(&str, u64)> {
    let (before, time) = line.split(": ").next()?.trim_end_matches(':').rsplit_once(' ')?;
    let (seconds, fraction) = time.split_once('.')?;
    let digits = u32::try_from(fraction.len()).ok().filter(|digits| *digits <= 9)?;
    let whole_ns = seconds.parse::<u64>().ok()?.checked_mul(1_000_000_000)?;
    let at_ns = whole_ns.checked_add(fraction.parse::<u64>().ok()? * 10_u64.pow(9 - digits))?;
    // Back over `[cpu]`, where it is, and the thread's number.
    let mut thread = before.trim_end();
    if thread.ends_with(']') {
        thread = thread.rsplit_once('[')?.0.trim_end();
    }
    Some((thread.rsplit_once(' ')?.0.trim(), at_ns))
}

/// Which part of the system the innermost frame is of.
pub fn part_of(sample: &Sample<'_>) -> &'static str {
    let Some((symbol, file)) = sample.frames().next() else { return "unknown" };
    match () {
        () if file.starts_with("[kernel") || file.starts_with("[guest.kernel") || file.ends_with(".ko") => "kernel",
        () if file.contains("perf-") && file.ends_with(".map") => "guest",
        () if symbol.contains("wasmtime") || symbol.contains("cranelift") => "wasmtime",
        () if symbol.contains("httparse") || symbol.contains("net::http1") || symbol.contains("memchr") => "http",
        () if symbol.contains("xfaas_dataplane::session") => "session",
        () if symbol.contains("xfaas_dataplane::state") => "state",
        () if symbol.contains("xfaas_dataplane::worker") => "worker",
        () if symbol.contains("xfaas_dataplane::net") => "reply",
        () if symbol.contains("xfaas_dataplane::shard") => "shard",
        () if symbol.contains("io_uring") || symbol.contains("xfaas_dataplane::sys") => "ring",
        () => "other",
    }
}

/// Samples by part, largest first.
pub fn by_part(samples: &[Sample<'_>]) -> Vec<(&'static str, usize)> {
    let mut counts: BTreeMap<&'static str, usize> = BTreeMap::new();
    samples.iter().for_each(|sample| *counts.entry(part_of(sample)).or_default() += 1);
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    counts
}

/// Those of the shards that were taken within one of the windows, from and until on the same clock. `windows` need not be sorted.
pub fn within<'a>(samples: &[Sample<'a>], windows: &[(u64, u64)]) -> Vec<Sample<'a>> {
    let is_in = |at_ns: u64| windows.iter().any(|(from, until)| (*from..=*until).contains(&at_ns));
    samples.iter().filter(|sample| is_in(sample.at_ns)).copied().collect()
}

/// As `perf script` printed them.
pub fn joined(samples: &[Sample<'_>]) -> String {
    samples.iter().map(|sample| format!("{}\n\n", sample.text)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "xfaas-shard-0  4711 [000]  12.000001:     250000 cpu-clock:ppp: \n\
        \tffffffff81 tcp_ack+0x10 ([kernel.kallsyms])\n\
        \t    55aa11 xfaas_dataplane::sys::ring::Ring::wait+0x1 (/x/xfaas)\n\
        \n\
        a b 4712  12.5: 1 cpu-clock:\n\
        \t7f00 handle+0x12 (/tmp/perf-4711.map)\n\
        \n\
        xfaas-shard-1 4713 13.000000: 1 cpu-clock:\n\
        \t55bb <httparse::Request as core::fmt::Debug>::parse (inlined)+0x3 (/x/xfaas)\n\
        \n\
        nonsense\n";

    #[test]
    fn samples_have_a_thread_a_time_and_frames() {
        let samples = samples(OUTPUT);
        let heads: Vec<_> = samples.iter().map(|sample| (sample.thread, sample.at_ns)).collect();
        assert_eq!(heads, [("xfaas-shard-0", 12_000_001_000), ("a b", 12_500_000_000), ("xfaas-shard-1", 13_000_000_000)]);
        let frames: Vec<_> = samples[0].frames().collect();
        assert_eq!(frames, [("tcp_ack", "[kernel.kallsyms]"), ("xfaas_dataplane::sys::ring::Ring::wait", "/x/xfaas")]);
        assert_eq!(samples.iter().map(part_of).collect::<Vec<_>>(), ["kernel", "guest", "http"]);
    }

    #[test]
    fn only_samples_within_a_window_count() {
        let samples = samples(OUTPUT);
        let found = within(&samples, &[(12_600_000_000, 14_000_000_000), (0, 12_000_001_000)]);
        assert_eq!(found.iter().map(|sample| sample.thread).collect::<Vec<_>>(), ["xfaas-shard-0", "xfaas-shard-1"]);
        assert!(joined(&found).starts_with("xfaas-shard-0  4711"));
        assert_eq!(by_part(&found).len(), 2);
    }
}
