//! Sessions at rest: many of them, each with one key of 100 bytes, written over HTTP, and what the node's memory has grown by then.

use super::probe::{Metrics, Resident};
use super::{SessionsBench, SessionsError, request};
use crate::load::Client;
use crate::servers::{NodeFunction, NodePlace};
use std::time::{Duration, Instant};

/// Bytes of state of a session, its key's one byte left out.
pub const VALUE_BYTES: u64 = 100;
/// Requests in one write.
const BATCH_REQUESTS: u32 = 64;
/// How often it is told how many are written. A million take some ten seconds.
const PROGRESS_EVERY: Duration = Duration::from_secs(3);

/// Growth from before the first session to after the last one.
#[derive(Clone, Copy, Debug)]
pub struct Density {
    pub sessions: u64,
    /// Pages of the region that are taken, in bytes.
    pub region_bytes: u64,
    /// Resident memory, pages of the region that the process has touched included.
    pub resident_bytes: u64,
    /// The part of it that is not the region.
    pub anonymous_bytes: u64,
}

impl Density {
    /// Bytes of one session beside its state: of the region, and of the process besides that.
    pub fn beside_state(&self) -> f64 {
        (self.region_bytes + self.anonymous_bytes) as f64 / self.sessions.max(1) as f64 - VALUE_BYTES as f64
    }
}

/// Starts a node and writes `sessions` sessions. No worker is idle at the end: each is dropped after its request.
pub fn measure_density(bench: &SessionsBench<'_>, sessions: u32) -> Result<Density, SessionsError> {
    let put = NodeFunction { name: "put", guest: "put", keys: "fresh = true\n" };
    // A KiB a session, and room for the region's own pages.
    let limits = format!("region_mib = {}\n", 256 + sessions / 1_024);
    let place = NodePlace::new(bench.xfaas, bench.server_cpu, &limits, &[put])?;
    let server = place.start(bench.interrupt)?;
    let mut client = Client::connect(server.address())?;
    // So that buffers and tables that every node has are not counted as sessions'.
    write_sessions(bench, &mut client, "warm", BATCH_REQUESTS)?;
    let sessions_before = u64::from(BATCH_REQUESTS) + 1; // and that of the request by which the node's start was seen
    let metrics_before = Metrics::with_sessions(place.admin(), sessions_before)?;
    let before = Resident::of(server.pid())?;
    write_sessions(bench, &mut client, "rest", sessions)?;
    let metrics_after = Metrics::with_sessions(place.admin(), sessions_before + u64::from(sessions))?;
    let after = Resident::of(server.pid())?;
    let region_bytes = metrics_after.sum("xfaas_state_used_bytes")? - metrics_before.sum("xfaas_state_used_bytes")?;
    Ok(Density {
        sessions: u64::from(sessions),
        region_bytes: region_bytes.max(0.0) as u64,
        resident_bytes: after.all.saturating_sub(before.all),
        anonymous_bytes: after.anonymous.saturating_sub(before.anonymous),
    })
}

fn write_sessions(bench: &SessionsBench<'_>, client: &mut Client, name: &str, count: u32) -> Result<(), SessionsError> {
    let mut batch = Vec::new();
    let mut told = Instant::now();
    for first in (0..count).step_by(BATCH_REQUESTS as usize) {
        bench.check_interrupt()?;
        if told.elapsed() > PROGRESS_EVERY {
            told = Instant::now();
            eprintln!("idle_session: {first} of {count} sessions are written");
        }
        let numbers = first..count.min(first + BATCH_REQUESTS);
        batch.clear();
        for number in numbers.clone() {
            let value = [number as u8; VALUE_BYTES as usize];
            batch.extend_from_slice(&request("put", &format!("{name}-{number:011}"), &value));
        }
        client.send(&batch)?;
        for _ in numbers {
            let reply = client.receive()?;
            if reply.status != 200 {
                let body = String::from_utf8_lossy(&reply.body).into_owned();
                return Err(SessionsError::Answer { request: "put", status: reply.status, body });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beside_the_state_is_in_the_region_and_out_of_it() {
        let density = Density { sessions: 10, region_bytes: 3_000, resident_bytes: 9_000, anonymous_bytes: 1_000 };
        assert_eq!(density.beside_state(), 300.0);
    }
}
