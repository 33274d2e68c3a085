//! `cargo xtask pgo`: profile-guided optimisation. A node that records which ways requests take is put under every kind of load, and what it
//! recorded is kept in the repository: every optimised build is laid out by it (rustc's book, "Profile-guided Optimization").

use std::ffi::OsStr;
use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Once;

use anyhow::{Context, Result, ensure};

use crate::process::{run_quiet, run_shown, say, step};
use crate::{build, packages, paths, setup, toolchain};

/// Reads what rustc's programs of LLVM 22 record, and writes what that and later ones read.
const MERGER_PACKAGE: &str = "llvm-19";
/// Separates flags in `CARGO_ENCODED_RUSTFLAGS`.
const SEPARATOR: &str = "\u{1f}";

/// Records which ways requests take, under every kind of load, and writes xfaas-dataplane/xfaas.profdata, which optimised builds use.
#[derive(clap::Args)]
pub struct Arguments {
    /// Seconds of each kind of load, 0.1 to 600.
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    seconds: f64,
}

/// Asked before anything is built. The bounds are those of the program that loads.
fn seconds(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|seconds| (0.1..=600.0).contains(seconds));
    number.ok_or_else(|| "give a number of seconds in 0.1..=600".to_owned())
}

pub fn command(arguments: &Arguments) -> Result<ExitCode> {
    let tools = setup::ensure()?;
    build::ebpf_and_guests(&tools)?;
    let merger = merger()?;
    let recording = step("build the node that records (minutes)", recording_node)?;
    step("build the loads", || run_quiet(&mut build::host_build(true, "train")))?;
    let records = paths::target("pgo").join("records");
    if records.exists() {
        fs::remove_dir_all(&records).with_context(|| format!("empty {}", records.display()))?;
    }
    let mut train = Command::new(paths::host_program("train", true));
    train.args(["--seconds", &arguments.seconds.to_string()]).env("XFAAS_BIN", recording).env("XFAAS_GUESTS", paths::guests());
    run_shown(train.env("LLVM_PROFILE_FILE", records.join("%p.profraw")))?;
    let written = step("merge what was recorded", || merge(&merger, &records))?;
    let compiler = toolchain::host_compiler().context("ask rustc for its version")?;
    fs::write(recorded_by(), compiler + "\n").with_context(|| format!("write {}", recorded_by().display()))?;
    let (profile, compiler) = (profile(), recorded_by());
    let kib = written.div_ceil(1_024);
    say(&format!("{}: {kib} KiB; commit it and {}, and the next optimised build uses it", profile.display(), compiler.display()));
    Ok(ExitCode::SUCCESS)
}

/// What is kept in the repository.
fn profile() -> PathBuf {
    paths::root().join("xfaas-dataplane/xfaas.profdata")
}

/// Names the compiler whose programs recorded it, one line.
fn recorded_by() -> PathBuf {
    profile().with_extension("profdata.rustc")
}

/// Lays an optimised build out by what was recorded. Code that has changed since is built as if nothing was known about it.
pub fn guide(build: &mut Command) {
    guide_with(build, &[]);
}

/// The same with more compiler flags, for all crates. They leave functions their names, by which the record knows them; a feature of a crate does not.
pub fn guide_with(build: &mut Command, more: &[String]) {
    let profile = profile();
    // A checkout without it builds all the same, slower programs.
    let Ok(bytes) = fs::read(&profile) else { return add_flags(build, more) };
    static WARNING: Once = Once::new();
    let recorded_by = fs::read_to_string(recorded_by()).unwrap_or_default();
    WARNING.call_once(|| stale(recorded_by.trim_end(), toolchain::host_compiler().as_deref()).iter().for_each(|warning| say(warning)));
    let mut hasher = DefaultHasher::new();
    hasher.write(&bytes);
    // Cargo builds again when flags change, and does not look into the file.
    let own = [format!("-Cprofile-use={}", profile.display()), format!("--cfg=xfaas_profile_{:016x}", hasher.finish())];
    add_flags(build, &[&own, more].concat());
}

/// A warning if another compiler recorded the profile: rustc names and cuts functions otherwise, and recognises few of them.
fn stale(recorded_by: &str, compiler: Option<&str>) -> Option<String> {
    let compiler = compiler.filter(|compiler| *compiler != recorded_by)?;
    let recorded_by = if recorded_by.is_empty() { "a compiler that is not known" } else { recorded_by };
    Some(format!(
        "warning: xfaas.profdata was recorded by {recorded_by}, this is {compiler}: programs will be slower than they could be; \
         `cargo xtask pgo` records anew"
    ))
}

