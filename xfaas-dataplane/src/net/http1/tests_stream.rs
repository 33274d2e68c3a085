//! Whole streams: splits anywhere, pipelining, phases and progress, random bytes, and the cost of dripping.

use proptest::prelude::*;

use super::tests::{Outcome, Seen, decode_pieces, get_with, limits};
use super::*;

/// How a test request sends its body.
#[derive(Clone, Debug)]
enum Coding {
    Length,
    /// Chunk sizes, as often as needed; an extension for every chunk; the trailers.
    Chunked {
        sizes: Vec<usize>,
        extension: String,
        trailers: String,
    },
}

fn any_coding() -> impl Strategy<Value = Coding> {
    let extension = prop_oneof![Just(String::new()), "(;[a-z!]{1,3}(=([A-Z]{1,3}|\"[a-z ;]{0,5}\"))?){1,2}"];
    let trailers = "([A-Za-z-]{1,8}:[ -~]{0,10}\r\n){0,3}";
    let chunked = (prop::collection::vec(1_usize..40, 1..4), extension, trailers)
        .prop_map(|(sizes, extension, trailers)| Coding::Chunked { sizes, extension, trailers });
    prop_oneof![Just(Coding::Length), chunked]
}

/// A valid request: its bytes and what must be seen of it.
fn any_request() -> impl Strategy<Value = (Vec<u8>, Seen)> {
    let line = ("[A-Z]{1,7}", "[A-Za-z0-9_.-]{1,64}", "(/[!$-~&&[^?]]{0,20})?", "(\\?[!$-~]{0,20})?", 0_usize..3);
    let fields = (prop::option::of("[!-~]{1,64}"), "([A-Z][a-z]{1,3}-x:[ -~]{0,10}\r\n){0,4}", any::<bool>());
    let body = (prop::collection::vec(any::<u8>(), 0..200), any_coding(), any::<bool>());
    (line, fields, body).prop_map(|(line, fields, (body, coding, expects_continue))| {
        let (method, function_name, path_rest, query, empty_lines) = line;
        let (session, others, closes) = fields;
        let mut stream = "\r\n".repeat(empty_lines).into_bytes();
        stream.extend(format!("{method} /f/{function_name}{path_rest}{query} HTTP/1.1\r\nHost: a\r\n{others}").into_bytes());
        stream.extend(session.iter().flat_map(|session| format!("x-session-id: {session}\r\n").into_bytes()));
        stream.extend(if closes { &b"Connection: close\r\n"[..] } else { b"" });
        stream.extend(if expects_continue { &b"Expect: 100-continue\r\n"[..] } else { b"" });
        let has_body = !body.is_empty() || matches!(coding, Coding::Chunked { .. });
        push_body(&mut stream, &body, &coding);
        let query = query.strip_prefix('?').unwrap_or("").to_owned();
        (stream, Seen { method, function_name, path_rest, query, body, session, keep_alive: !closes, expects_continue, has_body })
    })
}

/// The framing fields, the head's end and the coded body.
fn push_body(stream: &mut Vec<u8>, body: &[u8], coding: &Coding) {
    let Coding::Chunked { sizes, extension, trailers } = coding else {
        stream.extend(format!("Content-Length: {}\r\n\r\n", body.len()).into_bytes());
        stream.extend(body);
        return;
    };
    stream.extend(b"Transfer-Encoding: chunked\r\n\r\n");
    let (mut rest, mut sizes) = (body, sizes.iter().cycle());
    while !rest.is_empty() {
        let (chunk, after) = rest.split_at((*sizes.next().expect("a cycle has no end")).min(rest.len()));
        stream.extend(format!("{:X}{extension}\r\n", chunk.len()).into_bytes());
        stream.extend(chunk);
        stream.extend(b"\r\n");
        rest = after;
    }
    stream.extend(format!("0{extension}\r\n{trailers}\r\n").into_bytes());
}

/// The stream cut at the given places.
fn cut<'a>(stream: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut places: Vec<usize> = cuts.iter().map(|index| index.index(stream.len() + 1)).collect();
    places.extend([0, stream.len()]);
    places.sort_unstable();
    places.windows(2).map(|ends| &stream[ends[0]..ends[1]]).collect()
}

