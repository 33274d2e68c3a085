//! State of a session whose primary is another process, or another shard of this one. What a guest asks is written down here and its worker parked; the shard sends the request and
//! brings the answer, and the guest's repeated call takes it. Weak reads go through the primary's region while it can be read here.
//! Called by `host_calls` (the guest's side) and, through the proxy, by the shard (the primary's side). Knows no connection.

use super::call::StateAt;
use super::host_calls::{PARK, copy, over};
use super::lend::Lent;
use super::memory_budget::Charge;
use super::overlay::Overlay;
use super::overlay::SessionSize;
use crate::state::{KeyList, Limit, SnapshotSink, SnapshotWriter};
use xfaas_common::guest_abi::{MODE_STRONG, MODE_WEAK, NOT_FOUND, OK, OVER_LIMIT, UNREACHABLE};
use xfaas_common::ids::{AppHash, SessionId};
use xfaas_common::limits::VALUE_BYTES_MAX;
use xfaas_common::rpc::{COMMIT_BYTES_MAX, COMMIT_HEAD_BYTES, COMMIT_WRITE_HEAD_BYTES, CommitWrites, REPLY_VALUE_BYTES_MAX};

/// Bytes above which a buffer is given back between invocations.
const BUFFER_BYTES_KEPT_MAX: usize = 64 << 10;

/// What a guest's call, or the end of its invocation, asks of the primary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RemoteOperation {
    #[default]
    ReadWeak,
    /// Reads a key and opens its section.
    ReadStrong,
    WriteWeak,
    /// Writes a key and ends its section; without one it locks, writes and releases.
    WriteStrong,
    /// Reads several keys as they are at one moment.
    Snapshot,
    /// Reads a key of another session, weakly.
    OtherSession,
    /// All writes of an atomic invocation, and its end.
    Commit,
}

/// A request as it is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteRequest<'a> {
    pub operation: RemoteOperation,
    /// Bytes of the value that the guest has room for.
    pub bytes_max: u32,
    /// Empty in a commit; of a snapshot the list of keys.
    pub key: &'a [u8],
    /// Of a write; in a commit the list of writes as it travels.
    pub value: &'a [u8],
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Idle,
    /// Parked, until `answer`.
    Asked,
    Answered(i32),
}

/// A session other than the call's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OtherSession {
    pub session: SessionId,
    pub table_hash: u32,
    /// The shard that owns it.
    pub shard: u16,
}

/// A call's dealings with its primary. Reused with the call: buffers stay.
#[derive(Default)]
pub struct RemoteAccess {
    /// The primary's shard that owns the session. Set by whoever sets `StateAt::Primary` or `StateAt::PrimaryShard`.
    pub shard: u16,
    /// What that shard knows the invocation by, where it is one of this process.
    pub invocation: u32,
    /// The app that the primary is to find the function in, where that is another process.
    pub app: AppHash,
    stage: Stage,
    operation: RemoteOperation,
    bytes_max: u32,
    /// What `OtherSession` asks for.
    other: Option<OtherSession>,
    key: Vec<u8>,
    /// Of a write before it is answered, of a read afterwards.
    value: Vec<u8>,
    held: HeldKeys,
    /// The connection over which the sections in `held` were opened.
    link: u64,
    /// A strong access failed, or a section ended with its connection: no strong access of this invocation may do anything any more, because a
    /// write would take a fresh lock and overwrite what happened in between.
    is_lost: bool,
    /// The primary may hold locks of this invocation: it must be told of its end.
    owes_end: bool,
    /// A call of the guest, or the commit, was answered with -5.
    is_unreachable: bool,
    /// What a commit in `value` has of the budget of the guests' memories.
    commit_charge: Charge,
    /// Weak reads that were answered from the mapped region.
    pub mapped_reads: u64,
}

impl RemoteAccess {
    pub(super) fn reset(&mut self) {
        self.stage = Stage::Idle;
        self.other = None;
        self.key.clear();
        self.value.clear();
        self.value.shrink_to(BUFFER_BYTES_KEPT_MAX);
        self.commit_charge.give_back();
        self.held.clear();
        self.is_lost = false;
        self.owes_end = false;
        self.is_unreachable = false;
        self.mapped_reads = 0;
    }

    /// True from the guest's call until its answer.
    pub fn is_asked(&self) -> bool {
        self.stage == Stage::Asked
    }

