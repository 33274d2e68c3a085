//! Starting other programs: quietly with a progress line, or with their output shown. Everything is said on stderr.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// Says one line.
pub fn say(text: &str) {
    eprintln!("[xtask] {text}");
}

/// Runs `work` between the two halves of a progress line: what is done, then how long it took or that it failed.
pub fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprint!("[xtask] {what} ... ");
    std::io::stderr().flush().context("write the progress line")?;
    let started = Instant::now();
    let result = work();
    let outcome = if result.is_ok() { "done" } else { "failed" };
    eprintln!("{outcome} in {:.1} s", started.elapsed().as_secs_f64());
    result
}

/// The command as one would type it, for messages.
pub fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| quoted(&word.to_string_lossy())).collect::<Vec<_>>().join(" ")
}

/// One word for a shell.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

/// Runs the command with its output kept back. Output: its stdout. Errors: it cannot start, or fails; then with all that it printed.
pub fn run_quiet(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start `{}`", shown(command)))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` ended with {}\n{stderr}{stdout}", shown(command), output.status);
    }
    Ok(stdout)
}

/// Runs the command with its output shown. Errors: it cannot start, or fails.
pub fn run_shown(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("start `{}`", shown(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", shown(command));
    }
    Ok(())
}

/// Whether the program runs and succeeds, its output thrown away.
pub fn succeeds(command: &mut Command) -> bool {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// A cargo command in `folder`, by the cargo that started us, without the settings of a surrounding build.
pub fn cargo(folder: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(folder);
    // `cargo run` sets these for xtask itself.
    for name in ["CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH", "CARGO_PKG_NAME", "CARGO_PKG_VERSION"] {
        command.env_remove(name);
    }
    command
}

/// A cargo command for another target: nothing of the user's flags for the host may reach it.
pub fn cross_cargo(folder: &Path, target_folder: &Path) -> Command {
    let mut command = cargo(folder);
    for name in ["RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET", "RUSTC"] {
        command.env_remove(name);
    }
    command.env("CARGO_TARGET_DIR", target_folder);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_a_shell_would_take_it() {
        let mut command = Command::new("curl");
        command.args(["-H", "x-session-id: alice", "http://h/f", "it's", ""]);
        assert_eq!(shown(&command), r"curl -H 'x-session-id: alice' http://h/f 'it'\''s' ''");
    }

    #[test]
    fn a_failed_command_tells_all_that_it_printed() {
        let error = run_quiet(Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"])).expect_err("it exits 3");
        let text = error.to_string();
        assert!(text.contains("out") && text.contains("err") && text.contains("3"), "{text}");
    }
}
