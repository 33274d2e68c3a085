//! Which functions this node has: who may have which name, app and index. Pure bookkeeping, no I/O; `deploy.rs` drives it.

use super::api::{FunctionInfo, FunctionSource};
use crate::worker::{Durability, FunctionManifest};
use std::collections::BTreeMap;
use xfaas_common::ids::{FunctionHash, is_name};
use xfaas_common::limits::{CONTAINERS_MAX, FUNCTIONS_MAX, KEEP_ALIVE_S_MAX, STATE_MIB_DEFAULT};

/// Apps one process can open: each has a region on every shard, and its index is never given to another app.
pub(super) const APPS_MAX: usize = FUNCTIONS_MAX;

const DEADLINE_MS_MAX: u32 = 600_000;
const WORKERS_MAX: u16 = 1_024;
const HOOK_DEADLINE_MS_MAX: u32 = 1_000;
const REQUESTS_PER_S_MAX: u32 = 1_000_000;

pub(super) const CONFIGURATION_WINS: &str = "xfaas.toml has a [[function]] of this name too, which wins at the next start: change it there";

/// Why a manifest is refused, whatever else the node has.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("{what} {name:?} is not a name: use 1 to 64 of A-Z a-z 0-9 _ . -")]
    BadName { what: &'static str, name: String },
    #[error("`{key}` is {value}: give a value in {low}..={high}")]
    OutOfRange { key: &'static str, value: u32, low: u32, high: u32 },
    #[error("`checkpoint_every_s` is for apps with durability checkpoint: add that, or leave the key out")]
    NotCheckpointed,
}

/// Holds names and ranges of CONTRACT.md section 4: `deadline_ms` 1..=600_000, `memory_mib` 1..=`memory_mib_max`, `workers_max` 1..=1_024,
/// `containers_max` 1..=64, `state_mib` 1..=64, `requests_per_s` 1..=1_000_000, `keep_alive_s` and `checkpoint_every_s` 1..=86_400.
pub fn check_manifest(manifest: &FunctionManifest, memory_mib_max: u32) -> Result<(), ManifestError> {
    for (what, name) in [("function", &manifest.name), ("app", &manifest.app)] {
        if !is_name(name.as_bytes()) {
            return Err(ManifestError::BadName { what, name: name.clone() });
        }
    }
    if manifest.rules.checkpoint_every_s.is_some() && manifest.durability != Durability::Checkpoint {
        return Err(ManifestError::NotCheckpointed);
    }
    let ranges = [
        ("deadline_ms", manifest.deadline_ms, DEADLINE_MS_MAX),
        ("memory_mib", manifest.memory_mib, memory_mib_max),
        ("workers_max", manifest.workers_max.into(), WORKERS_MAX.into()),
        ("containers_max", manifest.containers_max.into(), CONTAINERS_MAX.into()),
        ("state_mib", manifest.state_mib, STATE_MIB_DEFAULT),
    ];
    let optional = [
        ("hook_deadline_ms", manifest.rules.hook_deadline_ms, HOOK_DEADLINE_MS_MAX),
        ("requests_per_s", manifest.rules.requests_per_s, REQUESTS_PER_S_MAX),
        ("keep_alive_s", manifest.rules.keep_alive_s, KEEP_ALIVE_S_MAX),
        ("checkpoint_every_s", manifest.rules.checkpoint_every_s, KEEP_ALIVE_S_MAX),
    ];
    let optional = optional.into_iter().filter_map(|(key, value, high)| Some((key, value?, high)));
    for (key, value, high) in ranges.into_iter().chain(optional) {
        if !(1..=high).contains(&value) {
            return Err(ManifestError::OutOfRange { key, value, low: 1, high });
        }
    }
    Ok(())
}

/// Why the node has no place for a function of that name and app.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    #[error("function {name:?} belongs to app {current:?} and cannot move to {wanted:?}: undeploy it first, or deploy under another name")]
    WrongApp { name: String, current: String, wanted: String },
    #[error(
        "function {other:?} of app {app:?} has durability {current:?}, and {name:?} wants {wanted:?}: the functions of an app must agree"
    )]
    OtherDurability { name: String, app: String, other: String, current: &'static str, wanted: &'static str },
    #[error("the name {name:?} has the same datagram hash {hash:08x} as function {other:?}: choose another name")]
    HashClash { name: String, other: String, hash: u32 },
    #[error(
        "function {name:?} and function {other:?} of app {app:?} differ in `{key}`: functions of one app say the same, so give both the same value, or undeploy the other one first"
    )]
    RulesDiffer { name: String, other: String, app: String, key: &'static str },
    #[error("this node has {FUNCTIONS_MAX} functions, the most it takes: undeploy one first")]
    TooManyFunctions,
    #[error("this process has opened {APPS_MAX} apps, the most it takes: restart it, or use an app it already has")]
    TooManyApps,
}

