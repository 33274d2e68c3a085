//! `limit`: the bare io_uring echo on one core, for comparison. Ends with its parent, SIGINT or SIGTERM.

use clap::Parser;
use std::net::SocketAddr;
use std::process::ExitCode;
use xfaas_bench::limit::{counter_reply, serve};
use xfaas_bench::servers::exit_code;
use xfaas_common::ids::SessionId;

/// Answers every HTTP/1.1 request head with a fixed reply: the most that one core and one io_uring can do.
#[derive(Parser)]
struct Arguments {
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1:8089")]
    listen: SocketAddr,
    /// CPU to run on.
    #[arg(long, default_value_t = 0)]
    cpu: u16,
}

fn main() -> ExitCode {
    exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
    xfaas_dataplane::sys::affinity::pin_to(arguments.cpu)?;
    let session = SessionId::new(b"session-00000000").ok_or("a constant session ID")?;
    serve(arguments.listen, counter_reply(&session, 12_345), || eprintln!("limit: listening on {}", arguments.listen))?;
    Ok(())
}
