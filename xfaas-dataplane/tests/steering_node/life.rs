//! How steering begins and ends: other people's programs are left alone, nothing outlives the process, and without rights there is a
//! clear word.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use aya::EbpfLoader;
use aya::maps::loaded_maps;
use aya::programs::{Xdp, loaded_programs};
use xfaas_common::map_layout::{MAP_CPUS, PROGRAM_XDP, Verdict};
use xfaas_dataplane::ebpf_object::ebpf_object;

use crate::lab::{Client, Datagram, Lab, Node, PLAIN_V4, SERVER_DEVICE, UNPRIVILEGED, random_sessions, run, until};

fn assert_answers(lab: &Lab) {
    let client = Client::connect(lab, &PLAIN_V4);
    for session in random_sessions(3, 20) {
        let request = Datagram::new("echo", session, 1, "are you there?");
        request.assert_echoed(&client.ask(&request));
    }
}

/// Maps and programs of a running node, and what belongs to them.
struct InKernel {
    maps: BTreeSet<u32>,
    programs: BTreeSet<u32>,
    names: BTreeSet<String>,
}

impl InKernel {
    fn of(node: &Node<'_>) -> InKernel {
        let maps = node.map_ids();
        let (mut programs, mut names) = (BTreeSet::new(), BTreeSet::new());
        for program in loaded_programs().filter_map(Result::ok) {
            // A program may vanish while it is asked about: then it is none of a node that runs.
            let Ok(Some(used)) = program.map_ids() else { continue };
            if used.iter().any(|map| maps.contains(map)) {
                programs.insert(program.id());
                names.extend(program.name_as_str().map(str::to_owned));
            }
        }
        InKernel { maps, programs, names }
    }