/// Manifests of one configuration, each good by itself, in its order. Errors: why a node refuses one beside those before it.
pub fn check_together<'a>(manifests: impl Iterator<Item = &'a FunctionManifest>) -> Result<(), CatalogError> {
    let mut catalog = Catalog::default();
    for manifest in manifests {
        catalog.admit(&manifest.name, &manifest.app)?;
        catalog.agree(manifest)?;
        catalog.place(&manifest.name, &manifest.app);
        let (source, generation, wasm_bytes) = (FunctionSource::Configuration, 0, 0);
        catalog.insert(Entry { manifest: manifest.clone(), source, generation, wasm_bytes, fault: None });
    }
    Ok(())
}

/// A function of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub manifest: FunctionManifest,
    pub source: FunctionSource,
    pub generation: u64,
    pub wasm_bytes: u64,
    /// Why it does not run: stored, but it no longer loads. `None`: it runs.
    pub fault: Option<String>,
}

/// A place in the shards' tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub index: u16,
    pub app: u16,
}

/// Who has a function index, or had it last, so that a name that comes back continues its counters.
struct Index {
    name: String,
    /// Which removal ended its function last.
    removal: u64,
}

#[derive(Default)]
pub(super) struct Catalog {
    entries: BTreeMap<String, Entry>,
    /// Position: function index.
    indexes: Vec<Index>,
    /// Functions removed so far.
    removals: u64,
    /// Position: app index.
    apps: Vec<String>,
    /// Names in `xfaas.toml`, which wins over stored ones at the next start.
    configured: Vec<String>,
}

impl Catalog {
    /// Errors: why a function of this name and app has no place here. Changes nothing.
    pub fn admit(&self, name: &str, app: &str) -> Result<(), CatalogError> {
        let current = self.entries.get(name).map(|entry| entry.manifest.app.as_str());
        if let Some(current) = current
            && current != app
        {
            return Err(CatalogError::WrongApp { name: name.to_owned(), current: current.to_owned(), wanted: app.to_owned() });
        }
        let hash = FunctionHash::of(name.as_bytes());
        let clash = self.entries.keys().find(|other| other.as_str() != name && FunctionHash::of(other.as_bytes()) == hash);
        if let Some(other) = clash {
            return Err(CatalogError::HashClash { name: name.to_owned(), other: other.clone(), hash: hash.0 });
        }
        if current.is_none() && self.entries.len() >= FUNCTIONS_MAX {
            return Err(CatalogError::TooManyFunctions);
        }
        if self.apps.len() >= APPS_MAX && !self.apps.iter().any(|known| known == app) {
            return Err(CatalogError::TooManyApps);
        }
        Ok(())
    }

    /// The durability that an app's functions agree on. `None`: it has none.
    pub fn durability_of(&self, app: &str) -> Option<Durability> {
        self.entries.values().find(|entry| entry.manifest.app == app).map(|entry| entry.manifest.durability)
    }

    /// True when sessions of an app may be in checkpoints only.
    pub fn may_sleep(&self, app: &str) -> bool {
        self.entries.values().any(|entry| entry.manifest.app == app && entry.manifest.may_sleep())
    }

