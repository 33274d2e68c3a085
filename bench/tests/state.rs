//! The program `state` as it is run, with the least time: what it prints. Its round trips to xfaas and redis need those programs: they run
//! once in the criterion bench `state`, and in `cargo xtask bench state`.

use std::process::Command;

#[test]
fn each_promised_case_is_one_json_object_a_line_with_its_name_and_two_figures() {
    let output = Command::new(env!("CARGO_BIN_EXE_state"))
        .args(["--json", "--seconds", "0.1", "--rounds", "1", "--skip", "rpc", "--skip", "redis"])
        .env("XFAAS_GUESTS", std::env::var("XFAAS_GUESTS").unwrap_or(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/guests").to_owned()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let rows: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<&str> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    let sizes = ["16B", "1KiB", "64KiB"].iter().flat_map(|size| [format!("state/read/{size}"), format!("state/write/{size}")]);
    let others = ["state/rmw_strong", "state/read_remote_core", "guest/read_state", "guest/rmw_strong", "tcp_ping_pong"];
    let scaling = ["state/read_scaling/1core", "state/read_scaling/2core"];
    assert_eq!(names, sizes.chain(others.map(str::to_owned)).chain(scaling.map(str::to_owned)).collect::<Vec<_>>());
    for row in &rows {
        let [p50_ns, p99_ns] = ["p50_ns", "p99_ns"].map(|field| row[field].as_f64().unwrap());
        let is_scaling = row["reads_per_second"].as_f64().is_some_and(|reads| reads > 0.0);
        assert!(p50_ns > 0.0 && p99_ns >= p50_ns, "{row}");
        assert_eq!(row.as_object().unwrap().len(), if is_scaling { 4 } else { 3 }, "{row}");
    }
}
