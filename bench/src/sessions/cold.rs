//! ColdSession: the first request of a session whose state is in a checkpoint on the local disk and not in memory any more, as a client sees it.

use super::probe::Metrics;
use super::starts::Times;
use super::{SessionsBench, SessionsError, StartFigures, request};
use crate::load::{Client, Random};
use crate::servers::{NodeFunction, NodePlace, Server};
use xfaas_dataplane::sys::clock::monotonic_ns;

const SESSIONS: u64 = 32;
const STATE_BYTES: u32 = 1 << 20;

/// The node that `measure_cold` asks, running. Not from a thread on the load's CPU: it could not leave it.
pub fn start_for_cold(bench: &SessionsBench<'_>) -> Result<(NodePlace, Server), SessionsError> {
    let large = NodeFunction { name: "large", guest: "put-large", keys: "keep_alive_s = 1\n" };
    let place = NodePlace::new(bench.xfaas, bench.server_cpu, "", &[large])?;
    let server = place.start(bench.interrupt)?;
    Ok((place, server))
}

/// Measures on the calling thread, which is on the load's CPU already. `rounds`: how often each session falls asleep and is woken, after a first
/// time that is not counted. The state is random bytes, which no compression makes smaller.
pub fn measure_cold(bench: &SessionsBench<'_>, place: &NodePlace, server: &Server, rounds: u32) -> Result<StartFigures, SessionsError> {
    let mut client = Client::connect(server.address())?;
    let mut random = Random::new(1);
    let mut state: Vec<u8> = (0..STATE_BYTES).map(|_| random.below(256) as u8).collect();
    for number in 0..SESSIONS {
        state[..8].copy_from_slice(&number.to_le_bytes());
        ask(&mut client, number, &state, b"")?;
    }
    let mut times = Times::default();
    for round in 0..=rounds {
        let before = Metrics::with_asleep(bench, place.admin(), SESSIONS)?;
        for number in 0..SESSIONS {
            let started_ns = monotonic_ns();
            ask(&mut client, number, b"", &STATE_BYTES.to_le_bytes())?;
            if round > 0 {
                times.record(monotonic_ns() - started_ns);
            }
        }
        if round > 0 {
            times.add_server(&before, &Metrics::read(place.admin())?)?;
        }
    }
    Ok(times.figures("cold_session_1mib"))
}

fn ask(client: &mut Client, number: u64, body: &[u8], expected: &[u8]) -> Result<(), SessionsError> {
    let reply = client.ask(&request("large", &format!("cold-{number}"), body))?;
    if reply.status == 200 && reply.body == expected {
        return Ok(());
    }
    let body = String::from_utf8_lossy(&reply.body).into_owned();
    Err(SessionsError::Answer { request: "cold_session_1mib", status: reply.status, body })
}
