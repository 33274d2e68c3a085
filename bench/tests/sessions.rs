//! The programs `sessions` and `policies` as they are run, with little to do: what they print. What `sessions` measures on a node needs the
//! program `xfaas`: that runs in `cargo xtask bench sessions`.

use serde_json::Value;
use std::process::Command;

fn rows(program: &str, arguments: &[&str]) -> Vec<Value> {
    let guests = std::env::var("XFAAS_GUESTS").unwrap_or(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/guests").to_owned());
    let output = Command::new(program).args(arguments).env("XFAAS_GUESTS", guests).output().expect("a built program starts");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("it prints text");
    text.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect()
}

#[test]
fn a_fork_is_one_json_object_and_its_phases_another() {
    let parts = ["starts", "copy_session", "cold_session_1mib", "idle_session", "fork_64mib_rss_bytes", "sync_rmw", "kills"];
    let skips = parts.iter().flat_map(|part| ["--skip", part]);
    let arguments: Vec<&str> = ["--json", "--forks", "20"].into_iter().chain(skips).collect();
    let rows = rows(env!("CARGO_BIN_EXE_sessions"), &arguments);
    assert_eq!(rows.iter().map(|row| row["name"].as_str().unwrap()).collect::<Vec<_>>(), ["fork", "fork_phases"]);
    let [p50_us, p99_us] = ["p50_us", "p99_us"].map(|field| rows[0][field].as_f64().unwrap());
    assert!(p50_us > 0.0 && p99_us >= p50_us, "{rows:?}");
    assert!(rows[1]["instance_us"].as_f64().unwrap() < p99_us, "{rows:?}");
}

#[test]
fn a_trace_that_was_written_is_replayed_with_the_same_figures() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("trace.csv");
    let path = path.to_str().unwrap();
    let options = ["--json", "--fixed-minutes", "1", "--memory-mib", "512"];
    let made = |more: &[&str]| rows(env!("CARGO_BIN_EXE_policies"), &[&options[..], more].concat());
    let written = made(&["--functions", "5", "--hours", "4", "--write-trace", path]);
    let read = made(&["--trace", path]);
    let counts = |rows: &[Value]| rows.iter().map(|row| (row["policy"].clone(), row["evictions"].clone())).collect::<Vec<_>>();
    assert_eq!(written[0]["cold_starts"], read[0]["cold_starts"]);
    assert_eq!(counts(&written)[..6], counts(&read)[..6]);
    assert_eq!(written.len(), 7);
}