    /// What is to be sent.
    pub fn request(&self) -> RemoteRequest<'_> {
        RemoteRequest { operation: self.operation, bytes_max: self.bytes_max, key: &self.key, value: &self.value }
    }

    /// The session that is asked for, where it is not the call's own.
    pub fn other_session(&self) -> Option<OtherSession> {
        self.other.filter(|_| self.operation == RemoteOperation::OtherSession)
    }

    /// The shard of the primary that is asked.
    pub fn asked_shard(&self) -> u16 {
        self.other_session().map_or(self.shard, |other| other.shard)
    }

    /// True when the primary may let the request wait for a lock: that time does not count towards the deadline.
    pub fn may_wait_for_lock(&self) -> bool {
        match self.operation {
            RemoteOperation::ReadStrong | RemoteOperation::WriteStrong => !self.held.contains(&self.key),
            RemoteOperation::ReadWeak
            | RemoteOperation::WriteWeak
            | RemoteOperation::Snapshot
            | RemoteOperation::OtherSession
            | RemoteOperation::Commit => false,
        }
    }

    /// To be asked before the request is sent over connection `link`. False: the sections that it belongs to ended with another
    /// connection, so it must be answered with -5 and not be sent.
    pub fn may_go_over(&mut self, link: u64) -> bool {
        if !self.is_strong() {
            return true;
        }
        self.is_lost |= !self.held.is_empty() && self.link != link;
        !self.is_lost
    }

    /// The request goes out over connection `link`.
    pub fn note_sent(&mut self, link: u64) {
        if self.is_strong() {
            self.link = link;
            self.owes_end = true;
        }
    }

    /// The primary's answer, or -5 for want of one. Input: a value only for reads.
    pub fn answer(&mut self, result: i32, value: &[u8]) {
        debug_assert!(self.is_asked(), "the proxy drops late answers");
        self.stage = Stage::Answered(result);
        self.value.clear();
        self.value.extend_from_slice(value);
        if result == UNREACHABLE {
            self.is_unreachable = true;
            self.is_lost |= self.is_strong();
        } else if self.operation == RemoteOperation::Commit {
            self.owes_end = false; // it was the end of its invocation; one that was refused, or not answered, perhaps not
        }
    }

    /// The commit's answer: 0, -3 or -5.
    pub fn take_commit(&mut self) -> i32 {
        self.take_answer().unwrap_or(UNREACHABLE)
    }

    /// True when the primary must be told that the invocation is over, and over which connection.
    pub fn owed_end(&self) -> Option<u64> {
        self.owes_end.then_some(self.link)
    }

    /// True when a host call was answered with -5.
    pub fn is_unreachable(&self) -> bool {
        self.is_unreachable
    }

    /// Commits are strong: their reads may have been made within sections.
    fn is_strong(&self) -> bool {
        match self.operation {
            RemoteOperation::ReadStrong | RemoteOperation::WriteStrong => true,
            RemoteOperation::Commit => self.owes_end || self.is_lost,
            RemoteOperation::ReadWeak | RemoteOperation::WriteWeak | RemoteOperation::Snapshot | RemoteOperation::OtherSession => false,
        }
    }

    /// Writes the request down. Output: what the guest's shim must be told.
    fn ask(&mut self, operation: RemoteOperation, bytes_max: usize, key: &[u8], value: &[u8]) -> i32 {
        self.operation = operation;
        if self.is_lost && self.is_strong() {
            self.is_unreachable = true;
            return UNREACHABLE;
        }
        self.bytes_max = bytes_max.min(VALUE_BYTES_MAX) as u32;
        self.key.clear();
        self.key.extend_from_slice(key);
        self.value.clear();
        self.value.extend_from_slice(value);
        self.stage = Stage::Asked;
        PARK
    }

    fn is_answered(&self) -> bool {
        matches!(self.stage, Stage::Answered(_))
    }

    /// Asks for several keys. False when there is none: then nothing is asked.
    fn ask_snapshot<'k>(&mut self, keys: impl Iterator<Item = &'k [u8]>, bytes_max: usize, answer_bytes_max: usize) -> bool {
        self.operation = RemoteOperation::Snapshot;
        // A length that begins within the guest's buffer must come whole: the two sides write it in different orders.
        self.bytes_max = bytes_max.saturating_add(size_of::<u32>() - 1).min(answer_bytes_max) as u32;
        self.key.clear();
        self.value.clear();
        for key in keys {
            self.key.extend_from_slice(key);
            self.key.push(0);
        }
        if !self.key.is_empty() {
            self.stage = Stage::Asked;
        }
        self.is_asked()
    }

    /// Asks for a key of another session. Output: what the guest's shim must be told.
    pub(super) fn ask_session(&mut self, session: SessionId, shard: u16, table_hash: u32, bytes_max: usize, key: &[u8]) -> i32 {
        self.other = Some(OtherSession { session, table_hash, shard });
        self.ask(RemoteOperation::OtherSession, bytes_max, key, &[])
    }

    /// Copies what fits of the answer's value, of which no more came than was asked for.
    pub(super) fn copy_answer(&self, buffer: &mut [u8]) {
        let copied = self.value.len().min(buffer.len());
        buffer[..copied].copy_from_slice(&self.value[..copied]);
    }

    pub(super) fn take_answer(&mut self) -> Option<i32> {
        let Stage::Answered(result) = self.stage else { return None };
        self.stage = Stage::Idle;
        Some(result)
    }
}

