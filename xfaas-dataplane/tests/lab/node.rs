//! The real `xfaas` binary in the server's namespace.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::Ordering;

use aya::maps::{HashMap, Map, MapData, MapInfo, loaded_maps};
use rustix::process::{Pid, Signal, kill_process};
use xfaas_common::hash::{HASH_KEYS, HashKeys};
use xfaas_common::ids::{CoreIndex, SessionId};
use xfaas_common::map_layout::{FlowKey, MAP_FLOWS};
use xfaas_dataplane::session::{LocalPlacement, Placement};

use super::http::get;
use super::{Lab, Metrics, PORT, RPC_PORT, SERVER_DEVICE, until};

/// Where the admin API listens when nothing else is said; each end's namespace has its own.
const ADMIN: &str = "127.0.0.1:9070";
/// Functions of every node, their modules, and lines for their manifests.
const FUNCTIONS: [(&str, &str); 10] = [
    ("echo", ""),
    ("counter-read", "app = \"counter\"\n"),
    ("counter-rmw", "app = \"counter\"\n"),
    ("counter-rmw-linear", ""),
    ("lock-forever", "app = \"counter-rmw-linear\"\ndeadline_ms = 20000\n"),
    ("cart", ""),
    ("trap", ""),
    ("garbage-return", ""),
    ("spin", "deadline_ms = 50\n"),
    ("big-output", ""),
];
/// For `setpriv`: a process that may not steer.
pub const UNPRIVILEGED: [&str; 4] =
    ["--bounding-set", "-bpf,-net_admin,-sys_admin,-perfmon", "--inh-caps", "-bpf,-net_admin,-sys_admin,-perfmon"];

/// A running node. Killed when dropped, unless it was ended before.
pub struct Node<'a> {
    lab: &'a Lab,
    child: Child,
    port: u16,
    folder: PathBuf,
    is_forgotten: bool,
}

/// An end that came by itself.
pub struct Refused {
    pub code: Option<i32>,
    pub log: String,
}

impl Lab {
    /// A node with steering in this mode, ready to answer.
    pub fn start(&self, mode: &str) -> Node<'_> {
        self.start_with(mode, &[])
    }

    /// As `start`, with arguments for `setpriv`.
    pub fn start_with(&self, mode: &str, privileges: &[&str]) -> Node<'_> {
        self.start_by(mode, privileges, &[])
    }

    /// As `start`, with arguments for `xfaas run`.
    pub fn start_flagged(&self, mode: &str, flags: &[&str]) -> Node<'_> {
        self.start_by(mode, &[], flags)
    }

    fn start_by(&self, mode: &str, privileges: &[&str], flags: &[&str]) -> Node<'_> {
        let mut node = self.spawn(mode, (privileges, flags), PORT, ADMIN);
        until("the node is ready", || {
            assert!(node.child.try_wait().unwrap().is_none(), "the node ended:\n{}", node.log());
            self.on_server(|| get(ADMIN, "/readyz")).is_ok_and(|reply| reply.starts_with("HTTP/1.1 200")) && node.log().contains("serving")
        });
        node
    }

    /// A node that must not start: how it ended. It has ports of its own, so that another may run.
    pub fn start_refused(&self, mode: &str, privileges: &[&str]) -> Refused {
        let mut node = self.spawn(mode, (privileges, &[]), PORT + 1, "127.0.0.1:9170");
        let mut status = None;
        until("the node has refused to start", || {
            status = node.child.try_wait().unwrap();
            status.is_some() || node.log().contains("serving")
        });
        let Some(status) = status else { panic!("mode {mode} was to be refused:\n{}", node.log()) };
        Refused { code: status.code(), log: node.log() }
    }

    /// `arguments`: of `setpriv`, and of `xfaas run`.
    fn spawn(&self, mode: &str, arguments: (&[&str], &[&str]), port: u16, admin: &str) -> Node<'_> {
        let folder = self.folder.join(format!("{mode}-{}", self.starts.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir(&folder).unwrap();
        let config = folder.join("xfaas.toml");
        fs::write(&config, self.configuration(&folder, mode, port, admin)).unwrap();
        let log = File::create(folder.join("log")).unwrap();
        // Should this process be killed, the node dies with the thread that runs the test.
        let mut command = self.server_command("setpriv");
        command.args(["--pdeathsig", "KILL"]).args(arguments.0).arg(env!("CARGO_BIN_EXE_xfaas"));
        command.args(["run", "--config"]).arg(config).args(arguments.1);
        command.env("NO_COLOR", "1").stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let child = command.spawn().unwrap();
        Node { lab: self, child, port, folder, is_forgotten: false }
    }

    /// What is compiled is kept for the lab's next node; everything else is this node's own.
    fn configuration(&self, folder: &Path, mode: &str, port: u16, admin: &str) -> String {
        let [first, second] = self.cpus;
        let folder = folder.display();
        let mut text = format!(
            "state_dir = \"{folder}/state\"\nshared_memory_dir = \"{folder}/memory\"\n\
             [listen]\nhttp = \"[::]:{port}\"\nadmin = \"{admin}\"\nrpc = \"[::]:{}\"\n\
             [shards]\ncpus = [{first}, {second}]\n[steering]\nmode = \"{mode}\"\niface = \"{SERVER_DEVICE}\"\n\
             [limits]\nbody_bytes_max = 65536\nhead_timeout_ms = 1000\nregion_mib = 256\n",
            port + RPC_PORT - PORT,
        );
        for (name, manifest) in FUNCTIONS {
            let wasm = guests().join(format!("{name}.wasm"));
            assert!(wasm.is_file(), "{} is not there: run `cargo xtask build`", wasm.display());
            write!(text, "[[function]]\nname = \"{name}\"\nwasm = \"{}\"\n{manifest}", wasm.display()).unwrap();
        }
        text
    }
}

