//! What needs no rights: choosing a mode, and saying why.

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