/// `read_state` with its arguments checked.
pub(super) fn read(lent: &mut Lent, key: &[u8], buffer: &mut [u8], mode: i32) -> i32 {
    let Lent { call, state } = lent;
    if let Some(result) = call.remote.take_answer() {
        if result < NOT_FOUND {
            return result;
        }
        if mode == MODE_STRONG {
            call.remote.held.insert(key);
        }
        if let Some(value) = call.overlay.get(key) {
            return copy(value, buffer);
        }
        call.remote.copy_answer(buffer);
        return result;
    }
    if mode == MODE_STRONG && !call.remote.held.contains(key) {
        return call.remote.ask(RemoteOperation::ReadStrong, buffer.len(), key, &[]);
    }
    if let Some(value) = call.overlay.get(key) {
        return copy(value, buffer);
    }
    if mode == MODE_STRONG {
        return call.remote.ask(RemoteOperation::ReadStrong, buffer.len(), key, &[]);
    }
    match state.readers.read(call.app, call.remote.shard, &call.session, call.table_hash, key, buffer) {
        Ok(length) => {
            call.remote.mapped_reads += 1;
            length.map_or(NOT_FOUND, |length| length as i32)
        }
        Err(_) => call.remote.ask(RemoteOperation::ReadWeak, buffer.len(), key, &[]),
    }
}

/// True when the region that has the session is mapped.
pub(super) fn has_reader(lent: &Lent) -> bool {
    !lent.call.remote.is_answered() && lent.state.readers.get(lent.call.app, lent.call.remote.shard).is_some()
}

/// `snapshot_read` with its keys checked, where no region is mapped. The invocation's own writes stand in for what the primary has.
pub(super) fn snapshot(lent: &mut Lent, keys: KeyList<'_>, buffer: &mut [u8]) -> i32 {
    let Lent { call, state } = lent;
    let Some(result) = call.remote.take_answer() else {
        let others = keys.iter().filter(|key| call.overlay.get(key).is_none());
        // Only in a frame there is not room for everything.
        let answer_bytes_max = if call.state_at == StateAt::Primary { REPLY_VALUE_BYTES_MAX } else { u32::MAX as usize };
        if call.remote.ask_snapshot(others, buffer.len(), answer_bytes_max) {
            return PARK;
        }
        return take_snapshot(&[], 0, keys, &call.overlay, buffer);
    };
    if result < 0 {
        return result;
    }
    match take_snapshot(&call.remote.value, result as usize, keys, &call.overlay, buffer) {
        OVER_LIMIT => over(state, Limit::Snapshot),
        taken => taken,
    }
}

/// Puts together what the primary answered (of `list_bytes` perhaps the first ones only) and the invocation's own writes.
fn take_snapshot(list: &[u8], list_bytes: usize, keys: KeyList<'_>, overlay: &Overlay, buffer: &mut [u8]) -> i32 {
    let buffer_bytes = buffer.len();
    let own_bytes: usize = keys.iter().filter_map(|key| overlay.get(key)).map(|value| 4 + value.len()).sum();
    let (mut list, mut is_short) = (list, false);
    let mut writer = SnapshotWriter::new(buffer);
    for key in keys.iter() {
        if let Some(value) = overlay.get(key) {
            writer.own(value);
            continue;
        }
        let Some((length, rest)) = list.split_first_chunk() else {
            // Cut off. What the guest has room for must have come.
            is_short |= writer.full_bytes() < buffer_bytes;
            break;
        };
        let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) else {
            writer.missing();
            list = rest;
            continue;
        };
        let (value, rest) = rest.split_at(length.min(rest.len()));
        let room = writer.value(length);
        let copied = room.len().min(value.len());
        room[..copied].copy_from_slice(&value[..copied]);
        is_short |= copied < room.len();
        list = rest;
    }
    // A frame has room for some 2 MiB.
    if is_short { OVER_LIMIT } else { (list_bytes + own_bytes) as i32 }
}

