//! The lab: two network namespaces joined by a veth pair, the server in one, the client in the other. Its names end in our process
//! number, so that labs run side by side and a later run sees whose owner is dead. Removed when dropped.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::leftovers;
use crate::process::{run_quiet, say, step};

/// The veth device's name, in both namespaces.
pub const DEVICE: &str = "xfaas0";
/// The namespaces are new and empty, so these clash with no address of the machine.
pub const SERVER_ADDRESS: &str = "10.231.0.1";
const CLIENT_ADDRESS: &str = "10.231.0.2";
const SERVER_ADDRESS_V6: &str = "fd00:231::1";
const CLIENT_ADDRESS_V6: &str = "fd00:231::2";

/// Beginnings of the namespaces' names, before the process number.
pub const NAME_PREFIXES: [&str; 2] = ["xfaas-srv-", "xfaas-cli-"];

/// A lab that is up.
pub struct Lab {
    server: String,
    client: String,
    has_ipv6: bool,
}

impl Lab {
    /// Errors: a command fails; then nothing of the lab is left.
    pub fn new() -> Result<Self> {
        let [server, client] = NAME_PREFIXES.map(|prefix| format!("{prefix}{}", std::process::id()));
        let mut lab = Lab { server, client, has_ipv6: false };
        step("make the lab of two network namespaces", || lab.build())?;
        if !lab.has_ipv6 {
            say("the lab has no IPv6: this kernel has it switched off");
        }
        Ok(lab)
    }

    fn build(&mut self) -> Result<()> {
        for name in [&self.server, &self.client] {
            ip(&["netns", "add", name])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
        }
        ip(&["-n", &self.server, "link", "add", DEVICE, "type", "veth", "peer", "name", DEVICE, "netns", &self.client])?;
        let mut has_ipv6 = true;
        for (name, v4, v6) in [(&self.server, SERVER_ADDRESS, SERVER_ADDRESS_V6), (&self.client, CLIENT_ADDRESS, CLIENT_ADDRESS_V6)] {
            ip(&["-n", name, "address", "add", &format!("{v4}/24"), "dev", DEVICE])?;
            has_ipv6 &= ip(&["-n", name, "address", "add", &format!("{v6}/64"), "dev", DEVICE, "nodad"]).is_ok();
            // A redirected packet keeps its partial checksum and would be dropped: so checksums are made by the sender.
            run_quiet(in_namespace(name, Path::new("ethtool")).args(["-K", DEVICE, "tx", "off"]))?;
        }
        // Lets the server's program send: a veth takes frames from its peer's program only where it polls, as it does for GRO.
        run_quiet(in_namespace(&self.client, Path::new("ethtool")).args(["-K", DEVICE, "gro", "on"]))?;
        for name in [&self.server, &self.client] {
            ip(&["-n", name, "link", "set", DEVICE, "up"])?;
        }
        self.has_ipv6 = has_ipv6;
        Ok(())
    }

    /// Names of the server's and the client's namespace.
    pub fn namespaces(&self) -> [&str; 2] {
        [&self.server, &self.client]
    }

    /// Whether both ends have an IPv6 address.
    pub fn has_ipv6(&self) -> bool {
        self.has_ipv6
    }

    /// The program, to be run in the server's namespace.
    pub fn in_server(&self, program: &Path) -> Command {
        in_namespace(&self.server, program)
    }

    /// The program, to be run in the client's namespace.
    pub fn in_client(&self, program: &Path) -> Command {
        in_namespace(&self.client, program)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in [&self.server, &self.client] {
            if let Err(error) = leftovers::remove_namespace(name) {
                say(&format!("{error:#}"));
            }
        }
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    run_quiet(Command::new("ip").args(arguments)).map(drop).context("set up the lab")
}

fn in_namespace(name: &str, program: &Path) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", name]).arg(program);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exists(name: &str) -> bool {
        leftovers::namespaces().expect("a list").iter().any(|namespace| namespace == name)
    }

    #[test]
    #[ignore = "needs CAP_NET_ADMIN and CAP_SYS_ADMIN: run `cargo xtask test`"]
    fn a_lab_joins_both_namespaces_and_leaves_nothing() {
        let lab = Lab::new().expect("the lab comes up");
        let names = [lab.server.clone(), lab.client.clone()];
        assert!(names.iter().all(|name| exists(name)));
        let script = format!("exec 3<>/dev/tcp/{SERVER_ADDRESS}/{}", super::super::PORT);
        let refused = lab.in_client(Path::new("bash")).args(["-c", &script]).output().expect("bash runs");
        // Refused, not unreachable: the packet went there and came back.
        assert!(String::from_utf8_lossy(&refused.stderr).contains("refused"), "{refused:?}");
        drop(lab);
        assert!(!names.iter().any(|name| exists(name)));
    }

    #[test]
    #[ignore = "needs CAP_NET_ADMIN and CAP_SYS_ADMIN: run `cargo xtask test`"]
    fn the_next_run_removes_what_a_dead_run_left_and_nothing_else() {
        // No process has number 0, so its owner is dead.
        let stale = format!("{}0", NAME_PREFIXES[0]);
        let foreign = format!("xfaas-test-foreign-{}", std::process::id());
        for name in [&stale, &foreign] {
            ip(&["netns", "add", name]).expect("made");
        }
        let mut inside = in_namespace(&stale, Path::new("sleep")).arg("60").spawn().expect("sleep runs");
        let started = std::time::Instant::now();
        while run_quiet(Command::new("ip").args(["netns", "pids", &stale])).expect("a list").is_empty() {
            assert!(started.elapsed().as_secs() < 10, "sleep never entered the namespace");
        }
        leftovers::remove().expect("removed");
        assert!(!exists(&stale));
        assert!(exists(&foreign));
        assert!(!inside.wait().expect("it ended").success());
        ip(&["netns", "delete", &foreign]).expect("removed");
    }
}
