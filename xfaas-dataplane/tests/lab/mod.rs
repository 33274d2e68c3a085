//! What the whole-path tests run in: two network namespaces with a veth pair, and the `xfaas` binary in one of them. Everything has the name of this process and is removed when the lab is dropped, also when a test fails; what a
//! killed test left behind is removed by the next.

mod address;
mod container;
mod datagrams;
mod http;
mod metrics;
mod node;
mod relay;
mod wire;

pub use self::container::Container;
pub use self::datagrams::{Client, Datagram, random_sessions};
pub use self::http::{Http, get, post, raw_exchange};
pub use self::metrics::Metrics;
pub use self::node::{Node, UNPRIVILEGED};
pub use self::wire::{Frame, Wire};

use self::address::wait_until_local;
use self::relay::Relay;
use std::fs::{self, File};
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use xfaas_dataplane::sys::affinity::allowed_cpus;

/// UDP and TCP alike.
pub const PORT: u16 = 8_080;
/// Where a node listens for containers.
pub const RPC_PORT: u16 = 8_082;
/// How long a test waits for what must happen before it fails.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long for what only the kernel does.
const KERNEL_PATIENCE: Duration = Duration::from_secs(120);
/// The server's device, and the client's.
pub const SERVER_DEVICE: &str = "xs";
const CLIENT_DEVICE: &str = "xc";
pub const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// Every name of ours begins so; the process's number follows.
const PREFIX: &str = "xfl-";
const NAMESPACES: &str = "/run/netns";
/// Shared memory of the servers must be on tmpfs.
const FOLDERS: &str = "/dev/shm";

/// A way from the client to the server: the same wire with other wrapping.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    pub name: &'static str,
    /// The server's address.
    pub server: &'static str,
    /// The client's.
    pub client: &'static str,
    /// VLAN tags of datagrams on their way to the server, outermost first: type and contents.
    pub tags: &'static [(u16, u16)],
}

impl Route {
    const fn v4(name: &'static str, tags: &'static [(u16, u16)]) -> Route {
        Route { name, server: "10.77.0.1", client: "10.77.0.2", tags }
    }

    const fn v6(name: &'static str, tags: &'static [(u16, u16)]) -> Route {
        Route { name, server: "fd77::1", client: "fd77::2", tags }
    }

    pub fn address(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.server.parse().unwrap(), port)
    }

    /// Any port of the client's address.
    pub fn local(&self) -> SocketAddr {
        SocketAddr::new(self.client.parse().unwrap(), 0)
    }

    pub fn is_v6(&self) -> bool {
        self.server.parse::<IpAddr>().unwrap().is_ipv6()
    }
}

/// Tags of VLAN 0, which carry a priority only: every kernel takes them as if they were not there, also one built without VLAN devices.
const ONE_TAG: [(u16, u16); 1] = [(0x8100, 0xA000)];
const TWO_TAGS: [(u16, u16); 2] = [(0x88A8, 0x2000), (0x8100, 0xE000)];
pub const PLAIN: [Route; 2] = [Route::v4("IPv4", &[]), Route::v6("IPv6", &[])];
pub const PLAIN_V4: Route = PLAIN[0];
pub const PLAIN_V6: Route = PLAIN[1];
pub const TAGGED: [Route; 4] = [
    Route::v4("IPv4 in 802.1Q", &ONE_TAG),
    Route::v6("IPv6 in 802.1Q", &ONE_TAG),
    Route::v4("IPv4 in QinQ", &TWO_TAGS),
    Route::v6("IPv6 in QinQ", &TWO_TAGS),
];

/// Two namespaces and a folder. One at a time in a process: tests measure counters and share two CPUs.
pub struct Lab {
    server: String,
    client: String,
    folder: PathBuf,
    /// CPU numbers of the two shards.
    pub cpus: [u16; 2],
    starts: AtomicU32,
    /// The wire, if it can be made bad.
    relay: Option<Relay>,
    _turn: MutexGuard<'static, ()>,
}

