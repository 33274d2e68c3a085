//! `xfaas doctor`: names the missing capability, kernel feature or offload setting, and what to do about it. Changes nothing.
//! Reads /proc and /sys, tries to bind the configured addresses, and asks `ethtool`. Called by `cli`.

mod machine;
mod parse;

use self::machine::Machine;
use super::store::{StoreError, check_private, examine_directory};
use crate::steering::{Probe, SteeringError, SteeringMode, interface_exists, is_xdp_taken, probe};
use crate::sys::capabilities::{CAP_IPC_LOCK, CAP_NET_BIND_SERVICE, CAP_SYS_ADMIN};
use crate::sys::realtime::{self, Children, PRIORITY_TICKER};
use crate::sys::socket::{RELEASE_WAIT, ensure_free_by};
use serde::Serialize;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

/// Linux 6.1: the newest feature the shards use is `IORING_SETUP_DEFER_TASKRUN`.
const KERNEL_FLOOR: (u32, u32) = (6, 1);
/// Locked memory that rings and buffers of a shard may be charged with.
const MEMLOCK_BYTES_MIN: u64 = 8 << 20;
/// Shared memory below which a node soon answers with -3.
const SHARED_MEMORY_BYTES_MIN: u64 = 256 << 20;
/// Descriptors beside a shard's connections: modules, maps, sockets, logs.
const OTHER_DESCRIPTORS: u64 = 1_024;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Good,
    /// xfaas runs, but slower or with less room.
    Warning,
    /// xfaas as configured does not run.
    Missing,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    pub name: String,
    pub verdict: Verdict,
    /// What is there.
    pub found: String,
    /// What to do; empty when all is good.
    pub advice: String,
}

impl Check {
    pub fn good(name: &str, found: impl Into<String>) -> Check {
        Check { name: name.to_owned(), verdict: Verdict::Good, found: found.into(), advice: String::new() }
    }

    /// `verdict` with what to do about it.
    pub fn bad(name: &str, verdict: Verdict, found: impl Into<String>, advice: impl Into<String>) -> Check {
        Check { name: name.to_owned(), verdict, found: found.into(), advice: advice.into() }
    }
}

/// What `xfaas run` would use.
pub struct DoctorOptions<'a> {
    pub http: SocketAddr,
    pub udp: SocketAddr,
    pub admin: SocketAddr,
    pub rpc: SocketAddr,
    /// Shards are to run in the real-time class.
    pub realtime: bool,
    pub steering_mode: SteeringMode,
    pub steering_iface: Option<&'a str>,
    pub state_dir: &'a Path,
    pub shared_memory_dir: &'a Path,
    /// Connections of one shard.
    pub connections_max: u64,
    /// The embedded kernel programs; empty when the binary was built without.
    pub ebpf_object: &'a [u8],
    /// An xfaas answers on `admin` already. It is the node of this configuration, and the ports are its own, if the state directory is in use as well.
    pub is_running: bool,
}

/// True unless something needed is missing.
pub fn all_good(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.verdict != Verdict::Missing)
}

/// Looks at everything. Cost: some ten milliseconds, for the verifier, unless steering is off.
pub fn examine(options: &DoctorOptions<'_>) -> Vec<Check> {
    let machine = Machine::read();
    let mut checks = vec![kernel(&machine), io_uring(&machine), memlock(&machine), open_files(&machine, options.connections_max)];
    checks.extend(ports(&machine, options, is_this_node(options)));
    checks.extend(options.realtime.then(real_time));
    checks.push(state_dir(options));
    checks.push(shared_memory(options.shared_memory_dir));
    checks.extend(steering(options));
    checks
}

fn kernel(machine: &Machine) -> Check {
    let (major, minor) = KERNEL_FLOOR;
    match parse::kernel_version(&machine.kernel_release) {
        Some(version) if version >= KERNEL_FLOOR => Check::good("kernel", machine.kernel_release.clone()),
        _ => Check::bad("kernel", Verdict::Missing, machine.kernel_release.clone(), format!("boot Linux {major}.{minor} or newer")),
    }
}

fn io_uring(machine: &Machine) -> Check {
    let advice = "run `sysctl kernel.io_uring_disabled=0` as root";
    match machine.io_uring_disabled.as_deref() {
        // The setting came with Linux 6.6; before, io_uring cannot be disabled.
        None | Some("0") => Check::good("io_uring", "enabled"),
        Some("1") if machine.has(CAP_SYS_ADMIN) => Check::good("io_uring", "enabled for privileged processes"),
        Some("1") => Check::bad("io_uring", Verdict::Missing, "only for CAP_SYS_ADMIN and the group kernel.io_uring_group", advice),
        Some(_) => Check::bad("io_uring", Verdict::Missing, "disabled on this machine", advice),
    }
}

