//! What the binaries' arguments have in common: seconds, the two CPUs, where the parts are, and running on a CPU.

use crate::servers::XfaasFiles;
use std::error::Error;
use std::path::{Path, PathBuf};
use xfaas_dataplane::sys::affinity::{allowed_cpus, pin_to};

/// Parses a number of seconds, 0.1 to 600.
pub fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.1..=600.0).contains(&seconds) => Ok(seconds),
        _ => Err("give a number of seconds in 0.1..=600".to_owned()),
    }
}

/// Two different CPUs: those given, else the first and the last one that this process may use.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Cpus {
    /// CPU of the servers; the first one this process may use, if not given.
    #[arg(long)]
    server_cpu: Option<u16>,
    /// CPU of the load generator; the last one this process may use, if not given.
    #[arg(long)]
    load_cpu: Option<u16>,
}

impl Cpus {
    /// Output: the servers' CPU and the load's. Errors: both are the same.
    pub fn choose(&self) -> Result<(u16, u16), Box<dyn Error>> {
        let allowed = allowed_cpus();
        let server = self.server_cpu.or(allowed.first().copied()).ok_or("no CPU to run on")?;
        let load = self.load_cpu.or(allowed.last().copied()).ok_or("no CPU to run on")?;
        if server == load {
            return Err(format!("the server and the load need a CPU each, and both got {server} of {allowed:?}").into());
        }
        Ok((server, load))
    }
}

/// The CPU of a server's second shard: one that nobody else has if this process may use three, else the load's, which it is shared with then.
pub fn second_cpu(server: u16, load: u16) -> u16 {
    allowed_cpus().into_iter().find(|cpu| *cpu != server && *cpu != load).unwrap_or(load)
}

fn path(variable: &str, default: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| default.into(), PathBuf::from)
}

/// `XFAAS_BIN` and `XFAAS_GUESTS`, if not in `target/`.
pub fn xfaas_files() -> XfaasFiles {
    XfaasFiles { binary: path("XFAAS_BIN", "target/release/xfaas"), guests: path("XFAAS_GUESTS", "target/guests") }
}

/// The same for benches, which cargo starts in the package's folder: what was built with the same profile as this program.
pub fn built_beside() -> XfaasFiles {
    let own = std::env::current_exe().unwrap_or_default();
    let built = own.ancestors().nth(2).unwrap_or(Path::new("")).join("xfaas");
    let binary = std::env::var_os("XFAAS_BIN").map_or(built, PathBuf::from);
    XfaasFiles { binary, guests: path("XFAAS_GUESTS", concat!(env!("CARGO_MANIFEST_DIR"), "/../target/guests")) }
}

/// `XFAAS_EBPF_OBJECT`, if not in `target/`.
pub fn ebpf_object() -> PathBuf {
    path("XFAAS_EBPF_OBJECT", "target/ebpf/xfaas-ebpf.o")
}

/// Runs `work` on a thread that is pinned to `cpu`. It may fail only with errors that are shown.
pub fn on_cpu<T: Send>(cpu: u16, work: impl FnOnce() -> Result<T, Box<dyn Error>> + Send) -> Result<T, Box<dyn Error>> {
    on_thread(|| {
        pin_to(cpu)?;
        work()
    })
}

/// Runs `work` on a thread of its own, which it may pin: threads and processes that it starts before that may run anywhere.
pub fn on_thread<T: Send>(work: impl FnOnce() -> Result<T, Box<dyn Error>> + Send) -> Result<T, Box<dyn Error>> {
    let run = || work().map_err(|error| chain(error.as_ref()));
    match std::thread::scope(|scope| scope.spawn(run).join()) {
        Ok(result) => Ok(result?),
        Err(_) => Err("the measuring thread panicked".into()),
    }
}

/// An error and its causes in one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
