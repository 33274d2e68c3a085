//! Rules on names and on single words: file names that say nothing, a missing header, open work without an issue, results thrown
//! away, prints in a library.

use super::Finding;
use super::source::{Source, whole_words};

/// Names that tell where a thing was put, not what it is.
const EMPTY_NAMES: [&str; 5] = ["utils.rs", "util.rs", "helpers.rs", "common.rs", "types.rs"];
/// Marks of open work.
const MARKS: [&str; 3] = ["TODO", "FIXME", "XXX"];
/// Macros that write to the terminal.
const PRINTS: [&str; 5] = ["println", "print", "eprintln", "eprint", "dbg"];
/// Programs: printing and choosing the exit code is their work. Build scripts talk to cargo by printing.
const PROGRAM_PLACES: [&str; 6] =
    ["xtask/", "bench/", "fuzz/", "xfaas-dataplane/src/main.rs", "xfaas-dataplane/src/cli.rs", "xfaas-dataplane/src/cli/"];

pub fn file_name(path: &str) -> Option<Finding> {
    let name = path.rsplit('/').next().unwrap_or(path);
    EMPTY_NAMES.contains(&name).then(|| Finding::new(path, 0, format!("the name {name} says nothing: name the file after what it does")))
}

/// A file opens with what it does, who calls it, what it may not do.
pub fn header(source: &Source) -> Vec<Finding> {
    if source.text.starts_with("//! ") {
        return Vec::new();
    }
    vec![Finding::new(&source.path, 1, "the file does not open with a `//!` comment that says what it does")]
}

/// A mark of open work names the issue that tracks it, as in `MARK(#12)`.
pub fn open_work(source: &Source) -> Vec<Finding> {
    let comments = &source.masked.comments;
    let mut findings = Vec::new();
    for mark in MARKS {
        for at in whole_words(comments, mark) {
            let number = comments[at + mark.len()..].strip_prefix("(#").and_then(|rest| rest.split_once(')'));
            if !number.is_some_and(|(digits, _)| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())) {
                findings.push(Finding::new(
                    &source.path,
                    source.line_of(at),
                    format!("`{mark}` without an issue number, as in {mark}(#12)"),
                ));
            }
        }
    }
    findings
}

/// `let _ = f()` hides what the call said.
pub fn discarded_results(source: &Source) -> Vec<Finding> {
    let code = &source.masked.code;
    let positions = source.words("let").filter(|at| !source.is_test(*at)).filter(|at| {
        let Some(rest) = code[at + "let".len()..].trim_start().strip_prefix('_') else { return false };
        let statement = rest.split(';').next().unwrap_or_default();
        rest.starts_with([' ', ':', '=']) && statement.split_once('=').is_some_and(|(_, value)| value.contains('('))
    });
    positions
        .map(|at| {
            Finding::new(&source.path, source.line_of(at), "`let _ =` discards what a call returned: handle it, or say why with `drop`")
        })
        .collect()
}

/// A library neither prints nor ends the process.
pub fn prints(source: &Source) -> Vec<Finding> {
    let is_program = PROGRAM_PLACES.iter().any(|place| source.path == *place || (place.ends_with('/') && source.path.starts_with(place)));
    if is_program || source.path.rsplit('/').next() == Some("build.rs") {
        return Vec::new();
    }
    let code = &source.masked.code;
    let mut findings = Vec::new();
    for name in PRINTS {
        let calls = source.words(name).filter(|at| code[at + name.len()..].starts_with('!') && !source.is_test(*at));
        findings.extend(
            calls.map(|at| Finding::new(&source.path, source.line_of(at), format!("`{name}!` prints in a library: return or trace it"))),
        );
    }
    let exits = code.match_indices("process::exit").filter(|(at, _)| !source.is_test(*at));
    findings
        .extend(exits.map(|(at, _)| Finding::new(&source.path, source.line_of(at), "a library does not end the process: return an error")));
    findings
}

pub fn crate_wide_allow(source: &Source) -> Vec<Finding> {
    let found = source.masked.code.match_indices("#![allow(dead_code");
    found.map(|(at, _)| Finding::new(&source.path, source.line_of(at), "`allow(dead_code)` for all: remove what is dead")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(findings: &[Finding]) -> Vec<usize> {
        findings.iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn names_that_say_nothing_are_refused() {
        for path in ["a/utils.rs", "helpers.rs", "b/common.rs", "c/types.rs"] {
            assert!(file_name(path).is_some(), "{path}");
        }
        for path in ["xfaas-common/src/lib.rs", "a/commons.rs", "utils/region.rs"] {
            assert!(file_name(path).is_none(), "{path}");
        }
    }

    #[test]
    fn a_file_opens_with_its_purpose() {
        assert!(header(&Source::new("a.rs", "//! What it does.\n#![no_std]\n")).is_empty());
        for text in ["", "#![no_std]\n//! Late.\n", "// Not a doc.\n", "//!\n"] {
            assert_eq!(header(&Source::new("a.rs", text)).len(), 1, "{text:?}");
        }
    }

    #[test]
    fn open_work_names_its_issue() {
        let mark = MARKS[0];
        let text =
            format!("// {mark}(#12): later\n// {mark}: some day\n/* {mark}(soon) */\nlet x = \"{mark}\";\n// {mark}(#): x\n// {mark}S\n");
        assert_eq!(lines(&open_work(&Source::new("a.rs", &text))), [2, 3, 5]);
    }

    #[test]
    fn a_discarded_call_is_found_and_a_pattern_is_not() {
        let text = "fn f() {\n    let _ = g();\n    let _: Result<(), E> = g();\n    let _guard = g();\n    let _ = value;\n    let Some(_) = g() else { return };\n}\n";
        assert_eq!(lines(&discarded_results(&Source::new("a.rs", text))), [2, 3]);
        let test = format!("#[cfg(test)]\nmod tests {{\n{text}}}\n");
        assert!(discarded_results(&Source::new("a.rs", &test)).is_empty());
    }

    #[test]
    fn a_library_does_not_print_or_exit() {
        let text = "fn f() {\n    println!(\"x\");\n    eprint!(\"x\");\n    std::process::exit(1);\n    reprint!();\n    println();\n}\n";
        assert_eq!(lines(&prints(&Source::new("xfaas-dataplane/src/net/a.rs", text))), [2, 3, 4]);
        for path in [
            "xtask/src/a.rs",
            "bench/src/bin/quick.rs",
            "xfaas-dataplane/src/main.rs",
            "xfaas-dataplane/build.rs",
            "xfaas-dataplane/tests/a.rs",
        ] {
            assert!(prints(&Source::new(path, text)).is_empty(), "{path}");
        }
    }

    #[test]
    fn dead_code_is_not_allowed_for_a_whole_crate() {
        assert_eq!(lines(&crate_wide_allow(&Source::new("a.rs", "//! A.\n#![allow(dead_code)]\n"))), [2]);
        assert!(crate_wide_allow(&Source::new("a.rs", "#[allow(dead_code)]\nfn f() {}\n")).is_empty());
    }
}
