//! Which session an HTTP request names, by the hint of its app. CONTRACT.md section 1, "Hints".
//! Called by the shard once a request. A pure function of the head's bytes, which are hostile; allocates nothing.

use crate::net::Request;
use crate::worker::Hint;
use xfaas_common::ids::SessionId;
use xfaas_common::limits::SESSION_ID_BYTES_MAX;

/// What is wrong with a hint, for the `detail` of a 400.
type Detail = &'static str;

/// Output: the session that the request names; `None` when it names none. Errors: the request names one badly.
/// Cost: nothing for the default hint, whose header the decoder has read; else one pass over the part of the head that the hint is about.
pub fn named_session(request: &Request, hint: &Hint) -> Result<Option<SessionId>, Detail> {
    match hint {
        Hint::SessionHeader => Ok(request.session().copied()),
        Hint::Header(name) => by_header(request, name.as_bytes()),
        Hint::Cookie(name) => by_cookie(request, name.as_bytes()),
        Hint::Path(index) => by_path(request.path_rest(), usize::from(*index)),
        // What the hook said comes another way.
        Hint::Hook => Ok(None),
        Hint::Query(name) => by_query(request.query(), name.as_bytes()),
    }
}

fn by_header(request: &Request, name: &[u8]) -> Result<Option<SessionId>, Detail> {
    let mut values = request.headers(name);
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err("the header that names the session is there twice");
    }
    SessionId::new(value).map(Some).ok_or("the header that names the session does not hold 1 to 64 bytes of 0x21-0x7E")
}

/// RFC 6265 section 4.2.1, all Cookie headers taken together. A pair without `=` names nothing.
fn by_cookie(request: &Request, name: &[u8]) -> Result<Option<SessionId>, Detail> {
    let pairs = request.headers(b"cookie").flat_map(|value| value.split(|byte| *byte == b';'));
    let named = pairs.filter_map(|pair| {
        let equals = memchr::memchr(b'=', pair)?;
        (pair[..equals].trim_ascii() == name).then(|| pair[equals + 1..].trim_ascii())
    });
    let Some(value) = one(named, "the cookie that names the session is there twice")? else { return Ok(None) };
    let value = value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(value);
    let is_cookie = !value.iter().any(|byte| matches!(byte, b'"' | b',' | b'\\'));
    let session = if is_cookie { SessionId::new(value) } else { None };
    session.map(Some).ok_or("the cookie that names the session does not hold 1 to 64 bytes that a cookie may hold")
}

/// The rest of the path is `/a/b`: segment 0 is `a`.
fn by_path(path_rest: &[u8], index: usize) -> Result<Option<SessionId>, Detail> {
    let Some(segments) = path_rest.strip_prefix(b"/") else { return Ok(None) };
    match segments.split(|byte| *byte == b'/').nth(index) {
        None => Ok(None),
        Some(segment) => decoded(
            segment,
            "the path segment that names the session has a bad percent-escape",
            "the path segment that names the session does not hold 1 to 64 bytes of 0x21-0x7E",
        ),
    }
}

/// Pairs are separated by `&`; a name without `=` has an empty value. Names are compared as they are, `+` is no space.
fn by_query(query: &[u8], name: &[u8]) -> Result<Option<SessionId>, Detail> {
    let named = query.split(|byte| *byte == b'&').filter_map(|pair| {
        let equals = memchr::memchr(b'=', pair).unwrap_or(pair.len());
        (&pair[..equals] == name).then(|| pair.get(equals + 1..).unwrap_or_default())
    });
    match one(named, "the query parameter that names the session is there twice")? {
        None => Ok(None),
        Some(value) => decoded(
            value,
            "the query parameter that names the session has a bad percent-escape",
            "the query parameter that names the session does not hold 1 to 64 bytes of 0x21-0x7E",
        ),
    }
}

/// The only item, if there is one. Errors: there are two.
fn one<'a>(mut items: impl Iterator<Item = &'a [u8]>, twice: Detail) -> Result<Option<&'a [u8]>, Detail> {
    let first = items.next();
    if items.next().is_some() { Err(twice) } else { Ok(first) }
}

