//! The texts of /proc and of ethtool, taken apart.

/// Major and minor of a release such as `6.1.0-13-amd64`.
pub(super) fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Soft and hard limit of a line in /proc/self/limits; `None` is no limit.
pub(super) fn limit(limits: &str, name: &str) -> Option<(Option<u64>, Option<u64>)> {
    let mut words = limits.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace();
    let mut next = || match words.next()? {
        "unlimited" => Some(None),
        number => number.parse().ok().map(Some),
    };
    Some((next()?, next()?))
}

/// The driver in the output of `ethtool -i`.
pub(super) fn driver(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("driver:")).map(str::trim)
}

/// True if `ethtool -k` says that the device computes checksums when it sends.
pub(super) fn is_tx_checksumming(text: &str) -> bool {
    text.lines().filter_map(|line| line.trim().strip_prefix("tx-checksumming:")).any(|state| state.trim().starts_with("on"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions_are_read() {
        assert_eq!(kernel_version("6.18.44-fc-v509"), Some((6, 18)));
        assert_eq!(kernel_version("5.10"), Some((5, 10)));
        assert_eq!(kernel_version("6.1-rc3"), Some((6, 1)));
        assert_eq!(kernel_version("linux"), None);
    }

    #[test]
    fn limits_are_read() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
            Max open files            1024                 524288               files     \n\
            Max locked memory         unlimited            unlimited            bytes     \n";
        assert_eq!(limit(text, "Max open files"), Some((Some(1_024), Some(524_288))));
        assert_eq!(limit(text, "Max locked memory"), Some((None, None)));
        assert_eq!(limit(text, "Max nothing"), None);
    }

    #[test]
    fn offloads_are_read() {
        assert_eq!(driver("driver: veth\nversion: 1.0\n"), Some("veth"));
        assert!(is_tx_checksumming("Features for veth0:\nrx-checksumming: on\ntx-checksumming: on\n\ttx-checksum-ipv4: off [fixed]\n"));
        assert!(!is_tx_checksumming("rx-checksumming: on\ntx-checksumming: off\n"));
    }
}
