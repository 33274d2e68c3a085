//! The host function `snapshot_read`: several keys of the session as they are at one moment. CONTRACT.md section 3.
//! Called by `abi`. Every pointer and length is hostile here, as in `host_calls`: -2 wins over -3.

use super::call::StateAt;
use super::host_calls::{NEEDS_OWNER, find_namespace, over, span};
use super::lend::Lent;
use super::overlay::Overlay;
use super::remote;
use crate::state::{BadKeyList, KEY_LIST_BYTES_MAX, KeyList, Limit, SnapshotSink, SnapshotWriter, snapshot_of_nothing};
use std::ops::Range;
use xfaas_common::guest_abi::BAD_ARGUMENT;

/// `snapshot_read(keys, keys_len, buf, buf_len)`: the answer's full length, of which at most `buf_len` bytes are copied. Takes no lock and
/// waits for none.
pub(super) fn snapshot_read(lent: &mut Lent, memory: &mut [u8], keys: i32, keys_len: i32, buf: i32, buf_len: i32) -> i32 {
    let (Some(keys), Some(buf)) = (span(memory, keys, keys_len), span(memory, buf, buf_len)) else { return BAD_ARGUMENT };
    if lent.call.is_hook() {
        return BAD_ARGUMENT;
    }
    if keys.len() > KEY_LIST_BYTES_MAX {
        return over(&mut lent.state, Limit::Snapshot);
    }
    match memory.get_disjoint_mut([keys.clone(), buf.clone()]) {
        Ok([keys, buf]) => answer(lent, keys, buf, false),
        Err(_) => answer_over_keys(lent, memory, keys, buf),
    }
}

/// The buffer overlaps the keys, which must outlive what is written over them. On the stack, because a call allocates nothing.
#[cold]
#[inline(never)]
fn answer_over_keys(lent: &mut Lent, memory: &mut [u8], keys: Range<usize>, buf: Range<usize>) -> i32 {
    let mut copy = [0; KEY_LIST_BYTES_MAX];
    let copy = &mut copy[..keys.len()];
    copy.copy_from_slice(&memory[keys]);
    answer(lent, copy, &mut memory[buf], true)
}

/// `is_over_keys`: the guest's own list must stay as it is while the primary is asked, since its call is repeated.
fn answer(lent: &mut Lent, keys: &[u8], buf: &mut [u8], is_over_keys: bool) -> i32 {
    let keys = match KeyList::new(keys) {
        Ok(keys) => keys,
        Err(BadKeyList::Malformed) => return BAD_ARGUMENT,
        Err(BadKeyList::OverLimit) => return over(&mut lent.state, Limit::Snapshot),
    };
    let state_at = lent.call.state_at;
    if state_at.asks_primary() && (is_over_keys || !remote::has_reader(lent)) {
        return remote::snapshot(lent, keys, buf);
    }
    let namespace = if state_at == StateAt::Here { find_namespace(lent) } else { None };
    let Lent { call, state } = lent;
    let mut sink = OwnWritesFirst { overlay: &call.overlay, writer: SnapshotWriter::new(buf) };
    match state_at {
        StateAt::Here => match (namespace, state.region(call.app)) {
            (Some(namespace), Some(region)) => region.snapshot(namespace, keys, &mut sink),
            _ => snapshot_of_nothing(keys, &mut sink),
        },
        StateAt::Shard(owner) => {
            if state.readers.snapshot(call.app, owner, &call.session, call.table_hash, keys, &mut sink).is_err() {
                return NEEDS_OWNER;
            }
        }
        StateAt::Primary | StateAt::PrimaryShard(_) => {
            let shard = call.remote.shard;
            if state.readers.snapshot(call.app, shard, &call.session, call.table_hash, keys, &mut sink).is_err() {
                return remote::snapshot(lent, keys, buf);
            }
            call.remote.mapped_reads += 1;
        }
    }
    sink.writer.full_bytes() as i32 // `limits` makes sure that it fits
}

/// The invocation's own writes stand in for what the region holds.
struct OwnWritesFirst<'a> {
    overlay: &'a Overlay,
    writer: SnapshotWriter<'a>,
}

impl SnapshotSink for OwnWritesFirst<'_> {
    fn begin(&mut self) {
        self.writer.begin();
    }

    fn has_own(&mut self, key: &[u8]) -> bool {
        let own = self.overlay.get(key);
        if let Some(value) = own {
            self.writer.own(value);
        }
        own.is_some()
    }

    fn missing(&mut self) {
        self.writer.missing();
    }

    fn value(&mut self, value_bytes: usize) -> &mut [u8] {
        self.writer.value(value_bytes)
    }
}
