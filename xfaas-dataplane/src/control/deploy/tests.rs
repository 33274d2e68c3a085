//! Tests of deployments: what is refused, what is swapped, what survives a restart.

use super::*;
use crate::control::testing::{FakeShards, MODULE, MODULE_2, clashing_names, engine, manifest};
use std::path::Path;

fn deployer(directory: &Path) -> (Deployer, Arc<FakeShards>) {
    let shards = Arc::new(FakeShards::default());
    let store = Store::open(directory).unwrap();
    (Deployer::new(engine(), Arc::clone(&shards) as Arc<dyn Shards>, store, 128), shards)
}

#[test]
fn a_deployment_runs_at_once_and_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let (first, shards) = deployer(directory.path());
    assert!(first.ready().is_err());
    first.start(&[]).unwrap();
    first.ready().unwrap();
    let info = first.deploy(&manifest("echo", "shop"), MODULE).unwrap();
    assert_eq!((info.source, info.wasm_bytes), (FunctionSource::Deployment, MODULE.len() as u64));
    assert_eq!(shards.generation_of("echo"), Some(info.generation));
    drop(first);
    let (second, shards) = deployer(directory.path());
    let report = second.start(&[]).unwrap();
    assert_eq!(report, StartReport { loaded: vec!["echo".to_owned()], broken: vec![] });
    assert_eq!(shards.generation_of("echo"), Some(info.generation));
    assert_eq!(second.functions(), [info]);
}

#[test]
fn containers_are_told_of_every_change() {
    let directory = tempfile::tempdir().unwrap();
    let (deployer, shards) = deployer(directory.path());
    let names = || shards.offered().iter().map(|running| running.function.manifest.name.clone()).collect::<Vec<_>>();
    deployer.deploy(&manifest("b", "shop"), MODULE).unwrap();
    deployer.deploy(&manifest("a", "shop"), MODULE).unwrap();
    assert_eq!(names(), ["a", "b"]);
    deployer.deploy(&manifest("b", "shop"), MODULE_2).unwrap();
    let offered = shards.offered();
    assert_eq!((&*offered[0].wasm, &*offered[1].wasm), (MODULE, MODULE_2));
    assert_ne!(offered[0].sha256, offered[1].sha256);
    assert_eq!(offered[0].sha256.len(), 64);
    deployer.undeploy("a").unwrap();
    assert_eq!(names(), ["b"]);
    assert!(deployer.deploy(&manifest("c", "shop"), b"text").is_err());
    assert_eq!(names(), ["b"]);
}

#[test]
fn a_swap_keeps_the_index_and_raises_the_generation() {
    let directory = tempfile::tempdir().unwrap();
    let (deployer, shards) = deployer(directory.path());
    let first = deployer.deploy(&manifest("echo", "shop"), MODULE).unwrap();
    let second = deployer.deploy(&manifest("echo", "shop"), MODULE_2).unwrap();
    assert!(second.generation > first.generation);
    assert_eq!(shards.installed().len(), 1);
    assert_eq!(shards.generation_of("echo"), Some(second.generation));
}

#[test]
fn what_is_refused_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (deployer, shards) = deployer(directory.path());
    let before = deployer.deploy(&manifest("echo", "shop"), MODULE).unwrap();
    assert!(matches!(deployer.deploy(&manifest("echo", "shop"), b"text"), Err(DeployError::Module { .. })));
    assert!(matches!(deployer.deploy(&manifest("echo", "other"), MODULE), Err(DeployError::Catalog(CatalogError::WrongApp { .. }))));
    assert!(matches!(deployer.deploy(&manifest("a b", "shop"), MODULE), Err(DeployError::Manifest(_))));
    assert!(matches!(deployer.undeploy("../echo"), Err(DeployError::Unknown { .. })));
    let (first, second) = clashing_names();
    deployer.deploy(&manifest(&first, "shop"), MODULE).unwrap();
    assert!(matches!(deployer.deploy(&manifest(&second, "shop"), MODULE), Err(DeployError::Catalog(CatalogError::HashClash { .. }))));
    assert_eq!(shards.generation_of("echo"), Some(before.generation));
    assert_eq!(deployer.functions().len(), 2);
}