    fn has_something_left(&self) -> bool {
        loaded_programs().filter_map(Result::ok).any(|program| self.programs.contains(&program.id()))
            || loaded_maps().filter_map(Result::ok).any(|map| self.maps.contains(&map.id()))
    }
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn programs_and_maps_go_with_the_process_however_it_ends() {
    let lab = Lab::new();
    for (mode, program) in [("xdp", "xfaas_xdp"), ("tc", "xfaas_tc"), ("reuseport", "xfaas_reusepor")] {
        for is_killed in [false, true] {
            let node = lab.start(mode);
            assert_answers(&lab);
            let in_kernel = InKernel::of(&node);
            assert!(in_kernel.names.iter().any(|name| name.starts_with(program)), "{mode}: {:?}", in_kernel.names);
            assert!(in_kernel.names.iter().any(|name| name.starts_with("xfaas_reusepor")), "{mode}: {:?}", in_kernel.names);
            assert!(in_kernel.maps.len() >= 5, "{mode}: {:?}", in_kernel.maps);
            assert_eq!(lab.server_device().contains("prog/xdp"), mode == "xdp", "{}", lab.server_device());
            let before_the_stack =
                [Verdict::UdpLocal, Verdict::UdpRedirected, Verdict::Unmoved].map(|verdict| node.metrics().verdict(verdict));
            assert_eq!(before_the_stack.iter().sum::<u64>() > 0, mode != "reuseport");
            if is_killed {
                drop(node)
            } else {
                assert_eq!(node.stop(), Some(0))
            }
            until("programs and maps are gone", || !in_kernel.has_something_left());
            assert!(!lab.server_device().contains("xdp"), "{}", lab.server_device());
        }
    }
}

/// Scheduling policies of the kernel's threads that bring the packets of a map of CPUs: `policy` of their stat files (field 41, proc(5)).
fn policies_of_deliverers(map: u32) -> Vec<u32> {
    let of_thread = |process: std::path::PathBuf| -> Option<u32> {
        let comm = std::fs::read_to_string(process.join("comm")).ok()?;
        let is_deliverer = comm.starts_with("cpumap/") && comm.trim_end().ends_with(&format!("/map:{map}"));
        let stat = is_deliverer.then(|| std::fs::read_to_string(process.join("stat")).ok()).flatten()?;
        stat.rsplit_once(") ")?.1.split(' ').nth(41 - 3)?.parse().ok()
    };
    std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| of_thread(entry.path())).collect()
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn the_kernels_threads_that_bring_packets_do_not_interrupt_the_shards() {
    const SCHED_BATCH: u32 = 3;
    let lab = Lab::new();
    let node = lab.start("xdp");
    assert_answers(&lab);
    let maps = node.map_ids();
    let map_of_cpus = |map: &aya::maps::MapInfo| map.name_as_str() == Some(MAP_CPUS) && maps.contains(&map.id());
    let map = loaded_maps().filter_map(Result::ok).find(map_of_cpus).expect("a map of CPUs");
    let policies = policies_of_deliverers(map.id());
    assert!(!policies.is_empty() && policies.iter().all(|policy| *policy == SCHED_BATCH), "{policies:?}");
}

/// The shard that runs it never sleeps, and in the real-time class nothing ordinary would run beside it.
#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn a_guest_that_does_not_end_keeps_no_packets_of_others_waiting() {
    const REQUESTS: usize = 20;
    let lab = Lab::new();
    for flags in [&[][..], &["--realtime"]] {
        let node = lab.start_flagged("xdp", flags);
        let owners = node.owners();
        let of_one_shard: Vec<_> = random_sessions(5, 200).into_iter().filter(|session| owners(session) == 0).collect();
        let client = Client::connect(&lab, &PLAIN_V4);
        let endless = Datagram::new("lock-forever", of_one_shard[0], 0, "");
        client.send(&endless.bytes());
        let mut slowest = Duration::ZERO;
        for (id, session) in of_one_shard[1..=REQUESTS].iter().enumerate() {
            std::thread::sleep(Duration::from_millis(10));
            let (request, asked) = (Datagram::new("echo", *session, id as u64 + 1, "and I?"), Instant::now());
            request.assert_echoed(&client.ask(&request));
            slowest = slowest.max(asked.elapsed());
        }
        // The scheduler alone lets ordinary threads run beside real-time ones once a second.
        assert!(slowest < Duration::from_millis(500), "{flags:?}: {slowest:?}");
    }
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn a_killed_node_can_be_started_again_at_once() {
    let lab = Lab::new();
    for mode in ["xdp", "off", "tc", "xdp", "xdp"] {
        let node = lab.start(mode);
        assert_answers(&lab);
        node.kill_and_forget();
    }
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn an_interface_with_another_nodes_program_is_left_alone() {
    let lab = Lab::new();
    let first = lab.start("xdp");
    let device = lab.server_device();
    for mode in ["auto", "xdp"] {
        assert_refused_as_taken(&lab, mode);
        assert_eq!(lab.server_device(), device);
        assert_answers(&lab);
    }
    assert_eq!(first.stop(), Some(0));
    // What was refused left nothing in the way.
    drop(lab.start("xdp"));
}

fn assert_refused_as_taken(lab: &Lab, mode: &str) {
    let refused = lab.start_refused(mode, &[]);
    assert_eq!(refused.code, Some(1), "{}", refused.log);
    let error =
        "interface xs already has an XDP program: stop what it belongs to (`bpftool net` names the program, `bpftool link` who holds it)";
    assert!(refused.log.contains(error), "{mode}: {}", refused.log);
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn an_interface_with_a_program_attached_the_old_way_is_left_alone() {
    let lab = Lab::new();
    // Any program will do for a stranger's; this one knows no port, so it passes everything.
    let mut ebpf = EbpfLoader::new().map_max_entries(MAP_CPUS, 1).load(ebpf_object()).unwrap();
    let program: &mut Xdp = ebpf.program_mut(PROGRAM_XDP).unwrap().try_into().unwrap();
    program.load().unwrap();
    let id = program.info().unwrap().id().to_string();
    for (attachment, off) in [("xdpdrv", "xdp"), ("xdpgeneric", "xdpgeneric")] {
        run(lab.server_command("bpftool").args(["net", "attach", attachment, "id", &id, "dev", SERVER_DEVICE]));
        let device = lab.server_device();
        assert!(device.contains(&format!("prog/xdp id {id}")), "{device}");
        for mode in ["auto", "xdp"] {
            assert_refused_as_taken(&lab, mode);
            assert_eq!(lab.server_device(), device);
        }
        run(lab.server_command("ip").args(["link", "set", "dev", SERVER_DEVICE, off, "off"]));
    }
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN: run `cargo xtask test`"]
fn without_rights_auto_runs_unsteered_and_the_rest_says_what_is_missing() {
    let lab = Lab::new();
    let node = lab.start_with("auto", &UNPRIVILEGED);
    let missing = "steering needs CAP_BPF and CAP_NET_ADMIN and CAP_PERFMON";
    assert!(node.log().contains(&format!("steering: off; {missing}")), "{}", node.log());
    assert_answers(&lab);
    assert_eq!(node.metrics().sum("xfaas_steering_info", &[("mode", "off")]), 1);
    for mode in ["xdp", "tc", "reuseport"] {
        let refused = lab.start_refused(mode, &UNPRIVILEGED);
        assert_eq!(refused.code, Some(1), "{}", refused.log);
        assert!(refused.log.contains(missing) && refused.log.contains("`--steering off`"), "{mode}: {}", refused.log);
    }
    drop(node);
    drop(lab.start_with("off", &UNPRIVILEGED));
}
