//! Tests of `link`: a primary is played with the encoders that the real one uses.

use super::*;
use proptest::prelude::*;
use xfaas_common::ids::{AppHash, FunctionHash, SessionId};
use xfaas_common::limits::RPC_FRAME_BYTES_MAX;
use xfaas_common::rpc::{Asker, StateRead, encode_error};

const NO_FUNCTION: FunctionHash = FunctionHash(0);

fn link() -> Link<u32> {
    Link::new(&[], 0)
}

/// Asks a read on behalf of `who`. Output: the request's ID.
fn ask(link: &mut Link<u32>, who: u32) -> u64 {
    let mut id = 0;
    link.ask(who, |request_id, out| {
        id = request_id;
        let asker = Asker { request_id, function: NO_FUNCTION, session: SessionId::new(b"s").unwrap() };
        StateRead { invocation: 1, app: AppHash::NONE, deadline_ms: 0, mode: 0, op: 0, bytes_max: 8, key: b"n" }.encode(&asker, out);
    });
    id
}

fn reply(request_id: u64, result: i32, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    StateReply { result, value }.encode(request_id, NO_FUNCTION, &mut out);
    out
}

fn kinds(mut bytes: &[u8]) -> Vec<u8> {
    let mut kinds = Vec::new();
    while let Next::Frame(frame) = next_frame(bytes) {
        kinds.push(frame.head.kind);
        bytes = &bytes[frame.used..];
    }
    assert!(bytes.is_empty());
    kinds
}

#[test]
fn answers_find_their_askers_in_any_order_and_once() {
    let mut link = link();
    let ids: Vec<u64> = (0..3).map(|who| ask(&mut link, who)).collect();
    link.receive(&[reply(ids[2], 2, b"cc"), reply(ids[0], -1, b""), reply(ids[2], 9, b"again"), reply(77, 9, b"")].concat(), 1);
    assert_eq!(link.next_event(), Ok(Some(Event::Answered { asker: 2, result: 2, value: b"cc" })));
    assert_eq!(link.next_event(), Ok(Some(Event::Answered { asker: 0, result: -1, value: b"" })));
    assert_eq!(link.next_event(), Ok(None));
    // The place of a request is used again, its ID is not.
    let next = ask(&mut link, 5);
    assert!(!ids.contains(&next));
    let mut refusal = Vec::new();
    encode_error(next, 9, b"lock_wait", &mut refusal);
    link.receive(&refusal, 2);
    assert_eq!(link.next_event(), Ok(Some(Event::Refused { asker: 5, status: 9, text: b"lock_wait" })));
    assert_eq!(link.lose().collect::<Vec<_>>(), [1]);
}

#[test]
fn requests_leave_together_and_a_ping_is_answered() {
    let mut link = link();
    ask(&mut link, 0);
    ask(&mut link, 1);
    let mut ping = Vec::new();
    encode_empty(KIND_PING, 3, &mut ping);
    encode_empty(KIND_CHANGED, 0, &mut ping);
    link.receive(&ping, 1);
    assert_eq!(link.next_event(), Ok(None));
    assert_eq!(kinds(&link.take_out(Vec::new).unwrap()), [16, 16, KIND_PONG]);
    assert_eq!(link.take_out(Vec::new), None);
}

#[test]
fn it_pings_twice_a_second_more_often_while_someone_waits_and_notices_silence() {
    let mut link = link();
    let pings =
        |link: &mut Link<u32>| link.take_out(Vec::new).map_or(0, |out| kinds(&out).iter().filter(|kind| **kind == KIND_PING).count());
    assert_eq!(link.tick(499 * MS_NS), Health::Alive);
    assert_eq!(pings(&mut link), 0);
    assert_eq!(link.tick(500 * MS_NS), Health::Alive);
    assert_eq!(pings(&mut link), 1);
    ask(&mut link, 0);
    link.tick(551 * MS_NS);
    link.tick(560 * MS_NS);
    assert_eq!(pings(&mut link), 1);
    assert_eq!(link.tick(1_999 * MS_NS), Health::Alive);
    link.receive(&[], 1_999 * MS_NS);
    assert_eq!(link.tick(3_998 * MS_NS), Health::Alive);
    assert_eq!(link.tick(3_999 * MS_NS), Health::Silent);
}

#[test]
fn what_is_waiting_is_bounded() {
    let mut link = link();
    assert!(link.has_room());
    link.tell(|out| out.resize(RPC_ASKED_BYTES_MAX, 0));
    assert!(!link.has_room());
    drop(link.take_out(Vec::new));
    for who in 0..RPC_REQUESTS_MAX as u32 {
        ask(&mut link, who);
    }
    drop(link.take_out(Vec::new));
    assert!(!link.has_room());
    assert_eq!(link.lose().count(), RPC_REQUESTS_MAX);
    assert!(link.has_room());
}

#[test]
fn what_no_primary_sends_ends_the_connection() {
    let mut http = link();
    http.receive(b"HTTP/1.1 400 Bad Request\r\n", 0);
    assert_eq!(http.next_event(), Err(LinkFault::Frame(FrameFault::BadMagic)));
    let mut asked = link();
    let mut hello = Vec::new();
    encode_empty(19, 0, &mut hello);
    asked.receive(&hello, 0);
    assert_eq!(asked.next_event(), Err(LinkFault::UnexpectedKind { kind: 19 }));
}

proptest! {
    #[test]
    fn frames_cut_anywhere_are_the_same_frames(sizes in prop::collection::vec(0_usize..40_000, 1..12), cuts in prop::collection::vec(1_usize..9_000, 1..20)) {
        let mut link = link();
        let mut stream = Vec::new();
        for (who, size) in sizes.iter().enumerate() {
            let id = ask(&mut link, who as u32);
            stream.extend(reply(id, *size as i32, &vec![who as u8; *size]));
        }
        let (mut rest, mut seen, mut cuts) = (&stream[..], 0_usize, cuts.iter().cycle());
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
            link.receive(now, 1);
            rest = later;
            while let Some(event) = link.next_event().unwrap() {
                let Event::Answered { asker, result, value } = event else { panic!("{event:?}") };
                prop_assert_eq!((asker as usize, result as usize), (seen, sizes[seen]));
                prop_assert!(value.len() == sizes[seen] && value.iter().all(|byte| *byte == seen as u8));
                seen += 1;
            }
        }
        prop_assert_eq!(seen, sizes.len());
        prop_assert!(link.input.capacity() <= RPC_FRAME_BYTES_MAX);
    }

    #[test]
    fn no_bytes_make_it_panic(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..10), prefix: bool) {
        let mut link = link();
        ask(&mut link, 0);
        for chunk in chunks {
            if prefix {
                link.receive(b"XF\x01", 0);
            }
            link.receive(&chunk, 0);
            while let Ok(Some(_)) = link.next_event() {}
        }
    }
}