/// `write_state` with its arguments and limits checked.
pub(super) fn write(lent: &mut Lent, key: &[u8], value: &[u8], mode: i32) -> i32 {
    if lent.call.atomic {
        return write_later(lent, key, value, mode);
    }
    let remote = &mut lent.call.remote;
    if let Some(result) = remote.take_answer() {
        if mode == MODE_STRONG && result == OK {
            remote.held.remove(key);
        }
        return result;
    }
    let operation = if mode == MODE_WEAK { RemoteOperation::WriteWeak } else { RemoteOperation::WriteStrong };
    remote.ask(operation, 0, key, value)
}

/// An atomic function's write stays here until the commit; a strong one takes its lock at the primary first.
fn write_later(lent: &mut Lent, key: &[u8], value: &[u8], mode: i32) -> i32 {
    let Lent { call, state } = lent;
    match call.remote.take_answer() {
        Some(result) if result < NOT_FOUND => return result,
        Some(_) => call.remote.held.insert(key),
        None if mode == MODE_STRONG && !call.remote.held.contains(key) => return call.remote.ask(RemoteOperation::ReadStrong, 0, key, &[]),
        None => {}
    }
    // The commit must fit into a frame.
    let heads = COMMIT_HEAD_BYTES + COMMIT_WRITE_HEAD_BYTES * (call.overlay.len() + 1);
    if call.state_at == StateAt::Primary && heads + call.overlay.content_bytes_after(key, value) > COMMIT_BYTES_MAX {
        return over(state, Limit::Commit);
    }
    // What the session holds already is known to the primary only, which holds the whole commit against its limits.
    let session = SessionSize { bytes: 0, keys: 0, bytes_max: call.session_bytes_max, value_bytes: None };
    match call.overlay.set(key, value, &session) {
        Ok(()) => OK,
        Err(error) => over(state, error.limit()),
    }
}

impl Lent {
    /// At the successful end of an invocation: asks for the commit of an atomic function's writes, if there are any. Output: true when there are.
    pub(super) fn ask_commit(&mut self) -> bool {
        let Lent { call, .. } = self;
        if call.overlay.is_empty() {
            return false;
        }
        let remote = &mut call.remote;
        remote.operation = RemoteOperation::Commit;
        remote.key.clear();
        remote.value.clear();
        CommitWrites::encode_head(call.overlay.len() as u32, &mut remote.value);
        for (key, value) in call.overlay.writes() {
            CommitWrites::encode_write(key, value, &mut remote.value);
        }
        remote.stage = Stage::Asked;
        remote.commit_charge = call.overlay.take_charge();
        true
    }
}

/// Keys of open sections, one behind the other: length byte, key. Few, so they are looked through.
#[derive(Default)]
struct HeldKeys(Vec<u8>);

impl HeldKeys {
    fn find(&self, key: &[u8]) -> Option<usize> {
        let mut at = 0;
        while let Some(&length) = self.0.get(at) {
            let end = at + 1 + usize::from(length);
            if self.0[at + 1..end] == *key {
                return Some(at);
            }
            at = end;
        }
        None
    }

    fn contains(&self, key: &[u8]) -> bool {
        self.find(key).is_some()
    }

    fn insert(&mut self, key: &[u8]) {
        if !self.contains(key) {
            self.0.push(key.len() as u8);
            self.0.extend_from_slice(key);
        }
    }

