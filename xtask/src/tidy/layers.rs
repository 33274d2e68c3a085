//! Rules on direction: which of our crates a crate may use, and which folders of the dataplane a folder may use.

use super::Finding;
use super::manifests::Manifest;
use super::source::Source;

/// A crate, and those of ours that it may depend on. A crate that is not listed may use any (fuzz targets).
const CRATES: [(&str, &[&str]); 7] = [
    ("xfaas-common", &[]),
    ("xfaas-ebpf", &["xfaas-common"]),
    // Of xfaas-ebpf only the frames that its tests try the programs on, as a dev-dependency.
    ("xfaas-dataplane", &["xfaas-common", "xfaas-ebpf"]),
    // It includes files of xfaas-dataplane, and is built with other atomics than those.
    ("xfaas-state-models", &["xfaas-common"]),
    ("xfaas-guest", &["xfaas-common"]),
    // Of xfaas-ebpf only the frames that its programs are tried on.
    ("xfaas-bench", &["xfaas-common", "xfaas-dataplane", "xfaas-ebpf"]),
    ("xtask", &[]),
];
/// What a guest may use: they are in the guests' folder, whatever their name.
const GUEST_FOLDER: &str = "guests/";
const GUEST_CRATES: [&str; 2] = ["xfaas-common", "xfaas-guest"];

const DATAPLANE: &str = "xfaas-dataplane/src/";
/// The dataplane's modules, lowest first: each may use those before it.
const FOLDERS: [&str; 15] = [
    "ebpf_object",
    "sys",
    "state",
    "net",
    "durable",
    "rpc",
    "worker",
    "session",
    "steering",
    "shard",
    "control",
    "config",
    "node",
    "cli",
    "main",
];

pub fn crates(manifests: &[Manifest]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for manifest in manifests {
        let Some(name) = manifest.package_name() else { continue };
        let listed = CRATES.iter().find(|(listed, _)| *listed == name).map(|(_, allowed)| *allowed);
        let in_guests = manifest.path.starts_with(GUEST_FOLDER).then_some(&GUEST_CRATES[..]);
        let Some(allowed) = listed.or(in_guests) else { continue };
        for dependency in manifest.dependencies() {
            if is_ours(&dependency) && dependency != name && !allowed.contains(&dependency.as_str()) {
                let message = format!("{name} may not depend on {dependency}: dependencies point one way (xtask/src/tidy/layers.rs)");
                findings.push(Finding::new(&manifest.path, manifest.line_of(&dependency), message));
            }
        }
    }
    findings
}

fn is_ours(name: &str) -> bool {
    name.starts_with("xfaas") || name == "xtask"
}

/// A folder of the dataplane uses only those below it.
pub fn folders(source: &Source) -> Vec<Finding> {
    let Some(own) = own_folder(&source.path) else { return Vec::new() };
    let Some(own_rank) = rank(own) else {
        return vec![Finding::new(
            &source.path,
            1,
            format!("`{own}` has no place among the layers: give it one in xtask/src/tidy/layers.rs"),
        )];
    };
    let used = source.masked.code.match_indices("crate::").flat_map(|(at, path)| {
        let rest = &source.masked.code[at + path.len()..];
        first_names(rest).into_iter().map(move |name| (at, name))
    });
    used.filter(|(_, name)| rank(name).is_some_and(|rank| rank > own_rank))
        .map(|(at, name)| {
            Finding::new(&source.path, source.line_of(at), format!("`{own}` uses `{name}`, a higher layer: let the caller pass it in"))
        })
        .collect()
}

/// The module at the crate's root that the file belongs to; `None` outside the dataplane and for `lib.rs`, which names all of them.
fn own_folder(path: &str) -> Option<&str> {
    let inside = path.strip_prefix(DATAPLANE)?;
    let first = inside.split('/').next().unwrap_or(inside);
    Some(first.strip_suffix(".rs").unwrap_or(first)).filter(|name| *name != "lib")
}

fn rank(folder: &str) -> Option<usize> {
    FOLDERS.iter().position(|name| *name == folder)
}

/// The first names after `crate::`: one, or those of a group in braces.
fn first_names(rest: &str) -> Vec<String> {
    let name = |text: &str| text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let Some(group) = rest.strip_prefix('{') else { return vec![name(rest)] };
    let (mut names, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, byte) in group.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b',' | b'}' if depth == 0 => {
                names.push(name(&group[start..at]));
                start = at + 1;
                if byte == b'}' {
                    break;
                }
            }
            b'}' => depth -= 1,
            _ => {}
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_may_use_only_those_below_it() {
        let text = "//! A.\nuse crate::state::Region;\nuse crate::shard::Shard;\nfn f() { crate::control::g() }\n";
        let findings = folders(&Source::new("xfaas-dataplane/src/session/proxy.rs", text));
        assert_eq!(findings.iter().map(|finding| finding.line).collect::<Vec<_>>(), [3, 4]);
        assert!(folders(&Source::new("xfaas-dataplane/src/main.rs", text)).is_empty());
        assert!(folders(&Source::new("xfaas-dataplane/src/lib.rs", text)).is_empty());
        assert!(folders(&Source::new("xfaas-ebpf/src/steer.rs", text)).is_empty());
    }

    #[test]
    fn a_group_is_looked_into() {
        let text = "use crate::{\n    sys::ring,\n    worker::{Engine, Worker},\n    net,\n};\n";
        let findings = folders(&Source::new("xfaas-dataplane/src/net/mod.rs", text));
        assert_eq!(findings.len(), 1);
        assert!(findings[0].message.contains("`worker`"), "{findings:?}");
    }

    #[test]
    fn a_new_folder_must_be_given_its_place() {
        let findings = folders(&Source::new("xfaas-dataplane/src/cluster/mod.rs", "//! A.\n"));
        assert!(findings[0].message.contains("cluster"), "{findings:?}");
    }

    #[test]
    fn crates_depend_one_way() {
        let manifest = |path: &str, text: &str| Manifest::new(path, text).expect("it is TOML");
        let good = manifest(
            "xfaas-dataplane/Cargo.toml",
            "[package]\nname = \"xfaas-dataplane\"\n[dependencies]\nxfaas-common = \"1\"\nclap = \"4\"\n",
        );
        let bad = manifest("xfaas-common/Cargo.toml", "[package]\nname = \"xfaas-common\"\n[dev-dependencies]\nxfaas-dataplane = \"1\"\n");
        let target = manifest("xtask/Cargo.toml", "[package]\nname = \"xtask\"\n[target.'cfg(unix)'.dependencies]\nxfaas-common = \"1\"\n");
        let renamed = manifest(
            "guests/cart/Cargo.toml",
            "[package]\nname = \"cart\"\n[dependencies]\nx = { package = \"xfaas-bench\", path = \"y\" }\n",
        );
        let findings = crates(&[good, bad, target, renamed]);
        let paths: Vec<_> = findings.iter().map(|finding| finding.path.as_str()).collect();
        assert_eq!(paths, ["xfaas-common/Cargo.toml", "xtask/Cargo.toml", "guests/cart/Cargo.toml"]);
        assert_eq!(findings[0].line, 4);
    }
}
