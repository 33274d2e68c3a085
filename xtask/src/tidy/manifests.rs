//! Cargo manifests as the rules see them, and the rule that the shared lints are on in every crate.

use anyhow::{Context, Result};
use toml::{Table, Value};

use super::Finding;

const ROOT: &str = "Cargo.toml";
const DEPENDENCY_TABLES: [&str; 3] = ["dependencies", "dev-dependencies", "build-dependencies"];

/// One `Cargo.toml`.
pub struct Manifest {
    /// Relative to the repository's root.
    pub path: String,
    text: String,
    table: Table,
}

impl Manifest {
    pub fn new(path: &str, text: &str) -> Result<Self> {
        let table = text.parse().with_context(|| format!("parse {path}"))?;
        Ok(Manifest { path: path.to_owned(), text: text.to_owned(), table })
    }

    pub fn package_name(&self) -> Option<&str> {
        self.table.get("package")?.get("name")?.as_str()
    }

    /// Names of the packages it depends on, of every kind and for every target.
    pub fn dependencies(&self) -> Vec<String> {
        let targets = self.table.get("target").and_then(Value::as_table).into_iter().flat_map(Table::values).filter_map(Value::as_table);
        let tables = std::iter::once(&self.table).chain(targets);
        let dependencies = tables.flat_map(|table| DEPENDENCY_TABLES.iter().filter_map(|name| table.get(*name)?.as_table()));
        let named = dependencies.flat_map(Table::iter).map(|(name, value)| value.get("package").and_then(Value::as_str).unwrap_or(name));
        named.map(str::to_owned).collect()
    }

    /// The first line that has the text after the name of the package, from 1.
    pub fn line_of(&self, text: &str) -> usize {
        let own_name = |line: &str| line.trim_start().starts_with("name");
        self.text.lines().position(|line| line.contains(text) && !own_name(line)).map_or(1, |line| line + 1)
    }

    fn workspace_lints(&self) -> Option<&Value> {
        self.table.get("workspace")?.get("lints")
    }
}

/// Every crate takes the shared lints, or repeats them word for word where it is a workspace of its own.
pub fn lints(manifests: &[Manifest]) -> Vec<Finding> {
    let shared = manifests.iter().find(|manifest| manifest.path == ROOT).and_then(Manifest::workspace_lints);
    let Some(shared) = shared else {
        return vec![Finding::new(ROOT, 0, "no [workspace.lints]: the lints shared by every crate")];
    };
    let mut findings = Vec::new();
    for manifest in manifests {
        if manifest.workspace_lints().is_some_and(|own| own != shared) {
            findings.push(Finding::new(
                &manifest.path,
                manifest.line_of("lints"),
                "[workspace.lints] differ from those of the root: repeat them",
            ));
        }
        let own = manifest.table.get("lints");
        let inherits = own.and_then(|lints| lints.get("workspace")).and_then(Value::as_bool) == Some(true);
        if manifest.package_name().is_some() && !inherits && own != Some(shared) {
            let message = "the shared lints are not on: write `[lints]` and `workspace = true`, or repeat them in a workspace of its own";
            findings.push(Finding::new(&manifest.path, manifest.line_of("[lints]"), message));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARED: &str = "[workspace]\nmembers = []\n[workspace.lints.rust]\nunused_must_use = \"deny\"\n";

    fn manifest(path: &str, text: &str) -> Manifest {
        Manifest::new(path, text).expect("it is TOML")
    }

    fn paths(findings: &[Finding]) -> Vec<&str> {
        findings.iter().map(|finding| finding.path.as_str()).collect()
    }

    #[test]
    fn a_crate_takes_the_shared_lints_or_repeats_them() {
        let package = "[package]\nname = \"x\"\n";
        let findings = lints(&[
            manifest("Cargo.toml", SHARED),
            manifest("inherits/Cargo.toml", &format!("{package}[lints]\nworkspace = true\n")),
            manifest("repeats/Cargo.toml", &format!("{package}[lints.rust]\nunused_must_use = \"deny\"\n")),
            manifest("none/Cargo.toml", package),
            manifest("weaker/Cargo.toml", &format!("{package}[lints.rust]\nunused_must_use = \"warn\"\n")),
        ]);
        assert_eq!(paths(&findings), ["none/Cargo.toml", "weaker/Cargo.toml"]);
    }

    #[test]
    fn another_workspace_has_the_same_lints() {
        let findings = lints(&[
            manifest("Cargo.toml", SHARED),
            manifest("same/Cargo.toml", SHARED),
            manifest("other/Cargo.toml", &SHARED.replace("deny", "warn")),
        ]);
        assert_eq!(paths(&findings), ["other/Cargo.toml"]);
    }

    #[test]
    fn the_root_must_have_lints_to_share() {
        assert_eq!(paths(&lints(&[manifest("Cargo.toml", "[workspace]\nmembers = []\n")])), ["Cargo.toml"]);
    }

    #[test]
    fn dependencies_of_every_kind_are_seen() {
        let text = "[package]\nname = \"x\"\n[dependencies]\na = \"1\"\nb = { package = \"c\", version = \"1\" }\n[dev-dependencies]\nd = \"1\"\n[build-dependencies.e]\nversion = \"1\"\n[target.'cfg(unix)'.dependencies]\nf = \"1\"\n";
        let mut names = manifest("x/Cargo.toml", text).dependencies();
        names.sort();
        assert_eq!(names, ["a", "c", "d", "e", "f"]);
    }
}
