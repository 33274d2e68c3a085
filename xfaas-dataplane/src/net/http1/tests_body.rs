//! The rules of bodies: framing, limits, expectations, the chunked coding, and what is dropped.

use super::tests::{Outcome, assert_refused, decode, decode_one, decode_pieces, get_with, limits};
use super::*;

fn post(lines: &str, body: &str) -> String {
    format!("POST /f/echo HTTP/1.1\r\nHost: a\r\n{lines}\r\n{body}")
}

fn chunked(body: &str) -> String {
    post("Transfer-Encoding: chunked\r\n", body)
}

#[test]
fn a_length_is_digits_and_given_once() {
    for (value, body) in [("0", ""), ("5", "hello"), ("  5 ", "hello"), ("0005", "hello"), ("00000000000000000000000000000005", "hello")] {
        let seen = decode_one(post(&format!("Content-Length:{value}\r\n"), body));
        assert_eq!((seen.body, seen.has_body), (body.as_bytes().to_vec(), !body.is_empty()), "{value}");
    }
    for value in ["", "+5", "-5", "5,5", "5, 5", "0x5", "5 5", "5.0", "five", "5;", "\u{665}", "1e2", "5_0"] {
        assert_refused(post(&format!("Content-Length: {value}\r\n"), ""), ErrorCode::BadRequest);
    }
    assert_refused(post("Content-Length: 5\r\nContent-Length: 5\r\n", ""), ErrorCode::BadRequest);
    assert_refused(post("content-length: 5\r\nCONTENT-LENGTH: 6\r\n", ""), ErrorCode::BadRequest);
}

