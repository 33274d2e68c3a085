//! Feeds any bytes to the HTTP/1.1 decoder, whole and in pieces: it must not panic, must not hang, must keep its limits, and must come to the
//! same requests and refusals however the bytes are split.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(dead_code, unused_imports, reason = "the target uses a part of the module")]
#[path = "../../xfaas-dataplane/src/net/mod.rs"]
mod net;

use net::{ErrorCode, Http1Decoder, Http1Event, HttpLimits, Phase, Request};

const BODY_BYTES_MAX: usize = 4096;

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Complete { function_name: Vec<u8>, path_rest: Vec<u8>, body: Vec<u8>, session: Option<Vec<u8>> },
    Refused { code: ErrorCode, is_reusable: bool },
}

fn decode<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Vec<Outcome> {
    let limits = HttpLimits { body_bytes_max: BODY_BYTES_MAX, session_header: b"x-session-id".to_vec() };
    let (mut decoder, mut request, mut outcomes) = (Http1Decoder::new(), Request::default(), Vec::new());
    for mut input in pieces {
        let mut idle_steps = 0;
        loop {
            let (taken, event) = decoder.decode(&limits, input, &mut request);
            input = &input[taken..];
            idle_steps = if taken == 0 { idle_steps + 1 } else { 0 };
            assert!(idle_steps <= 2, "no step forward");
            assert!(request.body().len() <= BODY_BYTES_MAX);
            match event {
                Http1Event::NeedMore => {
                    assert!(input.is_empty());
                    break;
                }
                Http1Event::Head { .. } => assert_eq!(decoder.phase(), Phase::Body),
                Http1Event::Complete => outcomes.push(Outcome::Complete {
                    function_name: request.function_name().to_vec(),
                    path_rest: request.path_rest().to_vec(),
                    body: request.body().to_vec(),
                    session: request.session().map(|session| session.as_bytes().to_vec()),
                }),
                Http1Event::Refused { code, .. } => {
                    let is_reusable = decoder.is_reusable();
                    assert!(!(is_reusable && code.closes()));
                    outcomes.push(Outcome::Refused { code, is_reusable });
                    if !is_reusable {
                        return outcomes;
                    }
                }
            }
        }
    }
    outcomes
}

fuzz_target!(|data: &[u8]| {
    let Some((&piece_bytes, stream)) = data.split_first() else { return };
    let whole = decode(std::iter::once(stream));
    assert_eq!(whole, decode(stream.chunks(usize::from(piece_bytes).max(1))));
});
