//! What a node says of itself, and what the kernel says of it.

use super::{SessionsBench, SessionsError};
use crate::load::fetch;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const POLL_INTERVAL: Duration = Duration::from_millis(20);
const SESSIONS_TIMEOUT: Duration = Duration::from_secs(10);
/// Idle for a second, written to the disk, and dropped.
const ASLEEP_TIMEOUT: Duration = Duration::from_secs(60);
const PARKED_TIMEOUT: Duration = Duration::from_secs(5);

/// `/metrics` at one moment.
pub(crate) struct Metrics {
    text: String,
}

impl Metrics {
    /// Once the node shows `count` sessions, which it looks at ten times a second. Errors: it does not, in 10 s.
    pub(super) fn with_sessions(admin: SocketAddr, count: u64) -> Result<Metrics, SessionsError> {
        let started = Instant::now();
        loop {
            let metrics = Metrics::read(admin)?;
            let found = metrics.sum("xfaas_sessions")? as u64;
            if found == count {
                return Ok(metrics);
            }
            if started.elapsed() > SESSIONS_TIMEOUT {
                return Err(SessionsError::Missing { found, written: count });
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Once `count` sessions of the node sleep. Errors: they do not, in 60 s.
    pub(super) fn with_asleep(bench: &SessionsBench<'_>, admin: SocketAddr, count: u64) -> Result<Metrics, SessionsError> {
        let started = Instant::now();
        loop {
            bench.check_interrupt()?;
            let metrics = Metrics::read(admin)?;
            let found = metrics.sum("xfaas_sessions_asleep")? as u64;
            if found == count {
                return Ok(metrics);
            }
            if started.elapsed() > ASLEEP_TIMEOUT {
                return Err(SessionsError::Missing { found, written: count });
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Once a call of the node waits for a lock. Errors: none does, in 5 s.
    pub(super) fn with_parked(admin: SocketAddr) -> Result<Metrics, SessionsError> {
        let started = Instant::now();
        loop {
            let metrics = Metrics::read(admin)?;
            if metrics.sum("xfaas_workers_parked")? as u64 == 1 {
                return Ok(metrics);
            }
            if started.elapsed() > PARKED_TIMEOUT {
                return Err(SessionsError::Metric { name: "xfaas_workers_parked of 1" });
            }
        }
    }

    pub(crate) fn read(admin: SocketAddr) -> Result<Metrics, SessionsError> {
        let fetched = fetch(admin, format!("GET /metrics HTTP/1.1\r\nhost: {admin}\r\n\r\n").as_bytes())?;
        let text = String::from_utf8_lossy(&fetched.body).into_owned();
        if fetched.status == 200 {
            return Ok(Metrics { text });
        }
        Err(SessionsError::Answer { request: "GET /metrics", status: fetched.status, body: text })
    }

    /// The sum of all samples of that name, whatever their labels.
    pub(crate) fn sum(&self, name: &'static str) -> Result<f64, SessionsError> {
        let value = |line: &str| line.strip_prefix(name)?.strip_prefix([' ', '{']).and(line.rsplit(' ').next()?.parse::<f64>().ok());
        let values: Vec<f64> = self.text.lines().filter_map(value).collect();
        if values.is_empty() { Err(SessionsError::Metric { name }) } else { Ok(values.iter().sum()) }
    }
}

/// Resident memory of a process, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Resident {
    pub all: u64,
    /// The part that is its own: neither a file nor shared memory.
    pub anonymous: u64,
    /// Each page divided by how often it is mapped: what is mapped many times counts once.
    pub proportional: u64,
    /// Pages that nobody else has mapped: what its end would give back.
    pub unique: u64,
}

impl Resident {
    pub fn of(pid: u32) -> Result<Resident, SessionsError> {
        let path = format!("/proc/{pid}/smaps_rollup");
        let text = std::fs::read_to_string(&path).map_err(|source| SessionsError::Process { path: path.clone(), source })?;
        let value = |key| kib_of(&text, key).map(|kib| kib << 10).ok_or_else(|| SessionsError::ProcessKey { path: path.clone(), key });
        let unique = value("Private_Clean:")? + value("Private_Dirty:")?;
        Ok(Resident { all: value("Rss:")?, anonymous: value("Anonymous:")?, proportional: value("Pss:")?, unique })
    }
}

/// The number of a line such as `Rss:     1234 kB`.
fn kib_of(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_one_name_are_summed_up() {
        let text = "# HELP xfaas_forks_total Workers.\nxfaas_forks_total{shard=\"0\"} 3\nxfaas_forks_total{shard=\"1\"} 4.5\nxfaas_forks_total_x 9\nxfaas_up 1\n";
        let metrics = Metrics { text: text.to_owned() };
        assert_eq!(metrics.sum("xfaas_forks_total").unwrap(), 7.5);
        assert_eq!(metrics.sum("xfaas_up").unwrap(), 1.0);
        assert!(metrics.sum("xfaas_forks").is_err());
    }

    #[test]
    fn the_own_resident_memory_is_known() {
        let own = Resident::of(std::process::id()).unwrap();
        assert!(own.all >= own.anonymous && own.anonymous > 0 && own.proportional <= own.all && own.unique <= own.proportional, "{own:?}");
        assert_eq!(kib_of("Pss_Dirty:   9 kB\nPss:    12 kB\n", "Pss:"), Some(12));
        assert_eq!(kib_of("Pss:\t  many kB\n", "Pss:"), None);
    }
}
