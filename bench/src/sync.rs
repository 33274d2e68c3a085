//! Read-modify-writes that are on the disk before they are answered: xfaas with `durability = "sync"`, beside what the disk does by itself and
//! redis with `appendfsync always`. All in turns, so that a disk that others use as well slows all of them.

use crate::load::{BodyRule, Expect, HttpLoad, Interrupt, LoadError, LoadPlan, run_http};
use crate::report::median;
use crate::servers::{Server, ServerError, XfaasFiles, start_redis_always, start_xfaas_sync};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use xfaas_dataplane::sys::socket::uninterrupted;

/// Bytes of one write to the bare disk: what the log writes for the requests of 32 connections.
const WRITE_BYTES: usize = 4_096;
const FILE_BYTES: u64 = 64 << 20;
const SESSIONS: usize = 80;
const WARM_UP: Duration = Duration::from_millis(200);

#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error("the load on xfaas")]
    Load(#[from] LoadError),
    #[error("xfaas gave {wrong} wrong replies, the first one: {first}")]
    Wrong { wrong: u64, first: String },
    #[error("{operation}")]
    Io {
        operation: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("nothing was measured")]
    Nothing,
}

/// What is measured, and where.
pub struct SyncBench<'a> {
    pub xfaas: &'a XfaasFiles,
    pub server_cpu: u16,
    pub connections: usize,
    pub seconds: f64,
    pub rounds: usize,
    pub interrupt: &'a Interrupt,
}

/// Medians over the rounds: rates in 1/s, and ratios of one round each.
#[derive(Clone, Copy, Debug)]
pub struct SyncFigures {
    pub requests_per_second: f64,
    pub fsyncs_per_second: f64,
    pub redis_per_second: f64,
    pub ratio_to_fsync: f64,
    pub ratio_to_redis_always: f64,
}

impl SyncFigures {
    /// The row of `cargo xtask bench sync --json`.
    pub fn to_json(&self) -> String {
        format!(
            r#"{{"name":"sync_rmw","requests_per_second":{:.1},"ratio_to_fsync":{:.3},"ratio_to_redis_always":{:.3}}}"#,
            self.requests_per_second, self.ratio_to_fsync, self.ratio_to_redis_always
        )
    }
}

/// The servers, running.
pub struct SyncServers {
    xfaas: Server,
    redis: Server,
    _shared: TempDir,
}

impl SyncServers {
    /// Not on the load's CPU: they could not leave it.
    pub fn start(bench: &SyncBench<'_>) -> Result<SyncServers, SyncError> {
        let (xfaas, shared) = start_xfaas_sync(bench.xfaas, bench.server_cpu, bench.interrupt)?;
        Ok(SyncServers { xfaas, redis: start_redis_always(bench.server_cpu, bench.interrupt)?, _shared: shared })
    }
}

/// Runs all rounds on the calling thread, which is on the load's CPU already. Errors: the first one of any part.
pub fn measure_sync(bench: &SyncBench<'_>, servers: &SyncServers) -> Result<SyncFigures, SyncError> {
    let SyncServers { xfaas, redis, .. } = servers;
    let time = Duration::from_secs_f64(bench.seconds / bench.rounds as f64);
    let (mut fsyncs, mut own, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..bench.rounds {
        eprintln!("round {} of {}", round + 1, bench.rounds);
        fsyncs.push(fsync_rate(time)?);
        own.push(xfaas_rate(bench, xfaas, time)?);
        theirs.push(redis_rate(redis.address(), bench.connections, time)?);
    }
    let middle = |values: &[f64]| median(values).ok_or(SyncError::Nothing);
    let ratio = |to: &[f64]| middle(&own.iter().zip(to).map(|(own, other)| own / other).collect::<Vec<f64>>());
    Ok(SyncFigures {
        requests_per_second: middle(&own)?,
        fsyncs_per_second: middle(&fsyncs)?,
        redis_per_second: middle(&theirs)?,
        ratio_to_fsync: ratio(&fsyncs)?,
        ratio_to_redis_always: ratio(&theirs)?,
    })
}

/// One write after the other, each with an `fdatasync`, into a file whose room is set aside: what the log's disk can do.
fn fsync_rate(time: Duration) -> Result<f64, SyncError> {
    let failed = |source| SyncError::Io { operation: "write and sync a file", source };
    let file = tempfile::tempfile().map_err(failed)?;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, FILE_BYTES).map_err(|error| failed(error.into()))?;
    file.sync_all().map_err(failed)?;
    count_syncs(&file, time).map_err(failed)
}

fn count_syncs(file: &File, time: Duration) -> io::Result<f64> {
    let (started, buffer, mut count) = (Instant::now(), [7; WRITE_BYTES], 0_u64);
    while started.elapsed() < time {
        file.write_all_at(&buffer, count * WRITE_BYTES as u64 % FILE_BYTES)?;
        file.sync_data()?;
        count += 1;
    }
    Ok(count as f64 / started.elapsed().as_secs_f64())
}

fn xfaas_rate(bench: &SyncBench<'_>, server: &Server, time: Duration) -> Result<f64, SyncError> {
    let target = server.address();
    let request = |session: String| {
        let text = format!("GET /f/counter-rmw-linear HTTP/1.1\r\nhost: {target}\r\nx-session-id: {session}\r\n\r\n");
        (session.into_bytes(), text.into_bytes())
    };
    let sessions: Vec<(Vec<u8>, Vec<u8>)> = (0..SESSIONS).map(|number| request(format!("sync-{number:011}"))).collect();
    let plan = LoadPlan { warm_up: WARM_UP, measured: time, requests_max: u64::MAX, interrupt: bench.interrupt };
    let expect = Expect { body: BodyRule::Number, names_session: true };
    let report = run_http(&HttpLoad { target, sessions: &sessions, connections: bench.connections, expect }, &plan)?;
    match report.first_wrong.clone() {
        Some(first) if report.wrong > 0 => Err(SyncError::Wrong { wrong: report.wrong, first }),
        _ => Ok(report.summary().requests_per_second),
    }
}

/// `INCR` from as many connections, a thread each: one request under way on each of them.
fn redis_rate(address: SocketAddr, connections: usize, time: Duration) -> Result<f64, SyncError> {
    let (is_over, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let (is_over, done) = (&is_over, &done);
    let failed = |source| SyncError::Io { operation: "ask redis", source };
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..connections).map(|number| scope.spawn(move || increment(address, number, is_over, done))).collect();
        std::thread::sleep(WARM_UP);
        let (before, started) = (done.load(Ordering::Relaxed), Instant::now());
        std::thread::sleep(time);
        let rate = (done.load(Ordering::Relaxed) - before) as f64 / started.elapsed().as_secs_f64();
        is_over.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().unwrap_or_else(|_| Err(io::Error::other("a client panicked"))).map_err(failed)?;
        }
        Ok(rate)
    })
}

fn increment(address: SocketAddr, number: usize, is_over: &AtomicBool, done: &AtomicU64) -> io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let key = format!("sync-{:011}", number % SESSIONS);
    let request = format!("*2\r\n$4\r\nINCR\r\n${}\r\n{key}\r\n", key.len());
    let mut reply = [0; 64];
    while !is_over.load(Ordering::Relaxed) {
        stream.write_all(request.as_bytes())?;
        let mut read = 0;
        while !reply[..read].ends_with(b"\r\n") {
            match uninterrupted(|| stream.read(&mut reply[read..]))? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                bytes => read += bytes,
            }
        }
        if reply[0] != b':' {
            return Err(io::Error::other(String::from_utf8_lossy(&reply[..read]).into_owned()));
        }
        done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}
