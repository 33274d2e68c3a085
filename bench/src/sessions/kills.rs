//! kill -9 of a node with a `sync` app in the middle of its load, again and again on the same files, and what is left of the increments that it
//! had acknowledged. Every second time the shared memory is gone as well, as after the machine's end: then only the log is left.

use super::{SessionsBench, SessionsError, request};
use crate::load::Client;
use crate::servers::{NodeFunction, NodePlace};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const SESSIONS: usize = 8;
const CLIENTS: usize = 16;
/// The load runs for so long before the kill: another time each run, between these two.
const LOAD_MS_MIN: u64 = 20;
const LOAD_MS_STEP: u64 = 17;
const LOAD_MS_STEPS: u64 = 8;
const KEYS: &str = "app = \"counters\"\ndurability = \"sync\"\n";
const FUNCTIONS: [NodeFunction<'static>; 2] = [
    NodeFunction { name: "add", guest: "counter-rmw-linear", keys: KEYS },
    NodeFunction { name: "look", guest: "counter-read", keys: KEYS },
];

/// Sums over all runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct KillFigures {
    pub runs: u64,
    /// The part of them after which the shared memory was gone too.
    pub without_memory: u64,
    pub acknowledged: u64,
    /// Acknowledged increments that were not there after the start that followed.
    pub lost: u64,
}

/// Kills a node `runs` times. Small `region_mib`: a start without shared memory is the usual thing here.
pub fn measure_kills(bench: &SessionsBench<'_>, runs: u32) -> Result<KillFigures, SessionsError> {
    let place = NodePlace::new(bench.xfaas, bench.server_cpu, "region_mib = 64\n", &FUNCTIONS)?;
    let mut figures = KillFigures::default();
    // What was found last, and with it what is acknowledged since.
    let mut known = [0_u64; SESSIONS];
    let mut server = place.start(bench.interrupt)?;
    for run in 0..u64::from(runs) {
        bench.check_interrupt()?;
        let acknowledged: [AtomicU64; SESSIONS] = Default::default();
        let (address, load) = (server.address(), Duration::from_millis(LOAD_MS_MIN + LOAD_MS_STEP * (run % LOAD_MS_STEPS)));
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS)
                .map(|client| {
                    scope.spawn({
                        let own = &acknowledged[client % SESSIONS];
                        move || increment(address, client % SESSIONS, own)
                    })
                })
                .collect();
            std::thread::sleep(load);
            let killed = server.kill().map_err(SessionsError::from);
            let ended = clients.into_iter().map(|client| client.join().map_err(|_| SessionsError::Panicked)?);
            ended.fold(killed, |all, one| all.and(one))
        })?;
        if run % 2 == 1 {
            place.forget_shared_memory()?;
            figures.without_memory += 1;
        }
        server = place.start(bench.interrupt)?;
        let mut client = Client::connect(server.address())?;
        for session in 0..SESSIONS {
            let acknowledged = acknowledged[session].load(Ordering::Relaxed);
            let found = count_of(&mut client, session)?;
            figures.acknowledged += acknowledged;
            figures.lost += (known[session] + acknowledged).saturating_sub(found);
            known[session] = found;
        }
        figures.runs += 1;
    }
    Ok(figures)
}

/// Adds one after the other until the connection breaks. Errors: a reply that is something else than a number.
fn increment(address: SocketAddr, session: usize, acknowledged: &AtomicU64) -> Result<(), SessionsError> {
    let request = request("add", &format!("killed-{session}"), b"");
    let Ok(mut client) = Client::connect(address) else { return Ok(()) };
    while let Ok(reply) = client.ask(&request) {
        number_of("add", &reply.body, reply.status)?;
        acknowledged.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

fn count_of(client: &mut Client, session: usize) -> Result<u64, SessionsError> {
    let reply = client.ask(&request("look", &format!("killed-{session}"), b""))?;
    number_of("look", &reply.body, reply.status)
}

fn number_of(request: &'static str, body: &[u8], status: u16) -> Result<u64, SessionsError> {
    let body = String::from_utf8_lossy(body).into_owned();
    match body.parse() {
        Ok(number) if status == 200 => Ok(number),
        _ => Err(SessionsError::Answer { request, status, body }),
    }
}