    /// Errors: a function of the same app says something else about the app. Of one that does not run only the durability counts: what it
    /// wrote is there. Changes nothing.
    pub fn agree(&self, manifest: &FunctionManifest) -> Result<(), CatalogError> {
        let FunctionManifest { name, app, durability, rules, .. } = manifest;
        let others = self.entries.values().filter(|entry| entry.manifest.app == *app && entry.manifest.name != *name);
        for entry in others {
            let other = entry.manifest.name.clone();
            if entry.manifest.durability != *durability {
                let (current, wanted) = (entry.manifest.durability.name(), durability.name());
                return Err(CatalogError::OtherDurability { name: name.clone(), app: app.clone(), other, current, wanted });
            }
            let difference = rules.difference(&entry.manifest.rules).filter(|_| entry.fault.is_none());
            if let Some(key) = difference {
                return Err(CatalogError::RulesDiffer { name: name.clone(), other, app: app.clone(), key });
            }
        }
        Ok(())
    }

    /// The place of an admitted name: its own if it has one still, else a new one, else of those whose function is gone the one gone for longest: calls of
    /// the former function that wait somewhere know it by its index, and have had that time to end.
    pub fn place(&mut self, name: &str, app: &str) -> Place {
        let known = self.indexes.iter().position(|other| other.name == name);
        let index = known.unwrap_or_else(|| {
            if self.indexes.len() < FUNCTIONS_MAX {
                self.indexes.push(Index { name: name.to_owned(), removal: 0 });
                return self.indexes.len() - 1;
            }
            let free = self.indexes.iter_mut().enumerate().filter(|(_, other)| !self.entries.contains_key(&other.name));
            let free = free.min_by_key(|(_, other)| other.removal);
            let (index, free) = free.expect("admitted: fewer than FUNCTIONS_MAX names are taken");
            name.clone_into(&mut free.name);
            index
        });
        let app_index = self.apps.iter().position(|other| other == app).unwrap_or_else(|| {
            assert!(self.apps.len() < APPS_MAX, "admitted: the app has a place");
            self.apps.push(app.to_owned());
            self.apps.len() - 1
        });
        Place { index: index as u16, app: app_index as u16 }
    }

    pub fn insert(&mut self, entry: Entry) {
        self.entries.insert(entry.manifest.name.clone(), entry);
    }

    pub fn remove(&mut self, name: &str) {
        self.entries.remove(name);
        self.removals += 1;
        if let Some(index) = self.indexes.iter_mut().find(|index| index.name == name) {
            index.removal = self.removals;
        }
    }

    pub fn set_configured(&mut self, names: Vec<String>) {
        self.configured = names;
    }

    pub fn is_configured(&self, name: &str) -> bool {
        self.configured.iter().any(|other| other == name)
    }

    /// Functions that run or should, by name.
    pub fn list(&self) -> Vec<FunctionInfo> {
        self.entries.values().map(|entry| self.info(entry)).collect()
    }

    /// How many functions run.
    pub fn count_running(&self) -> usize {
        self.entries.values().filter(|entry| entry.fault.is_none()).count()
    }

