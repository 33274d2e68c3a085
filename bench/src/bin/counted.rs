//! The cases of `counts`, to be run under callgrind: `counted BATCHES [NAME...]` prints each case with the operations that it counts. Its
//! allocator is the one that `xfaas` has.

use std::error::Error;
use std::process::ExitCode;
use xfaas_bench::counts::run_counted;
use xfaas_bench::servers::exit_code;
use xfaas_bench::settings::xfaas_files;

fn main() -> ExitCode {
    exit_code(run())
}

fn run() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let batches = arguments.next().and_then(|batches| batches.parse().ok()).ok_or("usage: counted BATCHES [NAME...]")?;
    let only: Vec<String> = arguments.collect();
    run_counted(&xfaas_files(), &only, batches, |name, operations| println!("{name} {operations}"))?;
    Ok(())
}
