//! `cargo xtask tidy`: the house rules that a program can check. Each rule is a function from sources or manifests to findings, with
//! tests that show both what it finds and what it lets pass.

mod artifacts;
mod layers;
mod manifests;
mod mask;
mod safety;
mod size;
mod source;
mod words;

use std::fmt;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use self::source::Source;
use crate::paths;
use crate::process::{run_quiet, say};

/// Checks the house rules that a program can check, and lists every finding as file:line.
#[derive(clap::Args)]
pub struct Arguments {}

/// One breach of a rule.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    path: String,
    /// From 1; 0 for the file as a whole.
    line: usize,
    message: String,
}

impl Finding {
    fn new(path: &str, line: usize, message: impl Into<String>) -> Self {
        Finding { path: path.to_owned(), line, message: message.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}: {}", self.path, self.line.max(1), self.message)
    }
}

pub fn command(_: &Arguments) -> Result<ExitCode> {
    let root = paths::root();
    let listed = run_quiet(Command::new("git").current_dir(&root).args(["ls-files", "--cached", "--others", "--exclude-standard"]))
        .context("list the repository's files")?;
    let files: Vec<&str> = listed.lines().filter(|file| root.join(file).is_file()).collect();
    let findings = check(&root, &files)?;
    for finding in &findings {
        eprintln!("{finding}");
    }
    if !findings.is_empty() {
        say(&format!("{} finding(s) in {} files", findings.len(), files.len()));
        return Ok(ExitCode::FAILURE);
    }
    say(&format!("tidy: {} files, nothing found", files.len()));
    Ok(ExitCode::SUCCESS)
}

/// All findings, sorted by place. Input: paths relative to `root`.
fn check(root: &Path, files: &[&str]) -> Result<Vec<Finding>> {
    let read = |file: &str| std::fs::read_to_string(root.join(file)).with_context(|| format!("read {file}"));
    let mut findings = Vec::new();
    for file in files {
        findings.extend(words::file_name(file));
        findings.extend(artifacts::compiled(root, file)?);
        if file.ends_with(".rs") {
            let source = Source::new(file, &read(file)?);
            for rule in [size::file_length, size::function_length, safety::places, safety::notes, layers::folders] {
                findings.extend(rule(&source));
            }
            for rule in [words::header, words::open_work, words::discarded_results, words::prints, words::crate_wide_allow] {
                findings.extend(rule(&source));
            }
        }
    }
    let mut parsed = Vec::new();
    for file in files.iter().filter(|file| file.rsplit('/').next() == Some("Cargo.toml")) {
        parsed.push(manifests::Manifest::new(file, &read(file)?)?);
    }
    findings.extend(manifests::lints(&parsed));
    findings.extend(layers::crates(&parsed));
    findings.sort();
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_shown_as_an_editor_can_follow_it() {
        assert_eq!(Finding::new("a/b.rs", 7, "too long").to_string(), "a/b.rs:7: too long");
        assert_eq!(Finding::new("a/b.rs", 0, "too long").to_string(), "a/b.rs:1: too long");
    }

    #[test]
    fn every_source_goes_through_every_rule() {
        let root = std::env::temp_dir().join(format!("xtask-tidy-test-{}", std::process::id()));
        let folder = root.join("xfaas-dataplane/src/net");
        std::fs::create_dir_all(&folder).expect("make a folder");
        let long = "// line\n".repeat(600);
        let function = format!("fn long() {{\n{}}}\n", "    work();\n".repeat(70));
        let text = format!(
            "use crate::shard::Shard;\n{function}fn f() {{\n    let _ = g();\n    println!(\"x\");\n    unsafe {{ g() }};\n}} // {}\n{long}",
            ["TO", "DO"].concat()
        );
        std::fs::write(folder.join("utils.rs"), text).expect("write");
        std::fs::write(
            root.join("xfaas-dataplane/Cargo.toml"),
            "[package]\nname = \"xfaas-dataplane\"\n[dependencies]\nxfaas-bench = \"1\"\n",
        )
        .expect("write");
        std::fs::write(root.join("x.o"), b"\x7fELF").expect("write");
        std::fs::write(root.join("Cargo.toml"), "[workspace.lints.rust]\nunused_must_use = \"deny\"\n").expect("write");
        let files = ["Cargo.toml", "x.o", "xfaas-dataplane/Cargo.toml", "xfaas-dataplane/src/net/utils.rs"];
        let findings = check(&root, &files).expect("readable");
        std::fs::remove_dir_all(&root).expect("remove the folder");
        let text = findings.iter().map(Finding::to_string).collect::<Vec<_>>().join("\n");
        for part in [
            "lines",
            "function",
            "unsafe",
            "SAFETY",
            "layer",
            "//!",
            "issue number",
            "discard",
            "print",
            "name",
            "compiled",
            "lints",
            "depend",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
    }
}
