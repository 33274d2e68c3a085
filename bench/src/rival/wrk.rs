//! Runs wrk and reads what it says and what it cost.

use std::net::SocketAddr;
use std::process::{Command, Stdio};

#[derive(Debug, thiserror::Error)]
pub enum WrkError {
    #[error("cannot start wrk: install Debian's package `wrk`")]
    Start(#[source] std::io::Error),
    #[error("it failed: {0}")]
    Failed(String),
    #[error("it said something else than expected: {0}")]
    Output(String),
    #[error("the CPU time of ended processes cannot be read")]
    CpuTime(#[source] std::io::Error),
}

/// One run of wrk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WrkRun {
    pub requests_per_second: f64,
    pub cpu_us_per_request: f64,
}

/// Loads `target` from one thread, on the CPU that the calling thread is pinned to. `seconds` are rounded up to whole ones.
pub fn run_wrk(target: SocketAddr, connections: u16, seconds: f64) -> Result<WrkRun, WrkError> {
    let mut command = Command::new("wrk");
    command.args(["-t1", "-c", &connections.to_string(), "-d", &format!("{}s", seconds.ceil().max(1.0))]);
    command.args(["-H", "x-session-id: session-00000001"]).arg(format!("http://{target}/f/counter-rmw"));
    let before_us = ended_children_cpu_us()?;
    let output = command.stdin(Stdio::null()).output().map_err(WrkError::Start)?;
    let cpu_us = ended_children_cpu_us()? - before_us;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        return Err(WrkError::Failed(String::from_utf8_lossy(&output.stderr).into_owned() + &text));
    }
    read_output(&text, cpu_us).ok_or(WrkError::Output(text))
}

/// `None`: it is no report, or tells of errors.
fn read_output(text: &str, cpu_us: f64) -> Option<WrkRun> {
    if text.contains("Socket errors") || text.contains("Non-2xx") {
        return None;
    }
    let rate = text.lines().find_map(|line| line.strip_prefix("Requests/sec:"))?.trim().parse().ok()?;
    let requests: f64 = text.lines().find_map(|line| line.trim().split_once(" requests in "))?.0.parse().ok()?;
    (requests > 0.0).then_some(WrkRun { requests_per_second: rate, cpu_us_per_request: cpu_us / requests })
}

/// User and system time of all children that were waited for. Resolution: a clock tick, 10 ms.
fn ended_children_cpu_us() -> Result<f64, WrkError> {
    let text = std::fs::read_to_string("/proc/self/stat").map_err(WrkError::CpuTime)?;
    let ticks = children_ticks(&text).ok_or_else(|| WrkError::CpuTime(std::io::ErrorKind::InvalidData.into()))?;
    Ok(ticks as f64 * 1e6 / rustix::param::clock_ticks_per_second() as f64)
}

/// Fields 16 and 17 of proc(5)'s `stat`; the second field may hold blanks.
fn children_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(13);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_and_one_with_errors_refused() {
        let text =
            "Running 2s test @ http://x\n  59779 requests in 2.04s, 11.57MB read\nRequests/sec:  29372.82\nTransfer/sec:      5.69MB\n";
        assert_eq!(read_output(text, 597_790.0), Some(WrkRun { requests_per_second: 29_372.82, cpu_us_per_request: 10.0 }));
        assert_eq!(read_output(&format!("{text}  Socket errors: connect 0, read 1, write 0, timeout 0\n"), 1.0), None);
        assert_eq!(read_output("unable to connect", 1.0), None);
    }

    #[test]
    fn times_of_children_are_found_behind_a_name_with_blanks() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 4194560 1 2 3 4 11 12 130 14 20 0 1 0";
        assert_eq!(children_ticks(stat), Some(144));
        assert!(ended_children_cpu_us().unwrap() >= 0.0);
    }
}