#[test]
fn a_shard_that_fails_gets_the_former_function_back_and_nothing_is_stored() {
    let directory = tempfile::tempdir().unwrap();
    let (first, shards) = deployer(directory.path());
    let before = first.deploy(&manifest("echo", "shop"), MODULE).unwrap();
    shards.fail_next_install();
    assert!(matches!(first.deploy(&manifest("echo", "shop"), MODULE_2), Err(DeployError::Shards { .. })));
    assert_eq!(shards.generation_of("echo"), Some(before.generation));
    shards.fail_next_install();
    first.deploy(&manifest("new", "shop"), MODULE).unwrap_err();
    assert_eq!(shards.generation_of("new"), None);
    drop(first);
    let (second, shards) = deployer(directory.path());
    assert_eq!(second.start(&[]).unwrap().loaded, ["echo"]);
    assert_eq!(shards.generation_of("echo"), Some(before.generation));
}

#[test]
fn an_undeployed_function_stays_away() {
    let directory = tempfile::tempdir().unwrap();
    let (first, shards) = deployer(directory.path());
    first.deploy(&manifest("echo", "shop"), MODULE).unwrap();
    assert_eq!(first.undeploy("echo").unwrap().note, None);
    assert!(shards.installed().is_empty());
    assert!(matches!(first.undeploy("echo"), Err(DeployError::Unknown { .. })));
    first.deploy(&manifest("echo", "another-app"), MODULE).unwrap();
    first.undeploy("echo").unwrap();
    drop(first);
    assert_eq!(deployer(directory.path()).0.start(&[]).unwrap(), StartReport::default());
}

#[test]
fn the_configuration_wins_at_start_and_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let wasm = directory.path().join("echo.wasm");
    std::fs::write(&wasm, MODULE).unwrap();
    let configured = ConfiguredFunction { manifest: manifest("echo", "shop"), wasm, hook: None };
    let state = directory.path().join("state");
    let (first, _) = deployer(&state);
    first.start(std::slice::from_ref(&configured)).unwrap();
    assert_eq!(first.functions()[0].source, FunctionSource::Configuration);
    let info = first.deploy(&manifest("echo", "shop"), MODULE_2).unwrap();
    assert!(info.note.unwrap().contains("xfaas.toml"));
    drop(first);
    let (second, _) = deployer(&state);
    assert_eq!(second.start(&[configured]).unwrap().loaded, ["echo"]);
    assert_eq!(second.functions()[0].wasm_bytes, MODULE.len() as u64);
}

#[test]
fn a_configured_function_that_does_not_load_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let wasm = directory.path().join("echo.wasm");
    std::fs::write(&wasm, "text").unwrap();
    let (deployer, _) = deployer(&directory.path().join("state"));
    let configured = ConfiguredFunction { manifest: manifest("echo", "shop"), wasm, hook: None };
    assert!(matches!(deployer.start(&[configured]), Err(DeployError::Module { .. })));
    assert!(deployer.ready().is_err());
}

#[test]
fn a_stored_function_that_does_not_load_is_told_kept_and_replaceable() {
    let directory = tempfile::tempdir().unwrap();
    let (first, _) = deployer(directory.path());
    let info = first.deploy(&manifest("echo", "shop"), MODULE).unwrap();
    first.deploy(&manifest("good", "shop"), MODULE).unwrap();
    drop(first);
    let module = directory.path().join(format!("functions/echo@{}.wasm", info.generation));
    std::fs::write(&module, vec![b'x'; MODULE.len()]).unwrap();
    let (second, shards) = deployer(directory.path());
    let report = second.start(&[]).unwrap();
    assert_eq!(report.loaded, ["good"]);
    assert_eq!(report.broken[0].0, "echo");
    assert!(module.exists());
    assert!(second.functions()[0].fault.is_some());
    assert_eq!((second.count_running(), shards.installed().len()), (1, 1));
    let info = second.deploy(&manifest("echo", "shop"), MODULE).unwrap();
    assert_eq!(info.fault, None);
    assert_eq!(second.count_running(), 2);
}

