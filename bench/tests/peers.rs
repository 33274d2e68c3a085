//! `peers` as it is run, with the servers that set-up installs: the bare echo and nginx, and one that is not there. A few seconds.

use serde_json::Value;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn peers(arguments: &[&str]) -> Output {
    let nowhere = tempfile::tempdir().expect("a temporary directory");
    let common = ["--json", "--seconds", "0.3", "--rounds", "1"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_peers"));
    command.args(common).args(arguments).env("XFAAS_PEERS", nowhere.path()).stdin(Stdio::null());
    command.output().expect("a built program starts")
}

fn rows(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

fn names(rows: &[Value]) -> Vec<&str> {
    rows.iter().map(|row| row["name"].as_str().expect("a name")).collect()
}

#[test]
fn servers_that_are_there_have_a_row_at_each_load_point() {
    let output = peers(&["--only", "nginx", "--only", "limit_http", "--only", "workerd_rmw", "--common-rate", "50"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(stderr.contains("workerd_rmw is left out: ") && stderr.contains("cargo xtask bench peers"), "{stderr}");
    let rows = rows(&output);
    let points = ["", "_at_50_percent", "_at_70_percent", "_at_common_rate"];
    let wanted = ["nginx", "limit_http"].map(|name| points.map(|point| format!("{name}{point}"))).concat();
    assert_eq!(names(&rows), wanted);
    for row in &rows {
        let number = |field: &str| row[field].as_f64().unwrap_or_else(|| panic!("{field} of {row}"));
        assert!(number("requests_per_second") >= 0.0 && number("cpu_us_per_request") >= 0.0, "{row}");
        assert!(number("p50_us") <= number("p99_us") && number("p99_us") <= number("p999_us"), "{row}");
        assert!(number("rss_bytes") > 1e5, "{row}");
        assert_eq!(row.as_object().map(|fields| fields.len()), Some(7));
    }
    for saturated in rows.iter().filter(|row| matches!(row["name"].as_str(), Some("nginx" | "limit_http"))) {
        assert!(saturated["requests_per_second"].as_f64() > Some(10.0), "{saturated}");
    }
}

#[test]
fn a_row_that_is_left_out_fails_the_run_only_where_all_are_required() {
    let output = peers(&["--only", "limit_http", "--only", "restate_rmw", "--saturation-only", "--require-all"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("not there: restate_rmw"), "{stderr}");
    assert_eq!(names(&rows(&output)), ["limit_http"]);
}

#[test]
fn a_server_ends_with_a_benchmark_that_was_killed() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_peers"));
    command.args(["--only", "nginx", "--saturation-only", "--seconds", "600"]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut bench = command.spawn().expect("a built program starts");
    let name = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let children = || std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", bench.id())).unwrap_or_default();
    let nginx = until(|| children().split_whitespace().find(|pid| name(pid) == "nginx\n").map(str::to_owned));
    bench.kill().expect("it runs");
    bench.wait().expect("it was killed");
    let pid = nginx.expect("nginx is started");
    assert!(until(|| (name(&pid) != "nginx\n").then_some(())).is_some(), "nginx runs on as process {pid}");
}

/// Looks for some seconds.
fn until<T>(look: impl Fn() -> Option<T>) -> Option<T> {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(20) {
        if let Some(seen) = look() {
            return Some(seen);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    None
}
