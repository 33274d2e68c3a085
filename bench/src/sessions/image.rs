//! Forks of a function: what each worker adds to the node's resident memory. Of one whose `init` filled 64 MiB, a copy of the image would be 64 MiB.

use super::probe::{Metrics, Resident};
use super::{SessionsBench, SessionsError, request};
use crate::load::Client;
use crate::servers::{NodeFunction, NodePlace};

/// Workers before the first look: what every node and the image itself need is there then.
const WARM_UP_FORKS: u32 = 5;

/// Growth for each fork, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct ImageGrowth {
    pub forks: u64,
    /// Resident memory: pages of the image that a worker has looked at count again for each worker, though they are there once.
    pub resident_bytes: f64,
    /// The same with those pages counted once.
    pub proportional_bytes: f64,
    /// The part of it that is the worker's own: what it has written, and its stack.
    pub anonymous_bytes: f64,
}

/// Starts a node with a function whose image is 64 MiB, and lets `forks` sessions have a worker each.
pub fn measure_image(bench: &SessionsBench<'_>, forks: u32) -> Result<ImageGrowth, SessionsError> {
    measure_workers(bench, "table-64mib", forks)
}

/// The same with any guest that answers with one byte.
pub fn measure_workers(bench: &SessionsBench<'_>, guest: &str, forks: u32) -> Result<ImageGrowth, SessionsError> {
    let table = NodeFunction { name: "table", guest, keys: "" };
    let place = NodePlace::new(bench.xfaas, bench.server_cpu, "", &[table])?;
    let server = place.start(bench.interrupt)?;
    let mut client = Client::connect(server.address())?;
    fork(&mut client, "warm", WARM_UP_FORKS)?;
    let look = || Ok::<_, SessionsError>((Metrics::read(place.admin())?.sum("xfaas_workers")?, Resident::of(server.pid())?));
    let (workers_before, before) = look()?;
    bench.check_interrupt()?;
    fork(&mut client, "next", forks)?;
    let (workers_after, after) = look()?;
    let workers = (workers_after - workers_before).max(1.0);
    Ok(ImageGrowth {
        forks: workers as u64,
        resident_bytes: after.all.saturating_sub(before.all) as f64 / workers,
        proportional_bytes: after.proportional.saturating_sub(before.proportional) as f64 / workers,
        anonymous_bytes: after.anonymous.saturating_sub(before.anonymous) as f64 / workers,
    })
}

fn fork(client: &mut Client, name: &str, count: u32) -> Result<(), SessionsError> {
    for number in 0..count {
        let reply = client.ask(&request("table", &format!("{name}-{number}"), b""))?;
        if reply.status != 200 || reply.body.len() != 1 {
            let body = String::from_utf8_lossy(&reply.body).into_owned();
            return Err(SessionsError::Answer { request: "table", status: reply.status, body });
        }
    }
    Ok(())
}