impl Lab {
    pub fn new() -> Lab {
        let lab = Lab::empty();
        lab.make_namespaces();
        lab.make_wire();
        lab.make_addresses();
        lab
    }

    /// A lab whose wire can be made bad with `disturb`.
    pub fn with_bad_wire() -> Lab {
        let mut lab = Lab::empty();
        lab.make_namespaces();
        let ends = lab.make_relay_ends();
        lab.make_addresses();
        lab.relay = Some(Relay::start(&lab, [&ends[0], &ends[1]]));
        lab
    }

    fn empty() -> Lab {
        static TURN: Mutex<()> = Mutex::new(());
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        remove_leftovers();
        let name = format!("{PREFIX}{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let folder = Path::new(FOLDERS).join(&name);
        let server = format!("{name}s");
        let lab = Lab { server, client: format!("{name}c"), folder, cpus: two_cpus(), starts: AtomicU32::new(0), relay: None, _turn: turn };
        // From here on `Drop` removes what is there.
        fs::create_dir(&lab.folder).unwrap();
        lab
    }

    fn make_namespaces(&self) {
        ip(&[], &[format!("netns add {}", self.server), format!("netns add {}", self.client)]);
    }

    fn make_wire(&self) {
        let (server, client) = (&self.server, &self.client);
        let link = format!(
            "link add {SERVER_DEVICE} address 02:00:00:00:00:01 netns {server} type veth \
             peer name {CLIENT_DEVICE} address 02:00:00:00:00:02 netns {client}"
        );
        ip(&[], &[link]);
    }

    /// Namespaces into which the wire leads that can be made bad; there is none otherwise.
    fn relay_ends(&self) -> [String; 2] {
        [format!("{}w", self.server), format!("{}w", self.client)]
    }

    fn make_relay_ends(&self) -> [String; 2] {
        let ends = self.relay_ends();
        let devices = [(&self.server, SERVER_DEVICE, 1), (&self.client, CLIENT_DEVICE, 2)];
        for (end, (namespace, device, number)) in ends.iter().zip(devices) {
            let link = format!(
                "link add {device} address 02:00:00:00:00:0{number} netns {namespace} type veth peer name wire address 02:00:00:00:00:1{number} netns {end}"
            );
            ip(&[], &[format!("netns add {end}"), link]);
            // Frames are sent on as they came, whoever they are for, and nothing of this namespace's own.
            run(Command::new("ip").args(["netns", "exec", end, "sysctl", "-q", "net.ipv6.conf.all.disable_ipv6=1"]));
            ip(&["-n", end], &["link set wire promisc on up".to_owned()]);
        }
        ends
    }

    fn make_addresses(&self) {
        for (namespace, device, end) in [(&self.server, SERVER_DEVICE, 1), (&self.client, CLIENT_DEVICE, 2)] {
            // A packet that is redirected to another CPU does not keep a checksum that was left to the device.
            run(Command::new("ip").args(["netns", "exec", namespace, "ethtool", "-K", device, "tx", "off"]));
            ip(
                &["-n", namespace],
                &[
                    "link set lo up".to_owned(),
                    format!("link set {device} up"),
                    format!("addr add 10.77.0.{end}/24 dev {device}"),
                    format!("addr add fd77::{end}/64 dev {device} nodad"),
                ],
            );
        }
        for (namespace, end) in [(&self.server, 1), (&self.client, 2)] {
            wait_until_local(&["-n", namespace], &format!("fd77::{end}"));
        }
    }

    /// Lets the server's XDP program send: a veth takes frames from its peer's program only where it polls, as it does for GRO.
    pub fn let_xdp_send(&self) {
        run(self.client_command("ethtool").args(["-K", CLIENT_DEVICE, "gro", "on"]));
    }

    /// Runs `work` on a thread in the server's namespace. Sockets and processes it makes stay there.
    pub fn on_server<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        within(&self.server, work)
    }