#[test]
fn the_only_transfer_coding_is_chunked_once_and_alone_in_http11() {
    for value in ["chunked", "Chunked", "CHUNKED", " chunked "] {
        assert_eq!(decode_one(post(&format!("Transfer-Encoding:{value}\r\n"), "2\r\nhi\r\n0\r\n\r\n")).body, b"hi");
    }
    for value in
        ["", "gzip", "gzip, chunked", "chunked, chunked", "chunked,", "identity", "chunked;q=1", "xchunked", "\"chunked\"", "chunked\u{b}"]
    {
        assert_refused(post(&format!("Transfer-Encoding: {value}\r\n"), ""), ErrorCode::BadRequest);
    }
    assert_refused(post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", ""), ErrorCode::BadRequest);
    assert_refused(post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", ""), ErrorCode::BadRequest);
    assert_refused(post("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", ""), ErrorCode::BadRequest);
    assert_refused("POST /f/echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", ErrorCode::BadRequest);
}

#[test]
fn a_length_over_the_limit_is_refused_at_the_head() {
    let body = "x".repeat(1000);
    assert_eq!(decode_one(post("Content-Length: 1000\r\n", &body)).body.len(), 1000);
    for value in ["1001", "18446744073709551615", "18446744073709551616", "99999999999999999999999999999999999999"] {
        assert_refused(post(&format!("Content-Length: {value}\r\n"), ""), ErrorCode::BodyTooLarge);
        assert_refused(post(&format!("Expect: 100-continue\r\nContent-Length: {value}\r\n"), ""), ErrorCode::BodyTooLarge);
    }
}

#[test]
fn a_body_cut_short_completes_nothing() {
    for stream in [post("Content-Length: 5\r\n", "hell"), chunked("5\r\nhello\r\n0\r\n"), chunked("5\r\nhello\r\n0\r\nA: b\r\n\r")] {
        let (outcomes, decoder) = decode_pieces(&limits(), [stream.as_bytes()]);
        assert!(outcomes.is_empty() && decoder.phase() == Phase::Body && !decoder.is_reusable());
    }
}

#[test]
fn expectations_are_100_continue_or_refused() {
    let seen = decode_one(post("Expect: 100-continue\r\nContent-Length: 2\r\n", "hi"));
    assert!(seen.expects_continue && seen.has_body && seen.body == b"hi");
    assert!(decode_one(post("EXPECT: 100-Continue\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n")).has_body);
    let seen = decode_one(get_with("Expect: 100-continue\r\n"));
    assert!(seen.expects_continue && !seen.has_body);
    for lines in ["Expect: 200-ok\r\n", "Expect:\r\n", "Expect: 100-continue, x\r\n", "Expect: 100-continue\r\nExpect: 100-continue\r\n"] {
        assert_refused(post(lines, ""), ErrorCode::BadExpectation);
    }
    let http10 = "POST /f/echo HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhi";
    assert!(!decode_one(http10).expects_continue, "HTTP/1.0 knows no 100");
    assert_refused("POST /f/echo HTTP/1.0\r\nExpect: x\r\nContent-Length: 2\r\n\r\n", ErrorCode::BadExpectation);
}

#[test]
fn the_worst_fault_is_the_one_that_is_told() {
    let all = "Expect: x\r\nx-session-id: a b\r\nContent-Length: 9999\r\n";
    assert_refused(post(&format!("{all}Content-Length: 1\r\n"), ""), ErrorCode::BadRequest);
    assert_refused(post(all, ""), ErrorCode::BadSession);
    assert_refused(post("Expect: x\r\nContent-Length: 9999\r\n", ""), ErrorCode::BadExpectation);
    assert_refused("POST /nope HTTP/1.1\r\nHost: a\r\nContent-Length: 9999\r\n\r\n", ErrorCode::BodyTooLarge);
}

#[test]
fn chunks_are_joined_and_extensions_and_trailers_dropped() {
    let table = [
        ("0\r\n\r\n", ""),
        ("000\r\n\r\n", ""),
        ("5\r\nhello\r\n0\r\n\r\n", "hello"),
        ("2\r\nhe\r\n003\r\nllo\r\n00\r\n\r\n", "hello"),
        ("A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", "01234567890123456789"),
        ("5;a\r\nhello\r\n0;b;c=d\r\n\r\n", "hello"),
        ("5;a=b;c=\"d \\\" \t;\u{e9}\";e\r\nhello\r\n0\r\n\r\n", "hello"),
        ("5;a=\"\"\r\nhello\r\n0\r\n\r\n", "hello"),
        ("5\r\nhello\r\n0\r\nA: b\r\nHost: x\r\nContent-Length: 7\r\nC:\r\n\r\n", "hello"),
        ("4\r\n\r\n\r\n\r\n0\r\n\r\n", "\r\n\r\n"),
        ("000000000000000000000000000000005\r\nhello\r\n0\r\n\r\n", "hello"),
    ];
    for (coded, body) in table {
        assert_eq!(decode_one(chunked(coded)).body, body.as_bytes(), "{coded:?}");
    }
}

#[test]
fn chunk_framing_that_is_not_exact_is_malformed() {
    for size_line in [
        "",
        ";a",
        " 5",
        "5 ",
        "5\t",
        "5 ;a",
        "5; a",
        "5;",
        "5;;a",
        "5;a ",
        "5;=b",
        "5;a=",
        "5;a =b",
        "5;a= b",
        "5;a=\"",
        "5;a=\"b\"c",
        "5;a=\"b\x01\"",
        "5;a;",
        "5;a=\"\\\x7f\"",
        "5;a(",
        "0x5",
        "-5",
        "+5",
        "5h",
        "g",
        "5,",
        "5.0",
        "FFFFFFFFFFFFFFFFFFFFg",
        "5;a=b=c",
        "5;a=\"b\n\"",
    ] {
        assert_refused(chunked(&format!("{size_line}\r\nhello\r\n0\r\n\r\n")), ErrorCode::BadRequest);
    }
    for coded in [
        "5\nhello\r\n0\r\n\r\n",
        "5\rhello",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello\r0",
        "5\r\nhello0\r\n\r\n",
        "5\r\nhelloo\r\n",
        "5\r\nhell\r\n0\r\n\r\n",
        "0\n\r\n",
        "0\r\n\n",
        "0\r\n\rx",
        "0\r\r",
        "\r\n5\r\nhello",
        "5;a\nhello",
        "0\r\nA: b\n\r\n",
        "0\r\nA\r\n",
        "0\r\n: b\r\n",
        "0\r\nA : b\r\n",
        "0\r\n A: b\r\n",
        "0\r\nA: b\r\n c\r\n",
        "0\r\nA: \0\r\n",
        "0\r\nA: b\rc",
        "0\r\nA: \x7f\r\n",
        "0\r\nA(: b\r\n",
    ] {
        assert_refused(chunked(coded), ErrorCode::BadRequest);
    }
}

#[test]
fn a_chunk_over_the_limit_is_refused_when_its_size_is_known() {
    let half = "x".repeat(500);
    assert_eq!(decode_one(chunked(&format!("1f4\r\n{half}\r\n1f4\r\n{half}\r\n0\r\n\r\n"))).body.len(), 1000);
    assert_refused(chunked(&format!("1f4\r\n{half}\r\n1f4\r\n{half}\r\n1\r\n")), ErrorCode::BodyTooLarge);
    for size in ["3e9", "FFFFFFFFFFFFFFFF", "10000000000000000", "FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF;a=b", &"F".repeat(20_000)] {
        assert_refused(chunked(&format!("{size}\r\n")), ErrorCode::BodyTooLarge);
    }
}

#[test]
fn extensions_and_trailers_count_as_head() {
    let many = |chunk: &str, count: usize, end: &str| chunked(&format!("{}{end}", chunk.repeat(count)));
    assert_refused(chunked(&format!("1;{}\r\n", "a".repeat(20_000))), ErrorCode::HeadTooLarge);
    assert_refused(many("1;aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\nx\r\n", 400, ""), ErrorCode::HeadTooLarge);
    assert_refused(chunked(&format!("0\r\nA: {}\r\n\r\n", "b".repeat(20_000))), ErrorCode::HeadTooLarge);
    assert_refused(chunked(&format!("{}5\r\n", "0".repeat(20_000))), ErrorCode::HeadTooLarge);
    // Host and Transfer-Encoding are two of the hundred.
    decode_one(chunked(&format!("0\r\n{}\r\n", "A: b\r\n".repeat(98))));
    assert_refused(chunked(&format!("0\r\n{}\r\n", "A: b\r\n".repeat(99))), ErrorCode::HeadTooLarge);
    // Plain chunks of one byte do not: a body in many pieces is as good as any.
    assert_eq!(decode_one(many("1\r\nx\r\n", 1000, "0\r\n\r\n")).body.len(), 1000);
    // To the byte: the head, then `;`, the name, and nothing for the line ends of the framing.
    let head_bytes = chunked("").len();
    let room = 16_384 - head_bytes - 1;
    assert_eq!(decode_one(chunked(&format!("1;{}\r\nx\r\n0\r\n\r\n", "a".repeat(room)))).body, b"x");
    assert_refused(chunked(&format!("1;{}\r\nx\r\n0\r\n\r\n", "a".repeat(room + 1))), ErrorCode::HeadTooLarge);
}

#[test]
fn a_path_without_a_function_is_answered_after_its_body_was_dropped() {
    let head = "POST /nope HTTP/1.1\r\nHost: a\r\n";
    let no_route = Outcome::Refused(ErrorCode::NoRoute, true);
    for body in ["Content-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nA: b\r\n\r\n", "\r\n"] {
        let outcomes = decode(format!("{head}{body}{}", get_with("")).as_bytes());
        assert_eq!(outcomes.len(), 2, "{body:?}");
        assert_eq!(outcomes[0], no_route);
    }
    assert_refused(format!("{head}Transfer-Encoding: chunked\r\n\r\n3e9\r\n"), ErrorCode::BodyTooLarge);
    assert_refused(format!("{head}Expect: 100-continue\r\nContent-Length: 5\r\n\r\n"), ErrorCode::NoRoute);
    assert!(decode(format!("{head}Content-Length: 5\r\n\r\nhell").as_bytes()).is_empty(), "not before the body was read");
}

#[test]
fn a_refused_request_can_have_its_body_dropped() {
    for body in ["Content-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"] {
        let stream = format!("POST /f/none HTTP/1.1\r\nHost: a\r\n{body}{}", get_with(""));
        let (mut decoder, mut request) = (Http1Decoder::new(), Request::default());
        let (head_bytes, event) = decoder.decode(&limits(), stream.as_bytes(), &mut request);
        assert_eq!(event, Http1Event::Head { expects_continue: false, has_body: true });
        assert!(!decoder.is_reusable(), "the body is unread");
        decoder.discard_body();
        let (body_bytes, event) = decoder.decode(&limits(), &stream.as_bytes()[head_bytes..], &mut request);
        assert_eq!((event, request.body()), (Http1Event::Complete, &b""[..]));
        assert!(decoder.is_reusable());
        decoder.decode(&limits(), &stream.as_bytes()[head_bytes + body_bytes..], &mut request);
        assert_eq!(request.function_name(), b"echo");
    }
    let stream = chunked("3e8\r\n");
    let (mut decoder, mut request) = (Http1Decoder::new(), Request::default());
    let (taken, _) = decoder.decode(&limits(), stream.as_bytes(), &mut request);
    decoder.discard_body();
    decoder.decode(&limits(), &stream.as_bytes()[taken..], &mut request);
    decoder.decode(&limits(), &[b'x'; 1000], &mut request);
    let (_, event) = decoder.decode(&limits(), b"\r\n1\r\n", &mut request);
    assert!(matches!(event, Http1Event::Refused { code: ErrorCode::BodyTooLarge, .. }), "the limit holds for what is dropped, too");
}

#[test]
fn a_request_without_a_body_completes_without_more_input() {
    let (mut decoder, mut request) = (Http1Decoder::new(), Request::default());
    let stream = get_with("");
    let (taken, event) = decoder.decode(&limits(), stream.as_bytes(), &mut request);
    assert_eq!((taken, event), (stream.len(), Http1Event::Complete));
    let stream = get_with("Expect: 100-continue\r\n");
    let (taken, event) = decoder.decode(&limits(), stream.as_bytes(), &mut request);
    assert_eq!((taken, event), (stream.len(), Http1Event::Head { expects_continue: true, has_body: false }));
    assert_eq!(decoder.decode(&limits(), b"", &mut request), (0, Http1Event::Complete));
}
