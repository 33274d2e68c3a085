//! The request target and the Host field: RFC 9112 section 3.2 and RFC 3986 section 3.2, narrowed by CONTRACT.md section 1.
//! Called once a head. Pure functions of the bytes; nothing is decoded or normalised.

use std::net::Ipv6Addr;
use std::ops::Range;

use xfaas_common::ids::is_name;

use crate::net::error::Refusal;

/// A target that is well-formed: byte ranges within it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// `None`: the target is `*` or its path names no function; 404.
    pub(super) route: Option<Route>,
    /// Without the `?`; empty where there is none.
    pub(super) query: Range<usize>,
}

/// `/f/<name>` or `/f/<name>/<rest>`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) function_name: Range<usize>,
    /// Empty, or with its leading `/`.
    pub(super) path_rest: Range<usize>,
}

const ROUTE_PREFIX: &[u8] = b"/f/";
const ABSOLUTE_PREFIX: &[u8] = b"http://";

/// Input: the bytes between the two spaces of the request line. Errors: any form but `/...`, `http://host/...` and `*`.
pub(super) fn read_target(target: &[u8]) -> Result<Target, Refusal> {
    let is_clean = target.iter().fold(true, |clean, &byte| clean & byte.is_ascii_graphic() & (byte != b'#'));
    if !is_clean {
        return Err(Refusal::bad_request("byte in the request target that is not allowed there"));
    }
    if target == b"*" {
        return Ok(Target { route: None, query: 0..0 });
    }
    let path_start = path_start(target)?;
    let query_mark = memchr::memchr(b'?', &target[path_start..]).map_or(target.len(), |offset| path_start + offset);
    let query = (query_mark + 1).min(target.len())..target.len();
    Ok(Target { route: read_route(target, path_start..query_mark), query })
}

/// Where the path begins: 0, or after the authority of the absolute form.
fn path_start(target: &[u8]) -> Result<usize, Refusal> {
    if target.first() == Some(&b'/') {
        return Ok(0);
    }
    let has_scheme = target.get(..ABSOLUTE_PREFIX.len()).is_some_and(|prefix| prefix.eq_ignore_ascii_case(ABSOLUTE_PREFIX));
    let slash = if has_scheme { memchr::memchr(b'/', &target[ABSOLUTE_PREFIX.len()..]) } else { None };
    match slash {
        Some(host_bytes) if is_host(&target[ABSOLUTE_PREFIX.len()..ABSOLUTE_PREFIX.len() + host_bytes]) => {
            Ok(ABSOLUTE_PREFIX.len() + host_bytes)
        }
        _ => Err(Refusal::bad_request("the request target is not /..., http://host/... or *")),
    }
}

fn read_route(target: &[u8], path: Range<usize>) -> Option<Route> {
    let after_prefix = target[path.clone()].strip_prefix(ROUTE_PREFIX)?;
    let name_start = path.start + ROUTE_PREFIX.len();
    let name_end = name_start + memchr::memchr(b'/', after_prefix).unwrap_or(after_prefix.len());
    is_name(&target[name_start..name_end]).then_some(Route { function_name: name_start..name_end, path_rest: name_end..path.end })
}

/// True for `uri-host [ ":" port ]` with a host that is not empty; the port may be empty (RFC 3986 section 3.2.3), and is at most 65535.
pub(super) fn is_host(value: &[u8]) -> bool {
    let (host_is_good, port) = if value.first() == Some(&b'[') {
        let Some(end) = memchr::memchr(b']', value) else { return false };
        (is_ip_literal(&value[1..end]), &value[end + 1..])
    } else {
        let end = memchr::memchr(b':', value).unwrap_or(value.len());
        (is_registered_name(&value[..end]), &value[end..])
    };
    host_is_good && (port.is_empty() || port.strip_prefix(b":").is_some_and(is_port))
}

fn is_port(digits: &[u8]) -> bool {
    let number = digits.iter().try_fold(0_u32, |number, &byte| {
        let digit = byte.is_ascii_digit().then(|| u32::from(byte - b'0'))?;
        Some(number * 10 + digit).filter(|number| *number <= u32::from(u16::MAX))
    });
    number.is_some()
}

