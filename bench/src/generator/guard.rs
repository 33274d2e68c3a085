//! Whom the load may be aimed at without a word: this machine's loopback, and whatever a network namespace of its own reaches.

use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Of the machine's first network namespace on kernels from 6.18. Source: include/uapi/linux/nsfs.h, `NET_NS_INIT_INO`.
const FIRST_NAMESPACE_INODE: u64 = 0xEFFF_FFF9;
/// Where `ip netns` keeps the namespaces that it made.
const NAMED_NAMESPACES: &str = "/run/netns";

/// Why a target is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{target} is neither loopback nor are we in a network namespace of our own: a load at full speed is an attack on a machine that does not expect it; \
     say --i-own-this-target if it is yours"
)]
pub struct ForeignTarget {
    pub target: IpAddr,
}

/// Errors: `target` may be anybody's.
pub fn check_target(target: IpAddr) -> Result<(), ForeignTarget> {
    if target.to_canonical().is_loopback() || in_own_namespace() { Ok(()) } else { Err(ForeignTarget { target }) }
}

fn in_own_namespace() -> bool {
    let inode = |path: &Path| std::fs::metadata(path).ok().map(|metadata| metadata.ino());
    let named: Vec<u64> = std::fs::read_dir(NAMED_NAMESPACES)
        .map(|entries| entries.flatten().filter_map(|entry| inode(&entry.path())).collect())
        .unwrap_or_default();
    is_own(inode(Path::new("/proc/thread-self/ns/net")), inode(Path::new("/proc/1/ns/net")), &named)
}

/// `own`: the namespace we are in; `first`: that of process 1, `None` where we may not look; `named`: those made by `ip netns`.
/// Unsure is no.
fn is_own(own: Option<u64>, first: Option<u64>, named: &[u64]) -> bool {
    match (own, first) {
        (None, _) | (Some(FIRST_NAMESPACE_INODE), _) => false,
        (Some(own), Some(first)) => own != first,
        (Some(own), None) => named.contains(&own),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_always_ours() {
        for text in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(check_target(text.parse().unwrap()), Ok(()), "{text}");
        }
    }

    #[test]
    fn a_namespace_is_ours_only_if_it_is_surely_not_the_machines() {
        assert!(is_own(Some(7), Some(8), &[]));
        assert!(!is_own(Some(7), Some(7), &[7]));
        assert!(is_own(Some(7), None, &[6, 7]));
        assert!(!is_own(Some(7), None, &[6]));
        assert!(!is_own(None, Some(8), &[]));
        assert!(!is_own(Some(FIRST_NAMESPACE_INODE), None, &[FIRST_NAMESPACE_INODE]));
    }

    #[test]
    fn the_refusal_says_how_to_go_on() {
        let text = ForeignTarget { target: "192.0.2.1".parse().unwrap() }.to_string();
        assert!(text.contains("192.0.2.1") && text.contains("--i-own-this-target"));
    }
}