    pub fn on_client<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        within(&self.client, work)
    }

    /// Gives the server's device one more address.
    pub fn add_server_address(&self, address: &str) {
        ip(&["-n", &self.server], &[format!("addr add {address} dev {SERVER_DEVICE} nodad")]);
        wait_until_local(&["-n", &self.server], address);
    }

    /// A command in the server's namespace.
    pub fn server_command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.server, program]);
        command
    }

    /// A command in the client's namespace.
    pub fn client_command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.client, program]);
        command
    }

    /// Makes frames of both directions come so much later, and so many of a thousand never.
    pub fn disturb(&self, delay: Duration, loss_per_mille: u64) {
        self.relay.as_ref().expect("a lab with a bad wire").disturb(delay, loss_per_mille);
    }

    /// Cuts the wire.
    pub fn cut_wire(&self) {
        ip(&["-n", &self.client], &[format!("link set {CLIENT_DEVICE} down")]);
    }

    /// Mends the wire. Output: when both ends carry again, which the kernel sees to after the command, and late while namespaces of other tests are
    /// taken down: they hold its lock of all devices, on a busy machine for many seconds.
    pub fn mend_wire(&self) {
        ip(&["-n", &self.client], &[format!("link set {CLIENT_DEVICE} up")]);
        for (namespace, device) in [(&self.server, SERVER_DEVICE), (&self.client, CLIENT_DEVICE)] {
            let carries = || run(Command::new("ip").args(["-n", namespace, "link", "show", "dev", device])).contains("state UP");
            within_time(KERNEL_PATIENCE, "the wire carries", carries);
        }
    }

    /// What `ip` says of the server's device.
    pub fn server_device(&self) -> String {
        run(Command::new("ip").args(["-n", &self.server, "-d", "link", "show", "dev", SERVER_DEVICE]))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        drop(self.relay.take());
        for namespace in [self.server.clone(), self.client.clone()].into_iter().chain(self.relay_ends()) {
            remove_namespace(&namespace);
        }
        drop(fs::remove_dir_all(&self.folder)); // a folder that was never made is none to remove
    }
}

fn two_cpus() -> [u16; 2] {
    let cpus = allowed_cpus();
    assert!(cpus.len() >= 2, "these tests need two CPUs, and this process may run on {cpus:?}");
    [cpus[0], cpus[1]]
}

fn ip(arguments: &[&str], commands: &[String]) {
    let mut child =
        Command::new("ip").args(arguments).args(["-batch", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("iproute2");
    child.stdin.take().unwrap().write_all(commands.join("\n").as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "ip {commands:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Runs a command that must succeed. Output: what it printed.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn within<T: Send>(namespace: &str, work: impl FnOnce() -> T + Send) -> T {
    let result = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let file = File::open(Path::new(NAMESPACES).join(namespace)).unwrap();
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        });
        thread.join()
    });
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Asks until it is so.
pub fn until(what: &str, is_so: impl FnMut() -> bool) {
    within_time(PATIENCE, what, is_so);
}

fn within_time(time: Duration, what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + time;
    while !is_so() {
        assert!(Instant::now() < deadline, "still not so after {time:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn remove_namespace(name: &str) {
    // One that was never made is none to remove.
    drop(Command::new("ip").args(["netns", "del", name]).stderr(Stdio::null()).status());
}

/// Removes namespaces and folders of test processes that are no more. Their servers died with them.
fn remove_leftovers() {
    for name in leftovers(NAMESPACES) {
        remove_namespace(&name);
    }
    for name in leftovers(FOLDERS) {
        drop(fs::remove_dir_all(Path::new(FOLDERS).join(name))); // another test process may be doing the same
    }
}

fn leftovers(folder: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| process_of(name).is_some_and(|process| !is_alive(process))).collect()
}

/// A process that ended and was not waited for has no command line any more.
fn is_alive(process: u32) -> bool {
    fs::read(format!("/proc/{process}/cmdline")).is_ok_and(|line| !line.is_empty())
}

fn process_of(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}
