//! Feeds any bytes to the RPC frame decoder, whole and in pieces: no panic, the same frames however the bytes are split, a bounded wish for
//! more, and payloads that decode also encode back to the same bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use xfaas_common::limits::RPC_FRAME_BYTES_MAX;
use xfaas_common::rpc::{
    Asker, CommitWrites, Frame, FrameFault, Hello, ModuleChunk, Next, StateRead, StateReply, StateWrite, Welcome, next_frame,
    snapshot_keys, take_snapshot_value,
};
use xfaas_common::wire::{KIND_HELLO, KIND_MODULE_REPLY, KIND_STATE_READ, KIND_STATE_REPLY, KIND_STATE_WRITE, KIND_WELCOME};

/// Frames of a stream that arrives in pieces, as (kind, request ID, bytes), and the fault that ended it.
fn frames<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<(u8, u64, usize)>, Option<FrameFault>) {
    let (mut stream, mut found) = (Vec::new(), Vec::new());
    for piece in pieces {
        stream.extend_from_slice(piece);
        loop {
            match next_frame(&stream) {
                Next::NeedMore { bytes } => {
                    assert!(bytes > stream.len() && bytes <= RPC_FRAME_BYTES_MAX);
                    break;
                }
                Next::Malformed(fault) => return (found, Some(fault)),
                Next::Frame(frame) => {
                    found.push((frame.head.kind, frame.head.request_id, frame.used));
                    check(&frame, &stream[..frame.used]);
                    let used = frame.used;
                    stream.drain(..used);
                }
            }
        }
    }
    (found, None)
}

fn check(frame: &Frame<'_>, whole: &[u8]) {
    let (head, payload) = (&frame.head, frame.payload);
    let mut again = Vec::new();
    match (head.kind, head.session) {
        (KIND_STATE_READ, Some(session)) => {
            let asker = Asker { request_id: head.request_id, function: head.function, session };
            let Ok(read) = StateRead::decode(payload) else { return };
            assert!(snapshot_keys(read.key).count() <= read.key.len() + 1);
            read.encode(&asker, &mut again);
        }
        (KIND_STATE_WRITE, Some(session)) => {
            let asker = Asker { request_id: head.request_id, function: head.function, session };
            let Ok(write) = StateWrite::decode(payload) else { return };
            if let Ok(writes) = CommitWrites::decode(write.value) {
                assert_eq!(writes.len(), Iterator::count(writes));
            }
            write.encode(&asker, &mut again);
        }
        (KIND_STATE_REPLY, _) => {
            let Ok(reply) = StateReply::decode(payload) else { return };
            let mut list = reply.value;
            while take_snapshot_value(&mut list).is_ok() {}
            reply.encode(head.request_id, head.function, &mut again);
        }
        (KIND_HELLO, _) => {
            let Ok(hello) = Hello::decode(payload) else { return };
            hello.encode(head.request_id, &mut again);
            again[16..20].copy_from_slice(&head.function.0.to_be_bytes());
        }
        (KIND_WELCOME, _) => {
            let Ok(welcome) = Welcome::decode(payload) else { return };
            welcome.encode(head.request_id, &mut again);
            again[16..20].copy_from_slice(&head.function.0.to_be_bytes());
        }
        (KIND_MODULE_REPLY, _) => {
            if let Ok(chunk) = ModuleChunk::decode(payload) {
                assert!(chunk.offset + chunk.bytes.len() as u64 <= chunk.total);
            }
            return;
        }
        _ => return,
    }
    assert!(again == whole, "what is decoded encodes to the same bytes");
}

fuzz_target!(|data: &[u8]| {
    let Some((&piece_bytes, stream)) = data.split_first() else { return };
    assert_eq!(frames(std::iter::once(stream)), frames(stream.chunks(usize::from(piece_bytes).max(1))));
});
