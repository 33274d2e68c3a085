//! Where, when and with what a run was made: read from /proc and told by the programs themselves. What cannot be known is said to be unknown.

use crate::servers::OBJECTS_PROGRAM;
use serde::Serialize;
use std::path::Path;
use std::process::Command;
use xfaas_dataplane::sys::affinity::allowed_cpus;

/// Name and text, in the order of the report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fact {
    pub name: &'static str,
    pub text: String,
}

/// `xfaas`: the program that is measured. `packages`: where the object store is installed. `cpus`: the servers', the load's, and that of a second shard.
pub fn facts(xfaas: &Path, packages: &Path, cpus: [u16; 3]) -> Vec<Fact> {
    let [server, load, second] = cpus;
    // One line: some programs add news of their makers.
    let first = |text: String| text.lines().next().unwrap_or_default().to_owned();
    let known = |text: Option<String>| text.map(first).filter(|text| !text.is_empty());
    let fact = |name, text| Fact { name, text: known(text).unwrap_or_else(|| "unknown".to_owned()) };
    let shared = if second == load { ", which it shares with the load" } else { "" };
    vec![
        fact("date", told("date", &["--utc", "+%Y-%m-%d %H:%M:%S UTC"])),
        fact("CPU", read("/proc/cpuinfo").and_then(|text| value_of(&text, "model name"))),
        fact("cores", Some(format!("{} usable: {:?}", allowed_cpus().len(), allowed_cpus()))),
        fact("CPUs used", Some(format!("servers {server}, load {load}, a second shard {second}{shared}"))),
        fact("memory", read("/proc/meminfo").and_then(|text| value_of(&text, "MemTotal")).and_then(|text| gib(&text))),
        fact("hypervisor", Some(hypervisor())),
        fact("kernel", read("/proc/version").map(|text| text.split(" (").next().unwrap_or_default().trim().to_owned())),
        fact("load average", read("/proc/loadavg").map(|text| text.trim().to_owned())),
        fact("rustc", told("rustc", &["--version"])),
        fact("xfaas", told(xfaas.as_os_str(), &["--version"])),
        fact("build", Some(if cfg!(debug_assertions) { "WITHOUT optimisations: these figures say nothing" } else { "release" }.to_owned())),
        fact("commit", commit()),
        fact("redis", told("redis-server", &["--version"])),
        fact("object store", told(packages.join(OBJECTS_PROGRAM), &["version"])),
    ]
}

/// Of the source that this program was run in; says whether it was changed since.
fn commit() -> Option<String> {
    let hash = told("git", &["rev-parse", "HEAD"])?;
    let changes = told("git", &["status", "--porcelain", "--untracked-files=no"])?;
    Some(if changes.is_empty() { hash } else { format!("{hash}, and {} files changed since", changes.lines().count()) })
}

fn hypervisor() -> String {
    let product = ["/sys/class/dmi/id/sys_vendor", "/sys/class/dmi/id/product_name", "/sys/hypervisor/type"];
    let names: Vec<String> = product.iter().filter_map(|path| read(path)).map(|text| text.trim().to_owned()).collect();
    let flags = read("/proc/cpuinfo").and_then(|text| value_of(&text, "flags")).unwrap_or_default();
    let seen = if flags.split_whitespace().any(|flag| flag == "hypervisor") { "yes, the CPU says so" } else { "none seen" };
    if names.is_empty() { seen.to_owned() } else { format!("{seen} ({})", names.join(" ")) }
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// What a program prints, trimmed. None: it is not there, or it fails.
fn told(program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Of the first line `key : value`.
fn value_of(text: &str, key: &str) -> Option<String> {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.into_iter().find(|(name, _)| name.trim() == key).map(|(_, value)| value.trim().to_owned())
}

/// Of a number of kB.
fn gib(text: &str) -> Option<String> {
    let kib: f64 = text.strip_suffix("kB")?.trim().parse().ok()?;
    Some(format!("{:.1} GiB", kib / f64::from(1 << 20)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_their_names() {
        let text = "processor\t: 0\nmodel name\t: EPYC 7: rev 2\nflags\t\t: fpu hypervisor\n";
        assert_eq!(value_of(text, "model name").unwrap(), "EPYC 7: rev 2");
        assert_eq!(value_of(text, "model"), None);
        assert_eq!(gib("16777216 kB").unwrap(), "16.0 GiB");
        assert_eq!(gib("many"), None);
    }

    #[test]
    fn every_fact_has_a_text() {
        let facts = facts(Path::new("/nonexistent/xfaas"), Path::new("/nonexistent"), [0, 1, 1]);
        let text = |name| &facts.iter().find(|fact| fact.name == name).unwrap().text;
        assert!(text("kernel").starts_with("Linux version "), "{}", text("kernel"));
        assert!(text("date").ends_with("UTC"));
        assert_eq!(text("xfaas"), "unknown");
        assert!(text("CPUs used").contains("shares"));
        assert!(facts.iter().all(|fact| !fact.text.is_empty()));
    }
}
