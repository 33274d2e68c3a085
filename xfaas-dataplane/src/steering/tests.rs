//! What needs no rights: choosing a mode, and saying why.

use std::net::Ipv6Addr;
use std::os::fd::AsFd;

use xfaas_common::hash::HASH_KEYS;
use xfaas_common::limits::SLOTS;

use super::*;

fn options<'a>(mode: SteeringMode, keys: &'a HashKeys, slot_to_core: &'a [u16]) -> SteeringOptions<'a> {
    SteeringOptions {
        mode,
        iface: None,
        udp: (Ipv6Addr::UNSPECIFIED, 8080).into(),
        tcp: (Ipv6Addr::UNSPECIFIED, 8080).into(),
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
fn an_interface_that_does_not_exist_is_an_error_whatever_else_is_missing() {
    let keys = HashKeys { keys: [1; HASH_KEYS] };
    for (mode, is_error) in [(SteeringMode::Auto, true), (SteeringMode::Xdp, true), (SteeringMode::Tc, true), (SteeringMode::Off, false)] {
        let result = Steering::start(SteeringOptions { iface: Some("nowhere0"), ..options(mode, &keys, &[0; SLOTS]) });
        assert_eq!(matches!(result, Err(SteeringError::UnknownInterface { .. })), is_error, "{mode:?}");
    }
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

/// Runs `work` in a network of its own, whose filters at `lo` it may ask for.
fn in_a_network_of_its_own<T: Send>(name: &str, work: impl FnOnce(&str) -> T + Send) -> T {
    let namespace = format!("xfst-{}-{name}", std::process::id());
    let ip = |arguments: &[&str]| std::process::Command::new("ip").args(arguments).output().unwrap();
    assert!(ip(&["netns", "add", &namespace]).status.success());
    assert!(ip(&["-n", &namespace, "link", "set", "lo", "up"]).status.success());
    let result = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let file = std::fs::File::open(format!("/run/netns/{namespace}")).unwrap();
            rustix::thread::move_into_link_name_space(file.as_fd(), Some(rustix::thread::LinkNameSpaceType::Network)).unwrap();
            work(&namespace)
        });
        thread.join()
    });
    assert!(ip(&["netns", "del", &namespace]).status.success());
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Programs in mode TC for this port.
fn tc_programs(port: u16) -> Loaded {
    let object = std::env::var_os("XFAAS_EBPF_OBJECT")
        .map_or_else(|| std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/ebpf/xfaas-ebpf.o")), Into::into);
    let object = std::fs::read(object).expect("run `cargo xtask build`");
    let keys = HashKeys { keys: [1; HASH_KEYS] };
    let mut options = options(SteeringMode::Tc, &keys, &[0; SLOTS]);
    (options.ebpf_object, options.udp) = (&object, (Ipv6Addr::UNSPECIFIED, port).into());
    load_programs(&options).unwrap()
}

/// Linux before 6.6 has no links for TC programs; this kernel still takes the old way.
#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn tc_filter_goes_when_dropped_and_replaces_what_a_crash_left() {
    let result = in_a_network_of_its_own("clsact", |namespace| {
        let count = || {
            let shown = ["netns", "exec", namespace, "tc", "filter", "show", "dev", "lo", "ingress"];
            let shown = std::process::Command::new("ip").args(shown).output().unwrap();
            String::from_utf8(shown.stdout).unwrap().lines().filter(|line| line.contains("xfaas_tc")).count()
        };
        let (mut loaded, mut second) = (tc_programs(8080), tc_programs(8080));
        // As a killed process leaves it.
        std::mem::forget(attach::tc(&mut loaded, "lo", TcHook::Clsact).unwrap());
        let left_behind = count();
        let attachment = attach::tc(&mut second, "lo", TcHook::Clsact).unwrap();
        let replaced = count();
        drop(attachment);
        (left_behind, replaced, count())
    });
    assert_eq!(result, (1, 1, 0));
}

/// The other filter is one of ours, too, attached by hand: here no program is there but ours.
#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn tc_filters_of_others_go_on_working() {
    use aya::programs::tc::{NlOptions, TcAttachOptions};
    let dropped = in_a_network_of_its_own("others", |_| {
        let (mut ours, mut other) = (tc_programs(8080), tc_programs(8081));
        let attachment = attach::tc(&mut ours, "lo", TcHook::Clsact).unwrap();
        // A filter with a larger number comes later; ours got the largest that the kernel gives by itself.
        let behind = TcAttachOptions::Netlink(NlOptions { priority: u16::MAX, ..NlOptions::default() });
        load::tc(&mut other.ebpf).unwrap().attach_with_options("lo", aya::programs::TcAttachType::Ingress, behind).unwrap();
        let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        client.send_to(b"malformed", "127.0.0.1:8081").unwrap();
        drop(attachment);
        other.maps.counters().unwrap().dropped(xfaas_common::drop_reason::DropReason::Truncated)
    });
    assert_eq!(dropped, 1);
}