    fn remove(&mut self, key: &[u8]) {
        if let Some(at) = self.find(key) {
            self.0.drain(at..at + 1 + key.len());
        }
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn clear(&mut self) {
        self.0.clear();
        self.0.shrink_to(BUFFER_BYTES_KEPT_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(operation: RemoteOperation, key: &[u8]) -> RemoteAccess {
        let mut remote = RemoteAccess::default();
        assert_eq!(remote.ask(operation, 8, key, b""), PARK);
        remote
    }

    #[test]
    fn keys_of_open_sections_are_found_until_their_section_ends() {
        let mut held = HeldKeys::default();
        let long = [7; 255];
        for key in [&b"a"[..], b"ab", &long, b"a"] {
            held.insert(key);
        }
        assert!(held.contains(b"a") && held.contains(&long) && !held.contains(b"b"));
        held.remove(b"ab");
        held.remove(b"unknown");
        assert!(held.contains(b"a") && held.contains(&long) && !held.contains(b"ab"));
        held.remove(b"a");
        held.remove(&long);
        assert!(held.is_empty());
    }

    #[test]
    fn a_section_ends_with_its_connection() {
        let mut remote = asked(RemoteOperation::ReadStrong, b"n");
        assert!(remote.may_go_over(1) && remote.may_wait_for_lock());
        remote.note_sent(1);
        remote.answer(1, b"5");
        assert_eq!(remote.take_answer(), Some(1));
        remote.held.insert(b"n");
        assert_eq!(remote.owed_end(), Some(1));
        assert_eq!(remote.ask(RemoteOperation::WriteStrong, 0, b"n", b"6"), PARK);
        assert!(!remote.may_wait_for_lock(), "its lock is its own");
        assert!(!remote.may_go_over(2), "a write over another connection would take a fresh lock");
        remote.answer(UNREACHABLE, b"");
        assert_eq!(remote.take_answer(), Some(UNREACHABLE));
        assert_eq!(remote.ask(RemoteOperation::ReadStrong, 8, b"other", b""), UNREACHABLE);
        assert_eq!(remote.ask(RemoteOperation::WriteWeak, 0, b"n", b"7"), PARK, "weak calls go on");
        assert!(remote.may_go_over(2) && remote.is_unreachable());
        remote.reset();
        assert_eq!(remote.ask(RemoteOperation::ReadStrong, 8, b"n", b""), PARK);
    }

    #[test]
    fn a_strong_access_without_an_answer_is_the_last_one() {
        let mut remote = asked(RemoteOperation::ReadStrong, b"n");
        remote.note_sent(1);
        remote.answer(UNREACHABLE, b"");
        remote.take_answer();
        assert_eq!(remote.ask(RemoteOperation::WriteStrong, 0, b"n", b"1"), UNREACHABLE, "the primary may have opened the section");
        assert_eq!(remote.owed_end(), Some(1), "and may hold its lock");
    }

    #[test]
    fn a_commit_is_the_end_of_its_invocation_only_where_it_was_answered() {
        let commit = |result| {
            let mut remote = asked(RemoteOperation::ReadStrong, b"n");
            remote.note_sent(1);
            remote.answer(1, b"5");
            assert_eq!(remote.take_answer(), Some(1));
            (remote.operation, remote.stage) = (RemoteOperation::Commit, Stage::Asked);
            assert!(remote.may_go_over(1));
            remote.note_sent(1);
            remote.answer(result, b"");
            (remote.take_commit(), remote.owed_end())
        };
        for result in [0, OVER_LIMIT] {
            assert_eq!(commit(result), (result, None));
        }
        assert_eq!(commit(UNREACHABLE), (UNREACHABLE, Some(1)), "its locks may be held");
    }

    #[test]
    fn a_snapshot_is_put_together_from_the_primarys_list_and_own_writes() {
        let list = [&3_i32.to_be_bytes()[..], b"abc", &(-1_i32).to_be_bytes(), &0_i32.to_be_bytes()].concat();
        let keys = KeyList::new(b"a\0own\0b\0c\0").unwrap();
        let mut overlay = Overlay::default();
        let session = SessionSize { bytes: 0, keys: 0, bytes_max: 100, value_bytes: None };
        overlay.set(b"own", b"w", &session).unwrap();
        let whole = [&3_u32.to_le_bytes()[..], b"abc", &1_u32.to_le_bytes(), b"w", &u32::MAX.to_le_bytes(), &0_u32.to_le_bytes()].concat();
        // Whatever the guest has room for, and however much of the list comes as long as that is no less than what is asked.
        for room in 0..=whole.len() + 4 {
            let mut buffer = vec![0xAA; room];
            for came in (room + 3).min(list.len())..=list.len() {
                assert_eq!(
                    take_snapshot(&list[..came], list.len(), keys, &overlay, &mut buffer),
                    whole.len() as i32,
                    "room {room}, {came} came"
                );
                assert_eq!(buffer[..room.min(whole.len())], whole[..room.min(whole.len())]);
            }
        }
        let mut buffer = [0; 64];
        for came in 0..list.len() {
            assert_eq!(take_snapshot(&list[..came], list.len(), keys, &overlay, &mut buffer), OVER_LIMIT, "{came} of {} came", list.len());
        }
    }
}
