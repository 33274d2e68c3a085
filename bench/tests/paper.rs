//! `paper` as it is run: what it writes and prints. A figure is measured for real where the program `xfaas` is built, as it is when the whole workspace
//! is tested; one that cannot be measured is told anyway. Some seconds.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn paper(arguments: &[&str], xfaas: &Path, out: &Path) -> Output {
    let guests = std::env::var("XFAAS_GUESTS").unwrap_or(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/guests").to_owned());
    let mut command = Command::new(env!("CARGO_BIN_EXE_paper"));
    command.args(["--quick", "--out"]).arg(out).args(arguments).env("XFAAS_BIN", xfaas).env("XFAAS_GUESTS", guests);
    command.output().expect("a built program starts")
}

fn built_xfaas() -> PathBuf {
    let beside = Path::new(env!("CARGO_BIN_EXE_paper")).with_file_name("xfaas");
    std::env::var_os("XFAAS_BIN").map_or(beside, PathBuf::from)
}

fn text_of(out: &Path, name: &str) -> String {
    std::fs::read_to_string(out.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[test]
fn a_figure_has_all_its_files_and_the_report_tells_where_it_was_made() {
    let xfaas = built_xfaas();
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("paper");
    std::fs::create_dir_all(&out).unwrap();
    std::fs::write(out.join("report.html"), "of all figures").unwrap();
    let output = paper(&["--json", "--only", "fig2"], &xfaas, &out);
    assert_eq!(text_of(&out, "report.html"), "of all figures");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("paper/report-fig2.html"), "{stderr}");
    let page = text_of(&out, "report-fig2.html");
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    for part in ["<h1>", "id=\"fig2\"", kernel.trim(), "commit", "cargo xtask bench paper --only fig2"] {
        assert!(page.contains(part), "{part} is not in the page; {stderr}");
    }
    let report: Value = serde_json::from_str(&text_of(&out, "report-fig2.json")).expect("JSON");
    if !xfaas.is_file() {
        // Only this package is tested: then the figure must be told to be missing.
        assert!(report["failures"][0]["reason"].as_str().unwrap().contains("xfaas"), "{report}");
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        return;
    }
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    let lines = String::from_utf8_lossy(&output.stdout);
    let figures: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect();
    assert_eq!(figures.len(), 1);
    assert_eq!((&figures[0], figures[0]["id"].as_str()), (&report["figures"][0], Some("fig2")));
    assert_eq!(figures[0]["table"]["rows"].as_array().map(Vec::len), Some(12));
    assert!(page.contains("<svg") && text_of(&out, "fig2.svg").contains("Mean delay"));
    assert!(std::fs::read(out.join("fig2.png")).unwrap().starts_with(b"\x89PNG"));
    assert!(text_of(&out, "report-fig2.txt").contains("rmw_linear, 8 workers"));
}

#[test]
fn figures_that_cannot_be_measured_are_told_and_fail_the_run() {
    let directory = tempfile::tempdir().unwrap();
    let output = paper(&["--only", "fig11", "--only", "fig5"], Path::new("/nonexistent/xfaas"), directory.path());
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("not measured: fig5, fig11"), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(text, text_of(directory.path(), "report-fig5-fig11.txt"));
    assert!(text.contains("fig5 WAS NOT MEASURED") && text.contains("/nonexistent/xfaas is missing"), "{text}");
    assert!(text_of(directory.path(), "report-fig5-fig11.html").contains("<section id=\"fig11\" class=\"failed\">"));
}