/// Builds the node that records. Output: the program.
fn recording_node() -> Result<PathBuf> {
    let folder = paths::target("pgo");
    // As it is built for use: only functions of the same packages with the same features are recognised.
    let mut command = build::unguided_build(true, "xfaas");
    command.env("CARGO_TARGET_DIR", &folder);
    // Build scripts record too, what nobody looks at.
    add_flags(&mut command, &[format!("-Cprofile-generate={}", folder.join("of-builds").display())]);
    run_quiet(&mut command)?;
    Ok(folder.join("release/xfaas"))
}

/// Merges the records, and leaves out what was never entered. Output: bytes written.
fn merge(merger: &Path, records: &Path) -> Result<u64> {
    let files = fs::read_dir(records).with_context(|| format!("nothing was recorded in {}", records.display()))?;
    let files = files.map(|file| Ok(file?.path())).collect::<Result<Vec<_>>>()?;
    ensure!(!files.is_empty(), "nothing was recorded in {}", records.display());
    run_quiet(Command::new(merger).args(["merge", "--sparse", "--output"]).arg(profile()).args(files))?;
    Ok(fs::metadata(profile()).context("look at the profile")?.len())
}

/// Finds or installs the program that merges records. Errors: there is none.
fn merger() -> Result<PathBuf> {
    if toolchain::profile_merger().is_none() && packages::has_apt() {
        packages::apt_install(&[MERGER_PACKAGE.to_owned()])?;
    }
    toolchain::profile_merger().with_context(|| {
        format!("llvm-profdata of LLVM 19 or later is missing: install {MERGER_PACKAGE}, or `rustup component add llvm-tools`")
    })
}

/// Adds compiler flags to those of the user, which cargo takes from one place only.
fn add_flags(command: &mut Command, flags: &[String]) {
    match users_flags(std::env::var_os("CARGO_ENCODED_RUSTFLAGS").as_deref(), std::env::var_os("RUSTFLAGS").as_deref()) {
        Some(users) => command.env("CARGO_ENCODED_RUSTFLAGS", users.iter().chain(flags).cloned().collect::<Vec<_>>().join(SEPARATOR)),
        // Those of configuration files are joined with it.
        None => command.arg("--config").arg(format!("build.rustflags = {flags:?}")),
    };
}

/// The user's flags from the environment, the first variable before the second. `None`: none of them is set.
fn users_flags(encoded: Option<&OsStr>, plain: Option<&OsStr>) -> Option<Vec<String>> {
    let split = |text: &OsStr, separator: &str| {
        text.to_string_lossy().split(separator).filter(|flag| !flag.is_empty()).map(str::to_owned).collect()
    };
    encoded.map(|text| split(text, SEPARATOR)).or_else(|| plain.map(|text| split(text, " ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_the_user_stay() {
        let flags = |encoded: Option<&str>, plain: Option<&str>| users_flags(encoded.map(OsStr::new), plain.map(OsStr::new));
        assert_eq!(flags(None, None), None);
        assert_eq!(flags(None, Some(" -Ctarget-cpu=native  -g ")), Some(vec!["-Ctarget-cpu=native".to_owned(), "-g".to_owned()]));
        assert_eq!(flags(Some("--cfg\u{1f}a b"), Some("-g")), Some(vec!["--cfg".to_owned(), "a b".to_owned()]));
        assert_eq!(flags(Some(""), Some("-g")), Some(Vec::new()));
    }

    #[test]
    fn another_compiler_is_told() {
        assert_eq!(stale("rustc 1.95.0 (a)", Some("rustc 1.95.0 (a)")), None);
        assert_eq!(stale("rustc 1.95.0 (a)", None), None); // then the build fails, and says why
        let warning = stale("rustc 1.95.0 (a)", Some("rustc 1.96.0 (b)")).unwrap();
        assert!(warning.contains("1.95.0") && warning.contains("1.96.0") && warning.contains("cargo xtask pgo"), "{warning}");
        assert!(stale("", Some("rustc 1.96.0 (b)")).unwrap().contains("not known"));
        assert!(recorded_by().is_file());
    }

    #[test]
    fn an_optimised_build_is_guided_by_the_committed_profile() {
        assert!(profile().is_file());
        let mut command = Command::new("cargo");
        guide(&mut command);
        let words = command.get_args().chain(command.get_envs().filter_map(|(_, value)| value));
        assert!(words.map(|word| word.to_string_lossy()).any(|word| word.contains("-Cprofile-use=")));
    }
}