fn memlock(machine: &Machine) -> Check {
    match machine.memlock_bytes {
        _ if machine.has(CAP_IPC_LOCK) => Check::good("locked memory", "no limit (CAP_IPC_LOCK)"),
        None => Check::good("locked memory", "no limit"),
        Some(bytes) if bytes >= MEMLOCK_BYTES_MIN => Check::good("locked memory", format!("{} KiB", bytes >> 10)),
        Some(bytes) => {
            let advice = format!("raise it to {} KiB or more: `ulimit -l`, or LimitMEMLOCK= of systemd", MEMLOCK_BYTES_MIN >> 10);
            Check::bad("locked memory", Verdict::Warning, format!("{} KiB", bytes >> 10), advice)
        }
    }
}

fn open_files(machine: &Machine, connections_max: u64) -> Check {
    let needed = connections_max + OTHER_DESCRIPTORS;
    match machine.open_files {
        Some(limit) if limit < needed => {
            let advice =
                format!("raise the hard limit to {needed} (`ulimit -Hn`, LimitNOFILE= of systemd), or lower limits.connections_max");
            Check::bad("open files", Verdict::Warning, format!("{limit} (hard limit)"), advice)
        }
        Some(limit) => Check::good("open files", format!("{limit} (hard limit)")),
        None => Check::good("open files", "no limit"),
    }
}

/// An answer on the admin address alone may be another node's: what it does not hold itself, `run` would not get either.
fn is_this_node(options: &DoctorOptions<'_>) -> bool {
    options.is_running && matches!(examine_directory(options.state_dir), Err(StoreError::Locked { .. }))
}

fn ports(machine: &Machine, options: &DoctorOptions<'_>, is_this_node: bool) -> Vec<Check> {
    let addresses = [
        ("HTTP port", options.http, true),
        ("datagram port", options.udp, false),
        ("admin port", options.admin, true),
        ("RPC port", options.rpc, true),
    ];
    // One wait for all, for the ports of a process that just ended: one that answers has not.
    let deadline = Instant::now() + if options.is_running { Duration::ZERO } else { RELEASE_WAIT };
    let examine = |(name, address, tcp): (&str, SocketAddr, bool)| {
        if is_this_node {
            return Check::good(name, format!("{address} (xfaas is running)"));
        }
        if address.port() < 1024
            && address.port() != 0
            && !machine.has(CAP_NET_BIND_SERVICE)
            && ensure_free_by(address, tcp, deadline).is_err()
        {
            let advice = "give the process CAP_NET_BIND_SERVICE, or choose a port from 1024 on";
            return Check::bad(name, Verdict::Missing, format!("{address}: not ours to take"), advice);
        }
        match ensure_free_by(address, tcp, deadline) {
            Ok(()) => Check::good(name, format!("{address} is free")),
            Err(error) => Check::bad(name, Verdict::Missing, super::describe(&error), advice_on_taken_port(options)),
        }
    };
    addresses.map(examine).into()
}

fn advice_on_taken_port(options: &DoctorOptions<'_>) -> String {
    if options.is_running {
        let (admin, state_dir) = (options.admin, options.state_dir.display());
        return format!(
            "the xfaas that answers on {admin} does not use {state_dir} and may have it: name that one's directory with --state-dir to \
             look at it, or choose another address to run one beside it"
        );
    }
    "stop the process that has it (`ss -lntup` names it), or choose another address".to_owned()
}

/// Tries what the threads of a node would do, on a thread that ends with it.
fn real_time() -> Check {
    let name = "real-time class";
    match std::thread::spawn(|| realtime::enter(PRIORITY_TICKER, Children::Ordinary)).join() {
        Ok(Ok(())) => Check::good(name, "allowed"),
        Ok(Err(_)) | Err(_) => {
            let advice = format!("run as root, give the program CAP_SYS_NICE, or raise its limit with `ulimit -r {PRIORITY_TICKER}`");
            Check::bad(name, Verdict::Missing, "not allowed", advice)
        }
    }
}

