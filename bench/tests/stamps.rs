//! The program `stamps` as it is run, with the same node in both places: what it prints and how it ends. A few seconds.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::Value;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};
use xfaas_bench::servers::XfaasFiles;
use xfaas_bench::settings::built_beside;
use xfaas_dataplane::sys::affinity::allowed_cpus;

fn stamps(files: &XfaasFiles, folder: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stamps"));
    command.args(["--json", "--seconds", "0.4", "--rounds", "2", "--connections", "4"]);
    command.env("XFAAS_BIN", folder.join("xfaas")).env("XFAAS_GUESTS", &files.guests).output().unwrap()
}

#[test]
fn two_nodes_take_turns_and_each_case_is_a_row() {
    let (files, folder) = (built_beside(), tempfile::tempdir().unwrap());
    assert!(files.check().is_ok(), "{files:?}: run the tests with `cargo xtask test`, which builds the node and the guests");
    if allowed_cpus().len() < 2 {
        return eprintln!("stamps NOT run: the node and the load need a CPU each");
    }
    let binary = std::path::absolute(&files.binary).unwrap();
    symlink(&binary, folder.path().join("xfaas")).unwrap();
    let refused = stamps(&files, folder.path());
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(1) && refused.stdout.is_empty() && told.contains("xfaas-unstamped"), "{told}");

    symlink(&binary, folder.path().join("xfaas-unstamped")).unwrap();
    // Where others have the CPU for most of a second, datagrams stay unanswered, and that rightly ends a run.
    let mut runs = (0..5).map(|_| stamps(&files, folder.path()));
    let output = runs
        .find(|run| !String::from_utf8_lossy(&run.stderr).contains("were not answered"))
        .expect("the CPUs to itself in one of the runs");
    let told = String::from_utf8_lossy(&output.stderr);
    let rows: Vec<Value> =
        String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect();
    let names: Vec<&str> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["http_rmw", "udp_rmw"], "{told}");
    for row in &rows {
        let number = |field: &str| row[field].as_f64().unwrap_or_else(|| panic!("{field} of {row}"));
        assert!(number("stamped_per_second") > 10.0 && number("unstamped_per_second") > 10.0, "{row}");
        assert!(number("least_percent") <= number("cost_percent") && number("cost_percent") <= number("most_percent"), "{row}");
    }
    // Two short rounds on a machine that does something else say nothing of the cost; but the code is what the rows say.
    let holds = rows.iter().all(|row| row["holds"] == true);
    assert_eq!(output.status.code(), Some(i32::from(!holds)), "{told}");
    // Another one begins each time.
    let turns: Vec<&str> = told.lines().filter(|line| line.ends_with("stamps")).collect();
    assert_eq!(turns, ["with stamps", "without stamps", "without stamps", "with stamps"]);
}
