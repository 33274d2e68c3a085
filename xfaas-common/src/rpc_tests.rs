//! Properties of the RPC frames: what is encoded decodes to itself, in one piece and in any two; garbage never panics.

use super::*;
use crate::wire::{KIND_PING, KIND_PONG};
use proptest::prelude::*;

fn session() -> impl Strategy<Value = SessionId> {
    "[!-~]{1,64}".prop_map(|text| SessionId::new(text.as_bytes()).unwrap())
}

fn asker() -> impl Strategy<Value = Asker> {
    (any::<u64>(), any::<u32>(), session()).prop_map(|(request_id, function, session)| Asker {
        request_id,
        function: FunctionHash(function),
        session,
    })
}

fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..=most)
}

/// The one frame that `encoded` is; every shorter prefix asks for more.
fn only_frame(encoded: &[u8], cut: usize) -> Frame<'_> {
    let Next::Frame(frame) = next_frame(encoded) else { panic!("{:?}", next_frame(encoded)) };
    assert_eq!(frame.used, encoded.len());
    let cut = cut % encoded.len();
    match next_frame(&encoded[..cut]) {
        Next::NeedMore { bytes } => assert!(bytes > cut && bytes <= encoded.len()),
        other => panic!("{other:?} of {cut} bytes"),
    }
    frame
}