fn state_dir(options: &DoctorOptions<'_>) -> Check {
    let (name, path) = ("state directory", options.state_dir);
    let shown = path.display();
    if !machine::is_writable(path) {
        let advice = "make it writable for this user, or choose another with --state-dir";
        return Check::bad(name, Verdict::Missing, format!("{shown} cannot be written"), advice);
    }
    match examine_directory(path) {
        Ok(()) => Check::good(name, shown.to_string()),
        Err(StoreError::Locked { .. }) if options.is_running => Check::good(name, format!("{shown} (xfaas is running)")),
        Err(StoreError::Locked { owner, .. }) => {
            let advice = "stop that one, or choose another with --state-dir";
            Check::bad(name, Verdict::Missing, format!("{shown} is used by another xfaas process{owner}"), advice)
        }
        Err(error) => not_private(name, &error),
    }
}

fn not_private(name: &str, error: &StoreError) -> Check {
    let advice = "make it and what is in it this user's, with mode 700, or choose another directory";
    match error {
        StoreError::NotPrivate { path, owner, mode } => {
            let found = format!("{} belongs to user {owner}, or others may write to it (mode {mode:o})", path.display());
            Check::bad(name, Verdict::Missing, found, advice)
        }
        error => Check::bad(name, Verdict::Missing, super::describe(error), advice),
    }
}

fn shared_memory(path: &Path) -> Check {
    let name = "shared memory";
    let shown = path.display();
    let Some(place) = machine::place(path) else {
        return Check::bad(name, Verdict::Missing, format!("{shown} cannot be looked at"), "mount a tmpfs on /dev/shm");
    };
    let free_mib = place.free_bytes >> 20;
    if !machine::is_writable(path) {
        let advice = "make it writable for this user, or set shared_memory_dir";
        return Check::bad(name, Verdict::Missing, format!("{shown} cannot be written"), advice);
    }
    if let Some(error) = path.exists().then(|| check_private(path).err()).flatten() {
        return not_private(name, &error);
    }
    if !place.is_tmpfs {
        let advice = "set shared_memory_dir to a folder on tmpfs: on a disk, session state is slow";
        return Check::bad(name, Verdict::Warning, format!("{shown} is not on tmpfs"), advice);
    }
    if place.free_bytes < SHARED_MEMORY_BYTES_MIN {
        let advice = format!("make room: `mount -o remount,size=...` (at least {} MiB)", SHARED_MEMORY_BYTES_MIN >> 20);
        return Check::bad(name, Verdict::Warning, format!("{shown}, {free_mib} MiB free"), advice);
    }
    Check::good(name, format!("{shown}, {free_mib} MiB free"))
}

fn steering(options: &DoctorOptions<'_>) -> Vec<Check> {
    let severity = match options.steering_mode {
        SteeringMode::Off => return vec![Check::good("steering", "off: needs nothing")],
        SteeringMode::Auto => Verdict::Warning,
        SteeringMode::Xdp | SteeringMode::Tc | SteeringMode::Reuseport => Verdict::Missing,
    };
    let mut checks: Vec<Check> = probe(options.ebpf_object).iter().map(|probe| check_of(probe, severity)).collect();
    // `reuseport` uses none.
    if let (Some(iface), false) = (options.steering_iface, options.steering_mode == SteeringMode::Reuseport) {
        let is_possible = checks.iter().all(|check| check.verdict == Verdict::Good);
        checks.push(interface(iface, options, is_possible));
    }
    checks
}

fn check_of(probe: &Probe, severity: Verdict) -> Check {
    if probe.is_ok {
        return Check::good(probe.name, probe.advice.clone());
    }
    let found = if severity == Verdict::Warning { "not there: steering would be off" } else { "not there" };
    Check::bad(probe.name, severity, found, probe.advice.clone())
}