/// Percent-decoding, RFC 3986 section 2.1. `escape` and `bytes` say what is wrong.
fn decoded(text: &[u8], escape: Detail, bytes: Detail) -> Result<Option<SessionId>, Detail> {
    let mut plain = [0; SESSION_ID_BYTES_MAX];
    let mut length = 0;
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        let (byte, after) = match (first, after) {
            (b'%', [high, low, after @ ..]) => (hex(*high).zip(hex(*low)).map(|(high, low)| high << 4 | low).ok_or(escape)?, after),
            (b'%', _) => return Err(escape),
            _ => (first, after),
        };
        *plain.get_mut(length).ok_or(bytes)? = byte;
        length += 1;
        rest = after;
    }
    SessionId::new(&plain[..length]).map(Some).ok_or(bytes)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Http1Decoder, Http1Event, HttpLimits};
    use proptest::prelude::*;

    /// A request that was read by the decoder. `None`: it was refused.
    fn request(head: &[u8]) -> Option<Request> {
        let limits = HttpLimits { body_bytes_max: 0, session_header: b"x-session-id".to_vec() };
        let (mut decoder, mut request) = (Http1Decoder::new(), Request::default());
        let (_, event) = decoder.decode(&limits, head, &mut request);
        (event == Http1Event::Complete).then_some(request)
    }

    fn named(hint: &str, target: &str, headers: &str) -> Result<Option<String>, &'static str> {
        let request = request(format!("GET {target} HTTP/1.1\r\nhost: h\r\n{headers}\r\n").as_bytes()).expect("a good head");
        named_session(&request, &hint.parse().unwrap()).map(|session| session.map(|session| session.to_string()))
    }

    fn is(session: &str) -> Result<Option<String>, &'static str> {
        Ok(Some(session.to_owned()))
    }

    #[test]
    fn headers_name_sessions_once() {
        let of = |headers: &str| named("header:X-Cart", "/f/a", headers);
        assert_eq!(of(""), Ok(None));
        assert_eq!(of("x-session-id: other\r\n"), Ok(None));
        assert_eq!(of("x-CART: \t abc \r\n"), is("abc"));
        assert!(of("x-cart: a\r\nx-cart: a\r\n").unwrap_err().contains("twice"));
        for bad in ["", "a b", "a\tb", &"x".repeat(65)] {
            assert!(of(&format!("x-cart: {bad}\r\n")).is_err(), "{bad:?}");
        }
        assert_eq!(of(&format!("x-cart: {}\r\n", "x".repeat(64))), is(&"x".repeat(64)));
        assert_eq!(of("x-cart-2: a\r\n"), Ok(None));
    }

    #[test]
    fn cookies_name_sessions_as_in_rfc_6265() {
        let of = |headers: &str| named("cookie:sid", "/f/a", headers);
        assert_eq!(of(""), Ok(None));
        assert_eq!(of("cookie: a=1; sid=abc; b=2\r\n"), is("abc"));
        assert_eq!(of("cookie: a=1;sid=abc\r\n"), is("abc"));
        assert_eq!(of("cookie: a=1\r\ncookie: sid=abc=\r\n"), is("abc="));
        assert_eq!(of("cookie: sid=\"abc\"\r\n"), is("abc"));
        assert_eq!(of("cookie: SID=abc; sid2=x; sid; xsid=1\r\n"), Ok(None));
        assert!(of("cookie: sid=a; sid=a\r\n").unwrap_err().contains("twice"));
        assert!(of("cookie: sid=a\r\ncookie: sid=b\r\n").unwrap_err().contains("twice"));
        for bad in ["", "\"\"", "\"a", "a b", "a,b", "a\\b", "\"", &"x".repeat(65)] {
            assert!(of(&format!("cookie: sid={bad}; c=d\r\n")).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn path_segments_name_sessions() {
        let of = |index: u8, rest: &str| named(&format!("path:{index}"), &format!("/f/a{rest}?x=1"), "");
        assert_eq!(of(0, ""), Ok(None));
        assert_eq!(of(0, "/abc"), is("abc"));
        assert_eq!(of(0, "/abc/def"), is("abc"));
        assert_eq!(of(1, "/abc/def"), is("def"));
        assert_eq!(of(2, "/abc/def"), Ok(None));
        assert_eq!(of(0, "/a%41%2f"), is("aA/"));
        for bad in ["/", "//b", "/%", "/%4", "/%zz", "/%20", "/%00", "/a%7F", &format!("/{}", "x".repeat(65))] {
            assert!(of(0, bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn query_parameters_name_sessions() {
        let of = |query: &str| named("query:sid", &format!("/f/a{query}"), "");
        assert_eq!(of(""), Ok(None));
        assert_eq!(of("?a=1&sid2=x&SID=y"), Ok(None));
        assert_eq!(of("?a=1&sid=abc&b"), is("abc"));
        assert_eq!(of("?sid=a+b=c"), is("a+b=c"));
        assert_eq!(of("?sid=%61%26"), is("a&"));
        assert!(of("?sid=a&x=1&sid=a").unwrap_err().contains("twice"));
        assert!(of("?sid=%6").unwrap_err().contains("escape"));
        for bad in ["?sid", "?sid=", "?sid=%", "?sid=%g1", "?sid=%20", &format!("?sid={}", "x".repeat(65))] {
            assert!(of(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_session_comes_through_any_hint(session in "[!#$&'()*+./0-9:<=>?@A-Z^_`a-z{|}~-]{1,64}") {
            let escaped: String = session.bytes().map(|byte| format!("%{byte:02x}")).collect();
            prop_assert_eq!(named("header:h", "/f/a", &format!("h: {session}\r\n")), is(&session));
            prop_assert_eq!(named("cookie:c", "/f/a", &format!("cookie: c={session}\r\n")), is(&session));
            prop_assert_eq!(named("path:1", &format!("/f/a/x/{escaped}"), ""), is(&session));
            prop_assert_eq!(named("query:q", &format!("/f/a?q={escaped}"), ""), is(&session));
        }

        #[test]
        fn no_bytes_make_it_panic(target in "[!-~]{0,80}", value in prop::collection::vec(any::<u8>(), 0..120), index in 0_u8..32) {
            let mut head = format!("GET /f/a/{target} HTTP/1.1\r\nhost: h\r\ncookie: ").into_bytes();
            head.extend_from_slice(&value);
            head.extend_from_slice(b"\r\ncookie: c=\"\r\n\r\n");
            let Some(request) = request(&head) else { return Ok(()) };
            let name = "c".to_owned();
            for hint in [Hint::Header("cookie".to_owned()), Hint::Cookie(name.clone()), Hint::Query(name), Hint::Path(index)] {
                if let Ok(Some(session)) = named_session(&request, &hint) {
                    prop_assert!((1..=64).contains(&session.length()));
                }
            }
        }
    }
}