proptest! {
    #[test]
    fn reads_come_back(who in asker(), invocation: u64, app: u64, deadline_ms: u32, mode: u8, op: u8, bytes_max: u32, key in bytes(600), cut: usize) {
        let read = StateRead { invocation, app: AppHash(app), deadline_ms, mode, op, bytes_max, key: &key };
        let mut out = Vec::new();
        read.encode(&who, &mut out);
        let frame = only_frame(&out, cut);
        prop_assert_eq!(frame.head, who.head(KIND_STATE_READ));
        prop_assert_eq!(StateRead::decode(frame.payload), Ok(read));
        prop_assert_eq!(StateRead::decode(&frame.payload[..frame.payload.len() - 1]), Err(FrameFault::BadPayload));
    }

    #[test]
    fn writes_come_back(who in asker(), invocation: u64, app: u64, mode: u8, op in prop_oneof![0..4_u8, any::<u8>()], key in bytes(300), value in bytes(5_000), cut: usize) {
        let write = StateWrite { invocation, app: AppHash(app), deadline_ms: 7, mode, op, key: &key, value: &value };
        let mut out = Vec::new();
        write.encode(&who, &mut out);
        let frame = only_frame(&out, cut);
        prop_assert_eq!(frame.head.session, Some(who.session));
        let is_empty_enough = (op != WRITE_END || value.is_empty()) && (!matches!(op, WRITE_END | WRITE_COMMIT) || key.is_empty());
        prop_assert_eq!(StateWrite::decode(frame.payload), if is_empty_enough { Ok(write) } else { Err(FrameFault::BadPayload) });
        let longer = [frame.payload, b"x"].concat();
        prop_assert_eq!(StateWrite::decode(&longer), Err(FrameFault::BadPayload));
    }

    #[test]
    fn commits_come_back(writes in prop::collection::vec((bytes(300), bytes(300)), 0..20)) {
        let mut list = Vec::new();
        CommitWrites::encode_head(writes.len() as u32, &mut list);
        for (key, value) in &writes {
            CommitWrites::encode_write(key, value, &mut list);
        }
        let decoded = CommitWrites::decode(&list).unwrap();
        prop_assert_eq!(decoded.len(), writes.len());
        let decoded: Vec<_> = decoded.map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
        prop_assert_eq!(decoded, writes);
        prop_assert!(CommitWrites::decode(&list[..list.len() - 1]).is_err());
        list.push(0);
        prop_assert!(CommitWrites::decode(&list).is_err());
    }

    #[test]
    fn answers_come_back(request_id: u64, function: u32, result: i32, value in bytes(3_000), status: u8, cut: usize) {
        let mut out = Vec::new();
        let reply = StateReply { result, value: &value };
        reply.encode(request_id, FunctionHash(function), &mut out);
        let frame = only_frame(&out, cut);
        prop_assert_eq!((frame.head.request_id, frame.head.function.0), (request_id, function));
        prop_assert_eq!(StateReply::decode(frame.payload), Ok(reply));
        out.clear();
        encode_error(request_id, status, &value, &mut out);
        let frame = only_frame(&out, cut);
        prop_assert_eq!((frame.head.kind, frame.head.status, frame.payload), (KIND_ERROR, status, &value[..]));
    }

    #[test]
    fn hellos_and_welcomes_come_back(request_id: u64, protocol: u32, shard: u16, container: u64, text in bytes(500), cut: usize) {
        let mut out = Vec::new();
        let hello = Hello { protocol, shard, container };
        hello.encode(request_id, &mut out);
        prop_assert_eq!(Hello::decode(only_frame(&out, cut).payload), Ok(hello));
        out.clear();
        let welcome = Welcome { shard, text: &text };
        welcome.encode(request_id, &mut out);
        prop_assert_eq!(Welcome::decode(only_frame(&out, cut).payload), Ok(welcome));
    }

    #[test]
    fn snapshots_come_back(values in prop::collection::vec(prop::option::of(bytes(100)), 0..20)) {
        let mut list = Vec::new();
        for value in &values {
            encode_snapshot_value(value.as_deref(), &mut list);
        }
        let mut rest = &list[..];
        for value in &values {
            prop_assert_eq!(take_snapshot_value(&mut rest), Ok(value.as_deref()));
        }
        prop_assert!(rest.is_empty() && take_snapshot_value(&mut rest).is_err());
    }

    #[test]
    fn frames_of_a_stream_come_one_after_another(ids in prop::collection::vec(any::<u64>(), 1..20)) {
        let mut out = Vec::new();
        for id in &ids {
            encode_empty(if id % 2 == 0 { KIND_PING } else { KIND_PONG }, *id, &mut out);
        }
        let mut rest = &out[..];
        for id in &ids {
            let Next::Frame(frame) = next_frame(rest) else { panic!("a frame is there") };
            prop_assert_eq!(frame.head.request_id, *id);
            rest = &rest[frame.used..];
        }
        prop_assert_eq!(next_frame(rest), Next::NeedMore { bytes: HEADER_BYTES });
    }

    #[test]
    fn garbage_is_refused_or_waits_and_never_panics(mut garbage in bytes(400), spoil in any::<bool>(), kind: u8) {
        if spoil && garbage.len() >= HEADER_BYTES {
            // A good beginning, so that the rest is looked at too.
            garbage[..4].copy_from_slice(&[b'X', b'F', VERSION, kind]);
            garbage[4..6].fill(0);
            garbage[20..22].fill(0);
            garbage[24..32].fill(0);
        }
        if let Next::Frame(frame) = next_frame(&garbage) {
            prop_assert!(frame.used <= garbage.len());
        }
        let read = StateRead::decode(&garbage);
        prop_assert!(read.is_err() || garbage.len() >= READ_HEAD_BYTES);
        prop_assert_eq!(StateReply::decode(&garbage).is_ok(), garbage.len() >= REPLY_HEAD_BYTES);
        prop_assert_eq!(Hello::decode(&garbage).is_ok(), garbage.len() == HELLO_BYTES);
        prop_assert_eq!(Welcome::decode(&garbage).is_ok(), garbage.len() >= WELCOME_HEAD_BYTES);
        prop_assert!(ModuleChunk::decode(&garbage).is_err() || garbage.len() >= CHUNK_HEAD_BYTES);
        if let Ok(write) = StateWrite::decode(&garbage) {
            prop_assert!(CommitWrites::decode(write.value).is_err() || write.value.len() >= COMMIT_HEAD_BYTES);
        }
        if let Ok(writes) = CommitWrites::decode(&garbage) {
            prop_assert_eq!(writes.len(), Iterator::count(writes));
        }
        let mut rest = &garbage[..];
        while take_snapshot_value(&mut rest).is_ok() {}
        prop_assert!(snapshot_keys(&garbage).count() <= garbage.len() + 1);
    }
}

