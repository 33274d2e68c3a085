//! The program `counts` as it is run, on the cases that need no guest: what it writes, what it accepts and what it refuses.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Output};

/// Without valgrind nothing can be counted; then it says so, which is all that is left to check.
fn has_valgrind() -> bool {
    let found = Command::new("valgrind").arg("--version").output().is_ok_and(|output| output.status.success());
    assert!(found || std::env::var_os("CI").is_none(), "valgrind is missing: `cargo xtask setup` installs it");
    found
}

fn counts(table: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_counts"));
    command.args(["--batches", "10", "--only", "decode/", "--only", "encode/datagram", "--table"]).arg(table).args(arguments);
    command.output().unwrap()
}

/// Replaces the count of a row.
fn set(table: &Path, row: &str, count: &str) {
    let text = std::fs::read_to_string(table).unwrap();
    let line = text.lines().find(|line| line.starts_with(row)).unwrap();
    std::fs::write(table, text.replace(line, &format!("{row} {count}"))).unwrap();
}

#[test]
fn names_that_no_row_has_are_refused() {
    for option in ["--only", "--skip"] {
        let refused = Command::new(env!("CARGO_BIN_EXE_counts")).args([option, "nosuch/"]).output().unwrap();
        let told = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{told}");
        assert!(told.contains("decode/") && told.contains("allocations/"), "{told}");
    }
    // One that begins right is known when all is counted.
    let refused = Command::new(env!("CARGO_BIN_EXE_counts")).args(["--batches", "10", "--only", "ring/nosuch"]).output().unwrap();
    let told = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{told}");
    assert!(told.contains("--only ring/nosuch") && told.contains("decode/datagram, encode/http"), "{told}");
}

#[test]
fn a_count_that_grew_fails_and_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let table = folder.path().join("counts.txt");
    if !has_valgrind() {
        let refused = counts(&table, &["--update"]);
        assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("valgrind"), "{refused:?}");
        return eprintln!("instructions NOT counted: valgrind is not installed (`cargo xtask setup` installs it)");
    }
    let written = counts(&table, &["--update"]);
    assert!(written.status.success(), "{written:?}");
    let text = std::fs::read_to_string(&table).unwrap();
    for case in ["decode/http_new_head", "decode/http_same_head", "decode/datagram", "encode/datagram"] {
        assert!(text.contains(&format!("{case} instructions ")), "{text}");
    }

    let same = counts(&table, &["--json"]);
    assert!(same.status.success(), "{same:?}");
    for line in String::from_utf8(same.stdout).unwrap().lines() {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(row["verdict"], "same", "{row}");
        assert!(row["unit"] != "instructions" || row["counted"].as_f64().unwrap() > 10.0, "{row}");
    }

    set(&table, "decode/datagram instructions", "1");
    set(&table, "decode/http_same_head instructions", "1000000");
    let grown = counts(&table, &[]);
    let told = (String::from_utf8(grown.stdout).unwrap(), String::from_utf8(grown.stderr).unwrap());
    assert_eq!(grown.status.code(), Some(1), "{told:?}");
    assert!(told.0.contains("WORSE") && told.0.contains("better"), "{told:?}");
    assert!(told.1.contains("decode/datagram") && !told.1.contains("http_same_head"), "{told:?}");

    std::fs::write(&table, "garbage").unwrap();
    let refused = counts(&table, &[]);
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("does not begin with"), "{refused:?}");
}
