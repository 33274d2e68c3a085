//! `paper`: the paper's evaluation. The report goes to stdout and into a folder, progress and errors to stderr.

use clap::Parser;
use std::collections::BTreeSet;
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use xfaas_bench::load::Interrupt;
use xfaas_bench::paper::{Failure, Figure, PaperReport, PaperSetup, REQUESTS_WHOLE, SOURCES, Source, facts, source_of};
use xfaas_bench::servers::exit_code;
use xfaas_bench::settings::{Cpus, chain, second_cpu, seconds, xfaas_files};

/// Measures the figures of the paper's evaluation again, on this machine: each with its picture, its table and the paper's own values beside ours.
///
/// The report is written as report.html (one file with all pictures), report.txt, report.json and a picture of each figure as SVG and PNG; its
/// text goes to stdout. A run of some figures writes report-FIGURES.html and so on, and leaves the whole report as it is. A figure that cannot be measured is told in the report, and the others are measured still; the run fails then.
/// docs/PAPER.md tells the method. `XFAAS_BIN`, `XFAAS_GUESTS` and `XFAAS_PEERS` say where the parts are, if not in `target/`.
#[derive(Parser)]
struct Arguments {
    /// One JSON object a line, for each figure, instead of the text.
    #[arg(long)]
    json: bool,
    /// Only this figure; may be given again.
    #[arg(long = "only", value_name = "FIGURE", value_parser = source_named)]
    only: Vec<&'static str>,
    /// Seconds of each run that lasts a given time, 0.1 to 600 [default: 2, with --quick 0.3].
    #[arg(long, value_parser = seconds)]
    seconds: Option<f64>,
    /// Runs of each case; medians count [default: 3, with --quick 1].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: Option<u32>,
    /// A tenth of the work in one round: to see that it runs. Its figures say little.
    #[arg(long)]
    quick: bool,
    /// Where the report is written.
    #[arg(long, value_name = "DIR", default_value = "target/paper")]
    out: PathBuf,
    #[command(flatten)]
    cpus: Cpus,
    /// Names what must be installed for the figures, one a line, and ends.
    #[arg(long, hide = true)]
    list_packages: bool,
}

fn source_named(text: &str) -> Result<&'static str, String> {
    source_of(text).map(|source| source.id).ok_or_else(|| {
        let lines: Vec<String> = SOURCES.iter().map(|source| format!("{} ({})", source.id, source.what)).collect();
        format!("there are {}", lines.join(", "))
    })
}

fn main() -> ExitCode {
    exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    if arguments.list_packages {
        let packages: BTreeSet<&str> = wanted(&arguments.only).flat_map(|source| source.packages).copied().collect();
        packages.iter().for_each(|package| println!("{package}"));
        return Ok(());
    }
    let interrupt = Interrupt::on_signals()?;
    let (server_cpu, load_cpu) = arguments.cpus.choose()?;
    let second_cpu = second_cpu(server_cpu, load_cpu);
    let (xfaas, packages) = (xfaas_files(), std::env::var_os("XFAAS_PEERS").map_or_else(|| "target/peers".into(), PathBuf::from));
    let (seconds, rounds, requests) = if arguments.quick { (0.3, 1, REQUESTS_WHOLE / 10) } else { (2.0, 3, REQUESTS_WHOLE) };
    let setup = PaperSetup {
        xfaas: &xfaas,
        packages: &packages,
        server_cpu,
        load_cpu,
        second_cpu,
        seconds: arguments.seconds.unwrap_or(seconds),
        rounds: arguments.rounds.unwrap_or(rounds),
        requests,
        interrupt: &interrupt,
    };
    let (figures, failures) = measure(&setup, &arguments.only);
    let command: Vec<String> = std::env::args().skip(1).collect();
    let command = format!("cargo xtask bench paper {}", command.join(" ")).trim_end().to_owned();
    let report = PaperReport { facts: facts(&xfaas.binary, &packages, [server_cpu, load_cpu, second_cpu]), command, figures, failures };
    let page = report.save(&arguments.out)?;
    if arguments.json {
        report.figures.iter().for_each(|figure| println!("{}", figure.to_json()));
    } else {
        print!("{}", report.text());
    }
    eprintln!("the report is {}", page.display());
    if interrupt.is_set() {
        return Err("interrupted: these are the figures so far".into());
    }
    let failed: Vec<&str> = report.failures.iter().map(|failure| failure.id.as_str()).collect();
    if failed.is_empty() { Ok(()) } else { Err(format!("not measured: {}", failed.join(", ")).into()) }
}

fn wanted(only: &[&str]) -> impl Iterator<Item = &'static Source> {
    SOURCES.iter().filter(move |source| only.is_empty() || only.contains(&source.id))
}

/// One after the other, until all are done or somebody ends it.
fn measure(setup: &PaperSetup<'_>, only: &[&str]) -> (Vec<Figure>, Vec<Failure>) {
    let (mut figures, mut failures) = (Vec::new(), Vec::new());
    let wanted: Vec<&Source> = wanted(only).collect();
    for (number, source) in wanted.iter().enumerate() {
        if setup.interrupt.is_set() {
            break;
        }
        eprintln!("{} of {}: {}, {}", number + 1, wanted.len(), source.id, source.what);
        match (source.measure)(setup) {
            Ok(figure) => figures.push(figure),
            Err(error) => {
                let reason = chain(&error);
                eprintln!("{} was not measured: {reason}", source.id);
                failures.push(Failure { id: source.id.to_owned(), reason });
            }
        }
    }
    (figures, failures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_chosen_by_name() {
        let arguments = Arguments::try_parse_from(["paper", "--only", "fig5", "--only", "table2", "--quick"]).unwrap();
        assert_eq!(arguments.only, ["fig5", "table2"]);
        assert_eq!(source_named("fig8"), Ok("fig7"));
        assert_eq!(wanted(&["fig10", "table2"]).flat_map(|source| source.packages).collect::<Vec<_>>(), [&"seaweedfs"]);
        let error = source_named("fig3").unwrap_err();
        assert!(error.contains("fig11 (a burst on one session)"), "{error}");
        for words in [["--rounds", "0"], ["--seconds", "0"], ["--only", "fig"]] {
            assert!(Arguments::try_parse_from([&["paper"], &words[..]].concat()).is_err(), "{words:?}");
        }
    }
}