#[test]
fn a_change_that_may_not_last_is_told_beside_other_notes() {
    let error = StoreError::Io { operation: "sync", path: "state/functions".into(), source: std::io::ErrorKind::StorageFull.into() };
    let unknown = Lasting::Unknown(error);
    let note = with_warning(Some("the other note".to_owned()), "echo", &unknown).unwrap();
    assert!(["power cut", "state/functions", "the other note"].iter().all(|text| note.contains(text)), "{note}");
    assert!(with_warning(None, "echo", &unknown).is_some());
    assert_eq!(with_warning(None, "echo", &Lasting::Yes), None);
}

#[test]
fn of_two_deployments_of_one_name_the_later_one_stays() {
    let directory = tempfile::tempdir().unwrap();
    let (first, shards) = deployer(directory.path());
    let manifest = manifest("echo", "shop");
    let (early, late) = (first.begin(&manifest).unwrap(), first.begin(&manifest).unwrap());
    let other = first.begin(&FunctionManifest { name: "other".to_owned(), ..manifest.clone() }).unwrap();
    let compiled = |wasm| first.compile(&manifest, wasm).unwrap();
    let info = first.put_in_force(&late, &manifest, MODULE_2, compiled(MODULE_2)).unwrap();
    let overtaken = first.put_in_force(&early, &manifest, MODULE, compiled(MODULE)).unwrap_err();
    assert!(matches!(overtaken, DeployError::Overtaken { .. }), "{overtaken}");
    other.check().unwrap();
    assert_eq!(shards.generation_of("echo"), Some(info.generation));
    assert_eq!(first.functions(), std::slice::from_ref(&info));
    drop(first);
    let (second, shards) = deployer(directory.path());
    second.start(&[]).unwrap();
    assert_eq!(shards.generation_of("echo"), Some(info.generation));
}

#[test]
fn in_their_order_both_take_effect_and_an_undeployment_counts_too() {
    let directory = tempfile::tempdir().unwrap();
    let (deployer, shards) = deployer(directory.path());
    let manifest = manifest("echo", "shop");
    let (early, late) = (deployer.begin(&manifest).unwrap(), deployer.begin(&manifest).unwrap());
    let put = |ticket: &Ticket| deployer.put_in_force(ticket, &manifest, MODULE, deployer.compile(&manifest, MODULE).unwrap());
    let (first, second) = (put(&early).unwrap(), put(&late).unwrap());
    assert!(second.generation > first.generation);
    assert_eq!(shards.generation_of("echo"), Some(second.generation));
    let ticket = deployer.begin(&manifest).unwrap();
    deployer.undeploy("echo").unwrap();
    assert!(matches!(put(&ticket), Err(DeployError::Overtaken { .. })));
    assert!(shards.installed().is_empty() && deployer.functions().is_empty());
    put(&deployer.begin(&manifest).unwrap()).unwrap();
}

#[test]
fn what_was_deployed_while_a_module_was_compiled_counts() {
    let directory = tempfile::tempdir().unwrap();
    let (deployer, shards) = deployer(directory.path());
    let mut other = manifest("a", "shop");
    let ticket = deployer.begin(&other).unwrap();
    deployer.deploy(&manifest("b", "shop"), MODULE).unwrap();
    other.rules.tokens = true;
    let compiled = deployer.compile(&other, MODULE).unwrap();
    let refused = deployer.put_in_force(&ticket, &other, MODULE, compiled).unwrap_err();
    assert!(matches!(refused, DeployError::Catalog(CatalogError::RulesDiffer { .. })), "{refused}");
    assert_eq!(shards.installed().len(), 1);
}

#[test]
fn a_stored_function_that_the_shards_do_not_take_now_is_tried_again() {
    let directory = tempfile::tempdir().unwrap();
    let (first, _) = deployer(directory.path());
    let info = first.deploy(&manifest("echo", "shop"), MODULE).unwrap();
    drop(first);
    let (second, shards) = deployer(directory.path());
    shards.fail_next_install();
    assert_eq!(second.start(&[]).unwrap().broken.len(), 1);
    assert!(second.ready().unwrap_err().contains('1') && shards.installed().is_empty());
    let second = Arc::new(second);
    second.keep_trying().unwrap();
    let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while second.ready().is_err() {
        assert!(std::time::Instant::now() < until, "{:?}", second.ready());
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert_eq!((second.functions(), shards.generation_of("echo")), (vec![info.clone()], Some(info.generation)));
}
