//! What needs no rights: choosing a mode, and saying why.

use std::os::fd::AsFd;

use xfaas_common::hash::HASH_KEYS;
use xfaas_common::limits::SLOTS;

use super::*;

fn options<'a>(mode: SteeringMode, keys: &'a HashKeys, slot_to_core: &'a [u16]) -> SteeringOptions<'a> {
    SteeringOptions {
        mode,
        iface: None,
        udp_port: 8080,
        tcp_port: 8080,
        cpus: &[0],
        slot_to_core,
        keys,
        session_header: b"x-session-id",
        udp_sockets: Vec::new(),
        tcp_sockets: Vec::new(),
        ebpf_object: &[],
    }
}

#[test]
fn off_counts_nothing_and_has_no_handles() {
    let keys = HashKeys { keys: [1; HASH_KEYS] };
    let steering = Steering::start(options(SteeringMode::Off, &keys, &[0; SLOTS])).unwrap();
    assert_eq!(steering.mode(), ActiveMode::Off);
    assert_eq!(steering.explain(), "off");
    assert!(steering.flow_table().is_none());
    assert!(steering.pins().unwrap().is_none());
    assert!(steering.counters().unwrap().verdicts().iter().all(|(_, count)| *count == 0));
}

#[test]
fn auto_without_programs_is_off_and_says_why() {
    let keys = HashKeys { keys: [1; HASH_KEYS] };
    let steering = Steering::start(options(SteeringMode::Auto, &keys, &[0; SLOTS])).unwrap();
    assert_eq!(steering.mode(), ActiveMode::Off);
    // Either the rights or the programs are missing, depending on who runs the test.
    assert!(steering.explain().contains("--steering off"), "{}", steering.explain());
}

#[test]
fn explicit_mode_without_programs_is_an_error() {
    let keys = HashKeys { keys: [1; HASH_KEYS] };
    let result = Steering::start(options(SteeringMode::Reuseport, &keys, &[0; SLOTS]));
    assert!(matches!(result, Err(SteeringError::NoObject | SteeringError::MissingRights { .. })));
}

#[test]
fn modes_are_shown_with_their_interface() {
    assert_eq!(ActiveMode::Xdp { iface: "veth0".to_owned(), is_native: true }.to_string(), "xdp (native) on veth0");
    assert_eq!(ActiveMode::Xdp { iface: "lo".to_owned(), is_native: false }.to_string(), "xdp (generic) on lo");
    assert_eq!(ActiveMode::Tc { iface: "eth0".to_owned() }.to_string(), "tc on eth0");
}

#[test]
fn handles_can_be_shared_between_threads() {
    fn is_shared<T: Send + Sync>() {}
    fn is_sent<T: Send>() {}
    is_shared::<Steering>();
    is_sent::<FlowTable>();
    is_sent::<Pins>();
}

/// Linux before 6.6 has no links for TC programs; this kernel still takes the old way.
#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn tc_filter_goes_when_dropped_and_replaces_what_a_crash_left() {
    let keys = HashKeys { keys: [1; HASH_KEYS] };
    let object = std::env::var_os("XFAAS_EBPF_OBJECT")
        .map_or_else(|| std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/ebpf/xfaas-ebpf.o")), Into::into);
    let object = std::fs::read(object).expect("run `cargo xtask build`");
    let namespace = format!("xfst-{}-clsact", std::process::id());
    let ip = |arguments: &[&str]| std::process::Command::new("ip").args(arguments).output().unwrap();
    assert!(ip(&["netns", "add", &namespace]).status.success());
    let filters = || String::from_utf8(ip(&["netns", "exec", &namespace, "tc", "filter", "show", "dev", "lo", "ingress"]).stdout).unwrap();
    let count = || filters().lines().filter(|line| line.contains("xfaas_tc")).count();
    let result = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let file = std::fs::File::open(format!("/run/netns/{namespace}")).unwrap();
            rustix::thread::move_into_link_name_space(file.as_fd(), Some(rustix::thread::LinkNameSpaceType::Network)).unwrap();
            let mut options = options(SteeringMode::Tc, &keys, &[0; SLOTS]);
            options.ebpf_object = &object;
            let mut loaded = load_programs(&options).unwrap();
            let mut second = load_programs(&options).unwrap();
            // As a killed process leaves it.
            std::mem::forget(attach::tc(&mut loaded, "lo", TcHook::Clsact).unwrap());
            let left_behind = count();
            let attachment = attach::tc(&mut second, "lo", TcHook::Clsact).unwrap();
            let replaced = count();
            drop(attachment);
            (left_behind, replaced, count())
        });
        thread.join()
    });
    assert!(ip(&["netns", "del", &namespace]).status.success());
    assert_eq!(result.unwrap(), (1, 1, 0));
}
