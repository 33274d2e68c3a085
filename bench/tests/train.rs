//! `train` as `cargo xtask pgo` runs it, briefly: every kind of load is answered rightly by the real `xfaas` and a container of it.

use std::process::{Command, Stdio};
use xfaas_bench::settings::built_beside;

#[test]
fn a_node_and_its_container_take_every_kind_of_load() {
    let files = built_beside();
    let mut command = Command::new(env!("CARGO_BIN_EXE_train"));
    command.args(["--seconds", "0.1"]).env("XFAAS_BIN", &files.binary).env("XFAAS_GUESTS", &files.guests).stdin(Stdio::null());
    let output = command.output().expect("a built program starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    let answered = stderr.lines().filter_map(|line| line.strip_suffix(" requests")?.rsplit_once(": "));
    let counts: Vec<u64> = answered.map(|(_, count)| count.parse().expect("a number")).collect();
    assert!(counts.len() == 19 && counts.iter().all(|count| *count > 0), "{stderr}");
    assert!(stderr.ends_with("19 kinds of load were run\n"), "{stderr}");
}

#[test]
fn wrong_usage_is_told() {
    let output = Command::new(env!("CARGO_BIN_EXE_train")).args(["--seconds", "0"]).output().expect("a built program starts");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("0.1..=600"), "{output:?}");
}
