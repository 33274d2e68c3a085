//! A container in the client's namespace, joined over the wire to the node in the server's.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::atomic::Ordering;

use super::http::get;
use super::{Lab, Metrics, PLAIN_V4, RPC_PORT, until};

const ADMIN: &str = "127.0.0.1:9072";

/// A running container. Killed when dropped.
pub struct Container<'a> {
    lab: &'a Lab,
    child: Child,
    folder: PathBuf,
}

impl Lab {
    /// A container that asks everything by RPC, as one on another machine must. Ready to serve on `Container::ADDRESS`.
    pub fn start_container(&self) -> Container<'_> {
        let folder = self.folder.join(format!("container-{}", self.starts.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir(&folder).unwrap();
        let log = File::create(folder.join("log")).unwrap();
        // Should this process be killed, the container dies with the thread that runs the test.
        let mut command = self.client_command("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(env!("CARGO_BIN_EXE_xfaas"));
        command.args(["container", "--no-map", "--join", &PLAIN_V4.address(RPC_PORT).to_string()]);
        command.args(["--listen", Container::ADDRESS, "--admin", ADMIN, "--state-dir"]).arg(folder.join("state"));
        command.args(["--cpus", &format!("{},{}", self.cpus[0], self.cpus[1])]);
        command.env("NO_COLOR", "1").stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let mut container = Container { lab: self, child: command.spawn().unwrap(), folder };
        until("the container is ready", || {
            assert!(container.child.try_wait().unwrap().is_none(), "the container ended:\n{}", container.log());
            container.is_ready()
        });
        container
    }
}

impl Container<'_> {
    /// Where it serves, within the client's namespace.
    pub const ADDRESS: &'static str = "127.0.0.1:8081";

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap()
    }

    pub fn is_ready(&self) -> bool {
        self.lab.on_client(|| get(ADMIN, "/readyz")).is_ok_and(|reply| reply.starts_with("HTTP/1.1 200"))
    }

    pub fn metrics(&self) -> Metrics {
        let reply = self.lab.on_client(|| get(ADMIN, "/metrics")).unwrap();
        let (_, body) = reply.split_once("\r\n\r\n").unwrap();
        Metrics::parse(body)
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the container's log:\n{}", self.log());
        }
        // One that has ended is none to kill.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