/// Input: whether the programs can be used at all; where not, `auto` does not come to attaching one.
fn interface(iface: &str, options: &DoctorOptions<'_>, is_steering_possible: bool) -> Check {
    let name = "interface";
    if !interface_exists(iface) {
        return Check::bad(name, Verdict::Missing, format!("{iface} does not exist"), "see `ip link`, or choose another with --iface");
    }
    let wants_xdp = matches!(options.steering_mode, SteeringMode::Xdp | SteeringMode::Auto);
    if wants_xdp && is_steering_possible && !is_this_node(options) {
        match is_xdp_taken(iface) {
            Ok(false) => {}
            Ok(true) => {
                let advice = SteeringError::InterfaceTaken { iface: iface.to_owned() }.to_string();
                return Check::bad(name, Verdict::Missing, format!("{iface} is taken"), advice);
            }
            Err(error) => {
                let found = format!("{iface}: the kernel does not say whether it has an XDP program ({error})");
                return Check::bad(name, Verdict::Warning, found, "look with `ip -d link`");
            }
        }
    }
    match machine::is_veth_with_tx_checksum(iface) {
        Ok(false) => Check::good(name, iface),
        Ok(true) => {
            let advice =
                format!("run `ethtool -K {iface} tx off`, and the same on the other end: redirected packets are dropped otherwise");
            Check::bad(name, Verdict::Warning, format!("{iface} is a veth with tx checksum offload"), advice)
        }
        Err(reason) => Check::bad(name, Verdict::Warning, format!("{iface}, offloads unknown: {reason}"), "install ethtool and look again"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Store;
    use crate::sys::capabilities::Capabilities;
    use std::os::unix::fs::PermissionsExt;

    fn machine() -> Machine {
        Machine {
            kernel_release: "6.18.44".to_owned(),
            capabilities: Capabilities(0),
            io_uring_disabled: Some("0".to_owned()),
            memlock_bytes: None,
            open_files: None,
        }
    }

    fn options<'a>(directory: &'a Path, steering_mode: SteeringMode) -> DoctorOptions<'a> {
        let any = "127.0.0.1:0".parse().unwrap();
        DoctorOptions {
            http: any,
            udp: any,
            admin: any,
            rpc: any,
            realtime: false,
            steering_mode,
            steering_iface: None,
            state_dir: directory,
            shared_memory_dir: directory,
            connections_max: 100,
            ebpf_object: &[],
            is_running: false,
        }
    }

    #[test]
    fn an_old_kernel_is_missing() {
        assert_eq!(kernel(&machine()).verdict, Verdict::Good);
        assert_eq!(kernel(&Machine { kernel_release: "6.0.19-generic".to_owned(), ..machine() }).verdict, Verdict::Missing);
        assert_eq!(kernel(&Machine { kernel_release: "6.1.0".to_owned(), ..machine() }).verdict, Verdict::Good);
    }

    #[test]
    fn disabled_io_uring_is_missing_unless_privileged() {
        let disabled =
            |text: &str, capabilities| io_uring(&Machine { io_uring_disabled: Some(text.to_owned()), capabilities, ..machine() }).verdict;
        assert_eq!(disabled("0", Capabilities(0)), Verdict::Good);
        assert_eq!(disabled("1", Capabilities(0)), Verdict::Missing);
        assert_eq!(disabled("1", Capabilities::of(&[CAP_SYS_ADMIN])), Verdict::Good);
        assert_eq!(disabled("2", Capabilities(u64::MAX)), Verdict::Missing);
        assert_eq!(io_uring(&Machine { io_uring_disabled: None, ..machine() }).verdict, Verdict::Good);
    }

    #[test]
    fn what_steering_lacks_weighs_as_the_mode_says() {
        let lacking = Probe { name: "steering capabilities", is_ok: false, advice: "run as root".to_owned() };
        assert_eq!(check_of(&lacking, Verdict::Missing).verdict, Verdict::Missing);
        let check = check_of(&lacking, Verdict::Warning);
        assert!(all_good(std::slice::from_ref(&check)) && check.advice == "run as root", "{check:?}");
        assert_eq!(check_of(&Probe { is_ok: true, ..lacking }, Verdict::Missing).verdict, Verdict::Good);
        // Built without programs: no mode that needs them can run, whatever the rights.
        assert!(!all_good(&steering(&options(Path::new("/tmp"), SteeringMode::Xdp))));
        assert!(all_good(&steering(&options(Path::new("/tmp"), SteeringMode::Auto))));
        assert!(all_good(&steering(&options(Path::new("/tmp"), SteeringMode::Off))));
    }

    #[test]
    fn an_interface_that_does_not_exist_is_missing_in_every_mode_that_uses_one() {
        let asked = |mode| steering(&DoctorOptions { steering_iface: Some("nowhere0"), ..options(Path::new("/tmp"), mode) });
        for mode in [SteeringMode::Auto, SteeringMode::Xdp, SteeringMode::Tc] {
            let check = asked(mode).into_iter().find(|check| check.name == "interface").unwrap();
            assert!(check.verdict == Verdict::Missing && check.found.contains("nowhere0"), "{check:?}");
        }
        for mode in [SteeringMode::Reuseport, SteeringMode::Off] {
            assert!(asked(mode).iter().all(|check| check.name != "interface"), "{mode:?}");
        }
    }

    #[test]
    fn a_taken_port_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = listener.local_addr().unwrap();
        let options = DoctorOptions { http: taken, rpc: taken, ..options(Path::new("/tmp"), SteeringMode::Off) };
        let checks = ports(&machine(), &options, false);
        for check in [&checks[0], &checks[3]] {
            assert!(check.verdict == Verdict::Missing && check.found.contains(&taken.to_string()), "{checks:?}");
            assert!(check.advice.contains("ss -lntup"), "{checks:?}");
        }
        assert_eq!(checks[1].verdict, Verdict::Good);
        assert!(all_good(&ports(&machine(), &options, true)));
    }

    #[test]
    fn a_node_that_answers_on_the_admin_address_with_another_state_directory_is_another_one() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("state");
        let answered =
            || DoctorOptions { http: listener.local_addr().unwrap(), is_running: true, ..options(&directory, SteeringMode::Off) };
        let http = || examine(&answered()).into_iter().find(|check| check.name == "HTTP port").unwrap();
        let check = http();
        assert!(check.verdict == Verdict::Missing && !check.found.contains("xfaas is running"), "{check:?}");
        assert!(check.advice.contains("--state-dir") && check.advice.contains(directory.to_str().unwrap()), "{check:?}");
        let _store = Store::open(&directory).unwrap();
        let check = http();
        assert!(check.verdict == Verdict::Good && check.found.contains("xfaas is running"), "{check:?}");
    }

    #[test]
    fn a_state_directory_that_a_node_would_refuse_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("state");
        let asked = options(&directory, SteeringMode::Off);
        assert_eq!(state_dir(&asked).verdict, Verdict::Good);
        assert!(!directory.exists(), "only looked at");
        let store = Store::open(&directory).unwrap();
        let check = state_dir(&asked);
        assert!(check.verdict == Verdict::Missing && check.found.contains(&std::process::id().to_string()), "{check:?}");
        assert_eq!(state_dir(&DoctorOptions { is_running: true, ..options(&directory, SteeringMode::Off) }).verdict, Verdict::Good);
        drop(store);
        assert_eq!(state_dir(&asked).verdict, Verdict::Good);
        for part in [directory.join("functions"), directory.clone()] {
            std::fs::set_permissions(&part, std::fs::Permissions::from_mode(0o777)).unwrap();
            let check = state_dir(&asked);
            assert!(check.verdict == Verdict::Missing && check.found.contains("mode 777"), "{check:?}");
        }
        assert!(shared_memory(&directory).found.contains("mode 777"));
    }

    #[test]
    fn the_real_time_class_is_looked_at_where_it_is_wanted() {
        let directory = tempfile::tempdir().unwrap();
        let is_allowed = std::thread::spawn(|| realtime::enter(PRIORITY_TICKER, Children::Ordinary)).join().unwrap().is_ok();
        let wanted = |realtime| {
            let checks = examine(&DoctorOptions { realtime, ..options(directory.path(), SteeringMode::Off) });
            checks.into_iter().find(|check| check.name == "real-time class")
        };
        assert_eq!(wanted(false), None);
        assert_eq!(wanted(true).unwrap().verdict == Verdict::Good, is_allowed);
    }

    #[test]
    fn limits_are_warnings() {
        assert_eq!(memlock(&Machine { memlock_bytes: Some(64 << 10), ..machine() }).verdict, Verdict::Warning);
        assert_eq!(
            memlock(&Machine { memlock_bytes: Some(0), capabilities: Capabilities::of(&[CAP_IPC_LOCK]), ..machine() }).verdict,
            Verdict::Good
        );
        assert_eq!(open_files(&Machine { open_files: Some(1_024), ..machine() }, 100).verdict, Verdict::Warning);
        assert_eq!(open_files(&Machine { open_files: Some(1_124), ..machine() }, 100).verdict, Verdict::Good);
    }

    #[test]
    fn this_machine_can_be_examined() {
        let directory = tempfile::tempdir().unwrap();
        let checks = examine(&options(&directory.path().join("not/yet/there"), SteeringMode::Auto));
        assert!(checks.len() > 8);
        assert!(
            checks.iter().all(|check| check.verdict == Verdict::Good || !check.advice.is_empty()),
            "every finding says what to do: {checks:?}"
        );
    }
}
