//! Addresses of devices, by ip(8).

use std::process::Command;
use std::time::{Duration, Instant};

/// Other tests' namespaces that are taken down hold the kernel's lock of all devices, on a busy machine for many seconds.
const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until packets to an address are for its host. The kernel makes the route of an IPv6 address after `ip addr add` has returned, on a thread of
/// its own (net/ipv6/addrconf.c, `addrconf_dad_work`). Input: what tells `ip` the namespace, when it is not the caller's.
pub fn wait_until_local(of_namespace: &[&str], address: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        // It fails where there is no route at all yet.
        let output = Command::new("ip").args(of_namespace).args(["route", "get", address]).output().unwrap();
        if output.stdout.starts_with(b"local ") {
            return;
        }
        assert!(Instant::now() < deadline, "{address} is no address of its host after {PATIENCE:?}: {output:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