/// Bytes that come close to a request, or do not.
fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    let fragment = prop::sample::select(vec![
        "GET ",
        "/f/echo",
        " HTTP/1.1",
        " HTTP/1.0",
        "\r\n",
        "\r\n\r\n",
        "Host: a\r\n",
        "Content-Length: 3\r\n",
        "Transfer-Encoding: chunked\r\n",
        "3",
        ";a=\"",
        "0\r\n",
        "abc",
        "\n",
        "\r",
        " ",
        ":",
        "\0",
        "POST /f/echo HTTP/1.1\r\nHost: a\r\n",
        "x-session-id: s\r\n",
        "Expect: 100-continue\r\n",
        "\u{e9}",
        "*",
    ]);
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..300),
        prop::collection::vec(fragment, 0..20).prop_map(|fragments| fragments.concat().into_bytes()),
    ]
}

/// Heads that mostly repeat: a few forms, session IDs of all lengths, now and then a byte that is changed.
fn any_repeating_heads() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let form = prop::sample::select(vec![
        ("GET /f/a HTTP/1.1\r\nHost: h\r\nx-session-id: ", "\r\nA: b\r\n\r\n"),
        ("GET /f/a HTTP/1.1\r\nHost: h\r\nX-Session-Id: ", "  \r\nA: b\r\n\r\n"),
        ("HEAD /f/b/c?d HTTP/1.0\r\nx-session-id:", "\r\nConnection: keep-alive\r\n\r\n"),
        ("POST /f/a HTTP/1.1\r\nHost: h\r\nx-session-id: ", "\r\nContent-Length: 2\r\n\r\nhi"),
        ("POST /nope HTTP/1.1\r\nHost: h\r\nx-session-id: ", "\r\nContent-Length: 2\r\n\r\nhi"),
        ("POST /f/a HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nx-session-id: ", "\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("GET /f/a HTTP/1.1\r\nHost: h\r\nA: ", "\r\n\r\n"),
    ]);
    let change = prop::option::weighted(0.2, (any::<prop::sample::Index>(), any::<u8>()));
    let head = (form, "[!-~]{1,66}|[ -~]{0,5}", change).prop_map(|((before, after), session, change)| {
        let mut head = format!("{before}{session}{after}").into_bytes();
        if let Some((at, value)) = change {
            let at = at.index(head.len());
            head[at] = value;
        }
        head
    });
    (prop::collection::vec(head, 1..4), prop::collection::vec(any::<prop::sample::Index>(), 2..8))
        .prop_map(|(heads, order)| order.iter().map(|index| heads[index.index(heads.len())].clone()).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn a_head_that_is_known_again_means_what_it_meant_when_it_was_read(heads in any_repeating_heads()) {
        let (whole, _) = decode_pieces(&limits(), heads.iter().map(|head| &head[..]));
        // Byte by byte no head is ever whole, so none is known again.
        let stream = heads.concat();
        let (bytewise, _) = decode_pieces(&limits(), stream.chunks(1));
        prop_assert_eq!(whole, bytewise);
    }
}

#[test]
fn heads_are_known_again_whatever_session_they_name() {
    let (mut decoder, mut request, limits) = (Http1Decoder::new(), Request::default(), limits());
    for session in ["a", "bc", &"d".repeat(64)] {
        let with = |session: &str| format!("GET /f/echo/x?q HTTP/1.1\r\nHost: a\r\nx-session-id: {session}\r\nB: c\r\n\r\n");
        let head = with(session);
        let (taken, event) = decoder.decode(&limits, head.as_bytes(), &mut request);
        assert_eq!((taken, event), (head.len(), Http1Event::Complete));
        assert_eq!(request.session().map(|session| session.as_str()), Some(session));
        assert_eq!((request.header(b"b"), request.path_rest(), request.query()), (Some(&b"c"[..]), &b"/x"[..], &b"q"[..]));
        let remembered = decoder.remembered.as_ref().expect("the first head was read");
        assert!(remembered.recognise(with("e").as_bytes(), &mut request).is_some());
        assert!(remembered.recognise(head.replace("B:", "b:").as_bytes(), &mut request).is_none());
        assert!(remembered.recognise(with("f g").as_bytes(), &mut request).is_none());
        assert!(remembered.recognise(&head.as_bytes()[..head.len() - 1], &mut request).is_none());
    }
}

proptest! {
    #[test]
    fn any_split_of_pipelined_requests_gives_the_same_requests(
        requests in prop::collection::vec(any_request(), 1..5), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let stream: Vec<u8> = requests.iter().flat_map(|(bytes, _)| bytes.clone()).collect();
        let expected: Vec<Outcome> = requests.into_iter().map(|(_, seen)| Outcome::Complete(seen)).collect();
        let (whole, _) = decode_pieces(&limits(), [&stream[..]]);
        prop_assert_eq!(&whole, &expected);
        let (pieces, _) = decode_pieces(&limits(), cut(&stream, &cuts));
        prop_assert_eq!(&pieces, &expected);
    }

    #[test]
    fn any_bytes_are_consumed_or_refused_alike_however_they_are_split(
        stream in any_bytes(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let (whole, decoder) = decode_pieces(&limits(), [&stream[..]]);
        let (pieces, other) = decode_pieces(&limits(), cut(&stream, &cuts));
        prop_assert_eq!(whole, pieces);
        prop_assert_eq!((decoder.phase(), decoder.is_reusable()), (other.phase(), other.is_reusable()));
    }

    #[test]
    fn one_changed_byte_never_panics_and_never_depends_on_the_split(
        request in any_request(), at: prop::sample::Index, value: u8, cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let mut stream = request.0;
        let at = at.index(stream.len());
        stream[at] = value;
        // A changed byte can keep a request open: the next one then ends it or is part of its body.
        stream.extend(get_with("").into_bytes());
        let (whole, _) = decode_pieces(&limits(), [&stream[..]]);
        let (pieces, _) = decode_pieces(&limits(), cut(&stream, &cuts));
        prop_assert_eq!(whole, pieces);
    }
}

#[test]
fn phases_and_progress_follow_the_stream() {
    let (mut decoder, mut request, limits) = (Http1Decoder::new(), Request::default(), limits());
    let mut feed = |decoder: &mut Http1Decoder, piece: &[u8]| decoder.decode(&limits, piece, &mut request);
    assert_eq!(feed(&mut decoder, b""), (0, Http1Event::NeedMore));
    assert_eq!((decoder.phase(), decoder.progress()), (Phase::BetweenRequests, 0));
    assert_eq!(feed(&mut decoder, b"P"), (1, Http1Event::NeedMore));
    assert_eq!((decoder.phase(), decoder.is_reusable()), (Phase::Head, true));
    feed(&mut decoder, b"OST /f/echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    assert_eq!((decoder.phase(), decoder.progress()), (Phase::Body, 0));
    feed(&mut decoder, b"5");
    assert_eq!((decoder.phase(), decoder.progress()), (Phase::Body, 1));
    feed(&mut decoder, b"\r\nhel");
    assert_eq!(decoder.progress(), 6);
    assert_eq!(feed(&mut decoder, b"lo\r\n0\r\n\r\nGET"), (9, Http1Event::Complete));
    assert_eq!((decoder.phase(), decoder.progress()), (Phase::BetweenRequests, 0));
}

#[test]
fn after_a_refusal_all_input_is_swallowed() {
    let (mut decoder, mut request) = (Http1Decoder::new(), Request::default());
    let (taken, event) = decoder.decode(&limits(), b"GET\n and more", &mut request);
    assert!(taken == 13 && matches!(event, Http1Event::Refused { .. }));
    let good = get_with("");
    assert_eq!(decoder.decode(&limits(), good.as_bytes(), &mut request), (good.len(), Http1Event::NeedMore));
    assert_eq!((decoder.phase(), decoder.is_reusable()), (Phase::Refused, false));
}

#[test]
fn an_idle_decoder_is_small_and_holds_no_more_than_a_short_head() {
    const { assert!(size_of::<Http1Decoder>() <= 128) };
    let stream = get_with(&format!("A: {}\r\n", "x".repeat(5_000)));
    let (mut decoder, mut request) = (Http1Decoder::new(), Request::default());
    for piece in stream.as_bytes().chunks(100) {
        assert!(decoder.gathered.capacity() <= 16_384);
        decoder.decode(&limits(), piece, &mut request);
    }
    assert_eq!((decoder.phase(), decoder.gathered.capacity()), (Phase::BetweenRequests, 0));
    let (mut decoder, stream) = (Http1Decoder::new(), stream.into_bytes());
    decoder.decode(&limits(), &stream, &mut request);
    assert!(decoder.remembered.is_none(), "too long to be kept");
}
