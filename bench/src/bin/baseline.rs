//! `baseline`: the guests of xfaas with their state in redis or an object store. Ends with its parent, SIGINT or SIGTERM.

use clap::Parser;
use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use xfaas_bench::baseline::{BASELINE_FUNCTIONS, BaselineHost, ObjectPlace, ObjectState, OutsideState, RedisState, serve};
use xfaas_bench::servers::exit_code;
use xfaas_dataplane::sys::affinity::pin_to;

/// Serves `/f/NAME` as xfaas does, with the same modules, but keeps the sessions' state in redis or an S3-compatible store: what xfaas is compared
/// with in the paper's figures. One thread; no deadlines; workers are shared by all sessions.
#[derive(Parser)]
struct Arguments {
    /// Address to listen on; loopback only.
    #[arg(long, default_value = "127.0.0.1:8090")]
    listen: SocketAddr,
    /// CPU to run on.
    #[arg(long, default_value_t = 0)]
    cpu: u16,
    /// `redis://HOST:PORT`, `redis+unix:///SOCKET`, or `s3://BUCKET` with --endpoint.
    #[arg(long, value_name = "URL")]
    state: String,
    /// Of the S3-compatible store: `http://HOST:PORT`. Requests are signed with `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, if they are set.
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// Directory of the modules.
    #[arg(long, default_value = "target/guests")]
    guests: PathBuf,
    /// A function to serve, again for more; those of the figures, if not given.
    #[arg(long = "function", value_name = "NAME")]
    functions: Vec<String>,
}

fn main() -> ExitCode {
    exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    if !arguments.listen.ip().is_loopback() {
        return Err("--listen: loopback only, there is no protection".into());
    }
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
    pin_to(arguments.cpu)?;
    let names: Vec<&str> = match arguments.functions.is_empty() {
        true => BASELINE_FUNCTIONS.to_vec(),
        false => arguments.functions.iter().map(String::as_str).collect(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    runtime.block_on(async {
        let host = BaselineHost::load(outside(arguments).await?, &arguments.guests, &names)?;
        Ok(serve(host, arguments.listen, || eprintln!("baseline: listening on {}", arguments.listen)).await?)
    })
}

async fn outside(arguments: &Arguments) -> Result<OutsideState, Box<dyn Error>> {
    if ["redis://", "redis+unix://"].iter().any(|scheme| arguments.state.starts_with(scheme)) {
        return Ok(OutsideState::Redis(RedisState::connect(&arguments.state).await?));
    }
    let bucket = arguments.state.strip_prefix("s3://").filter(|bucket| !bucket.is_empty() && !bucket.contains('/'));
    match (bucket, &arguments.endpoint) {
        (Some(bucket), Some(endpoint)) => {
            let credentials = std::env::var("AWS_ACCESS_KEY_ID").ok().zip(std::env::var("AWS_SECRET_ACCESS_KEY").ok());
            let place = ObjectPlace { bucket: bucket.to_owned(), endpoint: endpoint.clone(), credentials };
            let objects = ObjectState::connect(&place).await?;
            if !objects.has_locks() {
                eprintln!("baseline: this store has no conditional PUT: strong access is refused");
            }
            Ok(OutsideState::Objects(objects))
        }
        _ => Err("--state: redis://HOST:PORT, redis+unix:///SOCKET, or s3://BUCKET with --endpoint http://HOST:PORT".into()),
    }
}