/// A reg-name of at least one byte; every IPv4 address is one too.
fn is_registered_name(name: &[u8]) -> bool {
    let mut rest = name;
    while let Some((&byte, after)) = rest.split_first() {
        rest = match byte {
            b'%' => match after {
                [high, low, after @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => after,
                _ => return false,
            },
            _ if NAME_BYTES[usize::from(byte)] => after,
            _ => return false,
        };
    }
    !name.is_empty()
}

/// The inside of the brackets: an IPv6 address, or the form kept for later versions, `v<hex>.<text>`.
fn is_ip_literal(literal: &[u8]) -> bool {
    if let Some((b'v' | b'V', future)) = literal.split_first() {
        let Some(dot) = memchr::memchr(b'.', future) else { return false };
        let (version, address) = (&future[..dot], &future[dot + 1..]);
        return !version.is_empty()
            && version.iter().all(u8::is_ascii_hexdigit)
            && !address.is_empty()
            && address.iter().all(|&byte| is_name_byte(byte) || byte == b':');
    }
    std::str::from_utf8(literal).is_ok_and(|text| text.parse::<Ipv6Addr>().is_ok())
}

/// `is_name_byte` of each byte: a Host is looked through byte by byte with every request.
static NAME_BYTES: [bool; 256] = name_bytes();

const fn name_bytes() -> [bool; 256] {
    let mut are_name_bytes = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        are_name_bytes[byte] = is_name_byte(byte as u8);
        byte += 1;
    }
    are_name_bytes
}

/// RFC 3986: unreserved and sub-delims.
const fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routed(target: &str) -> Option<(&str, &str, &str)> {
        let read = read_target(target.as_bytes()).expect("a target of an allowed form");
        let route = read.route?;
        Some((&target[route.function_name], &target[route.path_rest], &target[read.query]))
    }

    #[test]
    fn a_route_is_f_name_and_a_raw_rest() {
        let longest = format!("/f/{}", "a".repeat(64));
        assert_eq!(routed("/f/echo"), Some(("echo", "", "")));
        assert_eq!(routed("/f/echo/"), Some(("echo", "/", "")));
        assert_eq!(routed("/f/echo//a/../%2F?x=1&y?z"), Some(("echo", "//a/../%2F", "x=1&y?z")));
        assert_eq!(routed("/f/A.b_c-9?"), Some(("A.b_c-9", "", "")));
        assert_eq!(routed("/f/echo?a/b"), Some(("echo", "", "a/b")));
        assert_eq!(routed("http://h/f/echo/r?q"), Some(("echo", "/r", "q")));
        assert_eq!(routed("HTTP://[::1]:80/f/echo"), Some(("echo", "", "")));
        assert_eq!(routed(&longest).map(|route| route.0.len()), Some(64));
    }

    #[test]
    fn any_other_path_has_no_route() {
        let too_long = format!("/f/{}", "a".repeat(65));
        for target in ["*", "/", "/f", "/f/", "/f//x", "/f/?q", "/F/echo", "//f/echo", "/f/a%41", "/%66/a"] {
            assert_eq!(routed(target), None, "{target}");
        }
        for target in ["/metrics", "/f/ech~o", "/f/a;b", "http://h/", "/g?/f/echo", &too_long] {
            assert_eq!(routed(target), None, "{target}");
        }
    }

    #[test]
    fn any_other_form_is_malformed() {
        let bad: [&[u8]; 19] = [
            b"",
            b"f/echo",
            b"*x",
            b"**",
            b"?q",
            b"host:80",
            b"http:/f/echo",
            b"http://host",
            b"http://host?q",
            b"http://?/",
            b"http:///f/echo",
            b"http://:80/f/echo",
            b"http://u@h/f/echo",
            b"https://h/f/echo",
            b"/f/echo#x",
            b"/f/\xc3\xa9",
            b"/f/a\tb",
            b"/f/a\x7f",
            b"/f/a\0",
        ];
        for target in bad {
            assert!(read_target(target).is_err(), "{}", target.escape_ascii());
        }
    }

    #[test]
    fn a_host_is_a_name_or_address_with_an_optional_port() {
        for good in [
            "a",
            "a.b-c_d~e",
            "127.0.0.1",
            "127.0.0.1:8080",
            "a:",
            "a:0",
            "a:00080",
            "a:65535",
            "[::1]",
            "[::1]:80",
            "[::1]:",
            "%41b",
            "[v1.a:b]",
            "[::ffff:1.2.3.4]",
            "xn--a",
            "a,b",
        ] {
            assert!(is_host(good.as_bytes()), "{good}");
        }
        for bad in [
            "",
            ":80",
            "a b",
            "a:b",
            "a:80:80",
            "a:65536",
            "a:99999999999999999999",
            "a:-1",
            "a:+1",
            "[::1",
            "::1",
            "[]",
            "[::g]",
            "[::1]80",
            "[::1]x",
            "[v.a]",
            "[v1.]",
            "[v1]",
            "a/b",
            "u@h",
            "%4",
            "%zz",
            "a%",
            "a?b",
            "a\\b",
            "<a>",
            "é",
            "a\tb",
            "[fe80::1%25lo]",
            "a]",
        ] {
            assert!(!is_host(bad.as_bytes()), "{bad}");
        }
    }
}
