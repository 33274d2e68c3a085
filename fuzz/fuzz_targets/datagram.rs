//! Feeds any bytes to the datagram decoders: no panic, and what is accepted encodes back to the same bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(dead_code, unused_imports, reason = "the target uses a part of the module")]
#[path = "../../xfaas-dataplane/src/net/mod.rs"]
mod net;

use net::{AnswerBody, decode_datagram, decode_datagram_answer, encode_datagram_reply, encode_datagram_request};

fuzz_target!(|data: &[u8]| {
    let mut out = Vec::new();
    if let Ok((head, payload)) = decode_datagram(data)
        && encode_datagram_request(&mut out, &head, payload).is_ok()
    {
        assert_eq!(out, data);
    }
    out.clear();
    if let Ok(answer) = decode_datagram_answer(data)
        && let AnswerBody::Reply(output) = answer.body
        && data.len() <= xfaas_common::limits::DATAGRAM_BYTES_MAX
    {
        encode_datagram_reply(&mut out, &answer.head, output);
        assert_eq!(out, data);
    }
});