fn guests() -> PathBuf {
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guests");
    std::env::var_os("XFAAS_GUESTS").map_or_else(built, PathBuf::from)
}

impl Node<'_> {
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap()
    }

    pub fn metrics(&self) -> Metrics {
        let reply = self.lab.on_server(|| get(ADMIN, "/metrics")).unwrap();
        let (head, body) = reply.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        Metrics::parse(body)
    }

    /// Asks for the metrics until they are so. Output: those.
    pub fn metrics_until(&self, what: &str, is_so: impl Fn(&Metrics) -> bool) -> Metrics {
        let mut metrics = self.metrics();
        until(what, || {
            metrics = self.metrics();
            is_so(&metrics)
        });
        metrics
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// The shard that owns a session, computed here from the node's keys.
    pub fn owners(&self) -> impl Fn(&SessionId) -> usize + Send + Sync + use<> {
        let bytes = fs::read(self.folder.join("state/hash-keys")).unwrap();
        let keys: Vec<u64> = bytes.chunks(8).map(|key| u64::from_le_bytes(key.try_into().unwrap())).collect();
        let keys: [u64; HASH_KEYS] = keys.try_into().unwrap();
        let placement = LocalPlacement::with_keys(2, HashKeys { keys });
        move |session| {
            let CoreIndex(core) = placement.owner(placement.hash(session).slot());
            usize::from(core)
        }
    }

    /// IDs of the eBPF maps that the process holds.
    pub fn map_ids(&self) -> BTreeSet<u32> {
        let folder = format!("/proc/{}/fdinfo", self.child.id());
        let descriptors = fs::read_dir(folder).unwrap().filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok());
        let ids = descriptors.filter_map(|text| text.lines().find_map(|line| line.strip_prefix("map_id:"))?.trim().parse().ok());
        ids.collect()
    }

    /// Where the kernel programs take the segments of each connection.
    pub fn flows(&self) -> HashMap<MapData, FlowKey, u32> {
        let ours = self.map_ids();
        let is_flows = |map: &MapInfo| ours.contains(&map.id()) && map.name_as_str() == Some(MAP_FLOWS);
        let map = loaded_maps().filter_map(Result::ok).find(is_flows).expect("steering has a flow table");
        HashMap::try_from(Map::LruHashMap(MapData::from_id(map.id()).unwrap())).unwrap()
    }

    /// Its threads stand still until `go_on`; the kernel's programs do not.
    pub fn stand_still(&self) {
        kill_process(Pid::from_child(&self.child), Signal::STOP).unwrap();
        // Each thread stops where it is, when it next runs.
        let is_still = |thread: &Path| fs::read_to_string(thread.join("stat")).is_ok_and(|stat| stat.contains(") T "));
        let threads = PathBuf::from(format!("/proc/{}/task", self.child.id()));
        until("all threads stand still", || fs::read_dir(&threads).unwrap().all(|thread| is_still(&thread.unwrap().path())));
    }

    pub fn go_on(&self) {
        kill_process(Pid::from_child(&self.child), Signal::CONT).unwrap();
    }

    /// Ends it politely. Output: its exit code.
    pub fn stop(mut self) -> Option<i32> {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let mut code = None;
        until("the node has stopped", || {
            code = self.child.try_wait().unwrap().map(|status| status.code());
            code.is_some()
        });
        code.flatten()
    }

    /// Kills it, and does not wait for what the kernel still has to do for it.
    pub fn kill_and_forget(mut self) {
        self.is_forgotten = true;
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the node's log:\n{}", self.log());
        }
        // One that has ended is none to kill.
        drop(self.child.kill());
        drop(self.child.wait());
        if !self.is_forgotten {
            // After a kill its rings end in the background, and their sockets with them.
            until("the node's port is free", || self.lab.on_server(|| TcpListener::bind(("::", self.port)).is_ok()));
        }
    }
}