#[test]
fn every_rule_of_the_header_is_held() {
    let mut good = Vec::new();
    encode_empty(KIND_PING, 1, &mut good);
    let with = |change: &dyn Fn(&mut [u8])| {
        let mut bytes = good.clone();
        change(&mut bytes);
        match next_frame(&bytes) {
            Next::Malformed(fault) => fault,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(with(&|b| b[0] = b'Y'), FrameFault::BadMagic);
    assert_eq!(with(&|b| b[2] = 2), FrameFault::BadVersion);
    assert_eq!(with(&|b| b[4] = 1), FrameFault::BadReserved);
    assert_eq!(with(&|b| b[7] = 1), FrameFault::BadReserved);
    assert_eq!(with(&|b| b[31] = 1), FrameFault::BadReserved);
    assert_eq!(with(&|b| b[6] = 1), FrameFault::BadSession, "a ping names no session");
    assert_eq!(with(&|b| b[3] = KIND_STATE_READ), FrameFault::BadSession, "a read names one");
    assert_eq!(with(&|b| b[6] = 65), FrameFault::BadSession);
    assert_eq!(with(&|b| b[16] = 1), FrameFault::BadReserved, "a ping is about no function");
    assert_eq!(with(&|b| (b[3], b[19]) = (KIND_HELLO, 1)), FrameFault::BadReserved);
    assert_eq!(with(&|b| b[23] = 1), FrameFault::BadPayload, "a ping is empty, which is seen before its payload is there");
    assert_eq!(with(&|b| b[20] = 1), FrameFault::TooLong);
    let one_over = (RPC_PAYLOAD_BYTES_MAX as u32 + 1).to_be_bytes();
    assert_eq!(with(&|b| b[20..24].copy_from_slice(&one_over)), FrameFault::TooLong);
    assert_eq!(next_frame(b"GET / HTTP/1.1"), Next::Malformed(FrameFault::BadMagic), "refused before a whole header is there");
    assert_eq!(next_frame(b"X"), Next::NeedMore { bytes: HEADER_BYTES });
}

#[test]
fn what_must_be_empty_is() {
    let asker = Asker { request_id: 1, function: FunctionHash(2), session: SessionId::new(b"ab").unwrap() };
    let end = StateWrite::end(9);
    let commit = StateWrite { op: WRITE_COMMIT, value: b"list", ..end };
    let decoded = |write: &StateWrite<'_>| {
        let mut out = Vec::new();
        write.encode(&asker, &mut out);
        StateWrite::decode(only_frame(&out, 40).payload).map(|_| ())
    };
    assert_eq!((decoded(&end), decoded(&commit)), (Ok(()), Ok(())));
    for bad in [StateWrite { key: b"k", ..end }, StateWrite { value: b"v", ..end }, StateWrite { key: b"k", ..commit }] {
        assert_eq!(decoded(&bad), Err(FrameFault::BadPayload), "{bad:?}");
    }
}

#[test]
fn a_session_with_bad_bytes_is_refused() {
    let asker = Asker { request_id: 1, function: FunctionHash(2), session: SessionId::new(b"ab").unwrap() };
    let mut out = Vec::new();
    StateWrite::end(9).encode(&asker, &mut out);
    out[HEADER_BYTES] = b' ';
    assert_eq!(next_frame(&out), Next::Malformed(FrameFault::BadSession));
}

#[test]
fn a_module_travels_in_parts_and_an_empty_one_in_one() {
    let module: Vec<u8> = (0..RPC_MODULE_CHUNK_BYTES * 2 + 5).map(|i| i as u8).collect();
    let (mut offset, mut whole, mut parts) = (0, Vec::new(), 0);
    while offset < module.len() {
        let mut out = Vec::new();
        let next = ModuleChunk::encode_next(3, &module, offset, &mut out);
        let chunk = ModuleChunk::decode(only_frame(&out, 40).payload).unwrap();
        assert_eq!((chunk.offset, chunk.total), (offset as u64, module.len() as u64));
        whole.extend_from_slice(chunk.bytes);
        (offset, parts) = (next, parts + 1);
    }
    assert_eq!((whole == module, parts), (true, 3));
    let mut out = Vec::new();
    assert_eq!(ModuleChunk::encode_next(3, &[], 0, &mut out), 0);
    assert_eq!(ModuleChunk::decode(only_frame(&out, 40).payload), Ok(ModuleChunk { offset: 0, total: 0, bytes: &[] }));
}

#[test]
fn a_snapshot_names_its_keys_with_nuls_behind() {
    assert_eq!(snapshot_keys(b"a\0bc\0").collect::<Vec<_>>(), [&b"a"[..], b"bc"]);
    assert_eq!(snapshot_keys(b"a\0\0b\0").collect::<Vec<_>>(), [&b"a"[..], b"", b"b"], "an empty key is seen, to be refused");
}