    pub fn info(&self, entry: &Entry) -> FunctionInfo {
        let name = &entry.manifest.name;
        let overridden = entry.source == FunctionSource::Deployment && self.is_configured(name);
        FunctionInfo {
            manifest: entry.manifest.clone(),
            source: entry.source,
            generation: entry.generation,
            wasm_bytes: entry.wasm_bytes,
            hash: format!("{:08x}", FunctionHash::of(name.as_bytes()).0),
            fault: entry.fault.clone(),
            note: overridden.then(|| CONFIGURATION_WINS.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::testing::{clashing_names, entry, manifest};

    #[test]
    fn a_name_keeps_its_index_and_an_app_is_shared() {
        let mut catalog = Catalog::default();
        let a = catalog.place("a", "shop");
        let b = catalog.place("b", "shop");
        assert_eq!((a.index, b.index), (0, 1));
        assert_eq!(a.app, b.app);
        assert_eq!(catalog.place("a", "shop"), a);
        assert_eq!(catalog.place("c", "other").app, 1);
    }

    #[test]
    fn moving_a_name_to_another_app_is_refused_until_it_is_gone() {
        let mut catalog = Catalog::default();
        catalog.insert(entry("a", "shop"));
        assert!(matches!(catalog.admit("a", "other"), Err(CatalogError::WrongApp { .. })));
        catalog.admit("a", "shop").unwrap();
        catalog.remove("a");
        catalog.admit("a", "other").unwrap();
    }

    #[test]
    fn the_functions_of_an_app_agree_on_durability() {
        let mut catalog = Catalog::default();
        catalog.insert(entry("a", "shop"));
        let sync = |name: &str| FunctionManifest { durability: Durability::Sync, ..manifest(name, "shop") };
        let refused = catalog.agree(&sync("b")).unwrap_err();
        assert!(matches!(&refused, CatalogError::OtherDurability { other, current: "memory", .. } if other == "a"), "{refused}");
        catalog.agree(&sync("a")).unwrap(); // alone, it may change
        catalog.agree(&manifest("b", "shop")).unwrap();
        let mut checkpoint = FunctionManifest { durability: Durability::Checkpoint, ..manifest("c", "c") };
        checkpoint.rules.checkpoint_every_s = Some(3);
        check_manifest(&checkpoint, 128).unwrap();
        checkpoint.durability = Durability::Memory;
        assert!(matches!(check_manifest(&checkpoint, 128), Err(ManifestError::NotCheckpointed)));
    }

    #[test]
    fn a_broken_function_still_owns_its_app() {
        let mut catalog = Catalog::default();
        catalog.insert(Entry { fault: Some("does not load".to_owned()), ..entry("a", "shop") });
        assert!(matches!(catalog.admit("a", "other"), Err(CatalogError::WrongApp { .. })));
        assert_eq!(catalog.count_running(), 0);
        assert_eq!(catalog.list()[0].fault.as_deref(), Some("does not load"));
    }

    #[test]
    fn names_with_one_hash_are_refused() {
        let (first, second) = clashing_names();
        let mut catalog = Catalog::default();
        catalog.insert(entry(&first, "x"));
        let error = catalog.admit(&second, "x").unwrap_err();
        assert!(matches!(&error, CatalogError::HashClash { other, .. } if *other == first), "{error}");
        catalog.admit(&first, "x").unwrap();
    }

    #[test]
    fn functions_and_apps_are_bounded_and_free_indexes_are_used_again() {
        let mut catalog = Catalog::default();
        for i in 0..FUNCTIONS_MAX {
            let name = format!("f{i}");
            let place = catalog.place(&name, "x");
            assert_eq!(usize::from(place.index), i);
            catalog.insert(entry(&name, "x"));
        }
        assert!(matches!(catalog.admit("one-more", "x"), Err(CatalogError::TooManyFunctions)));
        catalog.remove("f7");
        catalog.admit("one-more", "x").unwrap();
        assert_eq!(catalog.place("one-more", "x").index, 7);
        catalog.insert(entry("one-more", "x"));
        for name in ["f9", "one-more", "f3"] {
            catalog.remove(name);
        }
        let next = ["a", "b", "c"].map(|name| {
            catalog.insert(entry(name, "x"));
            catalog.place(name, "x").index
        });
        assert_eq!(next, [9, 7, 3], "the one that is gone for longest first");
        let mut catalog = Catalog::default();
        for i in 0..APPS_MAX {
            catalog.place("f", &format!("app{i}"));
        }
        assert!(matches!(catalog.admit("f", "another"), Err(CatalogError::TooManyApps)));
    }

    #[test]
    fn manifests_are_held_to_names_and_ranges() {
        check_manifest(&manifest("a", "b"), 128).unwrap();
        assert!(matches!(check_manifest(&manifest("a/b", "b"), 128), Err(ManifestError::BadName { what: "function", .. })));
        assert!(matches!(check_manifest(&manifest("a", ""), 128), Err(ManifestError::BadName { what: "app", .. })));
        let too_big = FunctionManifest { memory_mib: 129, ..manifest("a", "a") };
        assert!(matches!(check_manifest(&too_big, 128), Err(ManifestError::OutOfRange { key: "memory_mib", high: 128, .. })));
        let no_workers = FunctionManifest { workers_max: 0, ..manifest("a", "a") };
        assert!(matches!(check_manifest(&no_workers, 128), Err(ManifestError::OutOfRange { key: "workers_max", .. })));
        for (containers_max, is_good) in [(0, false), (1, true), (64, true), (65, false)] {
            let checked = check_manifest(&FunctionManifest { containers_max, ..manifest("a", "a") }, 128);
            assert_eq!(checked.is_ok(), is_good, "{containers_max}");
        }
    }
}
