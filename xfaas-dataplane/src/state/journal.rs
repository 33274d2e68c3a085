//! The writes of one shard that its log is to get: records, gathered until the log takes them as a batch. docs/PROTOCOL.md, "The log".
//! Filled where a write has taken effect (`section`), for apps whose durability is `sync` only; emptied by the shard. Does no I/O.
//!
//! ```text
//! u32 bytes of the record, this word included | u8 version | u8 bytes of app | u8 bytes of session | u8 kind | u64 position | u32 writes
//! app, session, then of each write: u32 bytes of the value (0xFFFF_FFFF: the key is deleted) | u8 bytes of the key | key | value
//! ```
//! All numbers are little-endian. A record of kind 0 is the effective writes of one `write_state`, or all those of an atomic invocation. One of kind 1
//! ends a session in the log: its app is not logged any more, and the store of checkpoints has something newer than all that the log has of it.

use super::namespace::NamespaceRef;
use super::region::Region;
use xfaas_common::ids::SessionId;

/// Bytes that stay free before a batch's records, for whoever writes its head.
pub const BATCH_HEAD_BYTES: usize = 40;
const RECORD_VERSION: u8 = 1;
const RECORD_HEAD_BYTES: usize = 20;
const WRITE_HEAD_BYTES: usize = 5;
const DELETED: u32 = u32::MAX;

/// What a record says.
const KIND_WRITES: u8 = 0;
const KIND_END: u8 = 1;

/// An app whose writes are logged.
struct LoggedApp {
    name: Box<str>,
    identity: u64,
    /// Of its last record.
    position: u64,
}

/// An app whose writes are logged no more, and of which the log has what it held before.
struct LeftApp {
    app: u16,
    name: Box<str>,
    identity: u64,
    /// Which of all leavings that was.
    leaving: u32,
}

/// Records that wait to be written, and who has written what.
pub struct Journal {
    /// By the app's index.
    apps: Vec<Option<LoggedApp>>,
    /// Few, and not asked on the hot path.
    left: Vec<LeftApp>,
    leavings: u32,
    /// Of the last record; the first one's is 1.
    position: u64,
    bytes: Vec<u8>,
}

impl Default for Journal {
    fn default() -> Journal {
        Journal { apps: Vec::new(), left: Vec::new(), leavings: 0, position: 0, bytes: vec![0; BATCH_HEAD_BYTES] }
    }
}

impl Journal {
    /// From now on the app's writes are recorded. `identity`: of its region, as it is now.
    pub fn log_app(&mut self, app: u16, name: &str, identity: u64) {
        let index = usize::from(app);
        if self.apps.len() <= index {
            self.apps.resize_with(index + 1, || None);
        }
        self.apps[index] = Some(LoggedApp { name: name.into(), identity, position: self.position });
        self.left.retain(|left| left.app != app);
    }

    /// The app's writes are not recorded, and the log has nothing of it.
    pub fn forget_app(&mut self, app: u16) {
        if let Some(logged) = self.apps.get_mut(usize::from(app)) {
            *logged = None;
        }
    }

    /// The app's writes are not recorded from now on, and what the log has of it stays there. `identity`: of its region, as the log knows it.
    pub fn leave_app(&mut self, app: u16, name: &str, identity: u64) {
        self.forget_app(app);
        if self.leaving_of(app).is_none() {
            self.leavings += 1;
            self.left.push(LeftApp { app, name: name.into(), identity, leaving: self.leavings });
        }
    }

    /// Which leaving it was after which the app's writes are not recorded. `None`: they are, or the log has nothing of it.
    pub fn leaving_of(&self, app: u16) -> Option<u32> {
        self.left.iter().find(|left| left.app == app).map(|left| left.leaving)
    }

    #[inline(always)]
    pub fn logs(&self, app: u16) -> bool {
        self.apps.get(usize::from(app)).is_some_and(Option::is_some)
    }

    /// Index, name and region's identity of the apps of which the log has something: those that are logged, and those that were.
    pub fn apps_in_log(&self) -> impl Iterator<Item = (u16, &str, u64)> {
        let apps = self.apps.iter().enumerate();
        let logged = apps.filter_map(|(index, app)| app.as_ref().map(|app| (index as u16, &*app.name, app.identity)));
        logged.chain(self.left.iter().map(|left| (left.app, &*left.name, left.identity)))
    }

    /// The position of the last record of an app: what its readers may have seen. `None`: it is not logged.
    #[inline(always)]
    pub fn position_of(&self, app: u16) -> Option<u64> {
        Some(self.apps.get(usize::from(app))?.as_ref()?.position)
    }

    /// The position of the last record of all.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Bytes of the records that wait.
    pub fn waiting_bytes(&self) -> usize {
        self.bytes.len() - BATCH_HEAD_BYTES
    }

    /// Gives the records that wait as one batch, its head zero. `spare`: an empty buffer to go on with.
    pub fn take(&mut self, mut spare: Vec<u8>) -> Vec<u8> {
        spare.clear();
        spare.resize(BATCH_HEAD_BYTES, 0);
        std::mem::replace(&mut self.bytes, spare)
    }

    /// Records writes that have taken effect; of an app that is not logged, nothing.
    pub(super) fn record<'w>(&mut self, app: u16, session: &SessionId, writes: impl Iterator<Item = (&'w [u8], Option<&'w [u8]>)>) {
        let Some(logged) = self.apps.get_mut(usize::from(app)).and_then(Option::as_mut) else { return };
        self.position += 1;
        logged.position = self.position;
        let mut record = RecordWriter::begin(&mut self.bytes, KIND_WRITES, self.position, &logged.name, session);
        for (key, value) in writes {
            record.write(key, value);
        }
        record.end();
    }

    /// Records that the log is not to give a session back any more: the store has something newer. Output: the record's position. `None`: the
    /// session's app has not left the log.
    pub fn end_session(&mut self, app: u16, session: &SessionId) -> Option<u64> {
        let left = self.left.iter().find(|left| left.app == app)?;
        self.position += 1;
        RecordWriter::begin(&mut self.bytes, KIND_END, self.position, &left.name, session).end();
        Some(self.position)
    }
}

/// Encodes one record at the end of a buffer.
struct RecordWriter<'b> {
    out: &'b mut Vec<u8>,
    start: usize,
    writes: u32,
}

impl<'b> RecordWriter<'b> {
    fn begin(out: &'b mut Vec<u8>, kind: u8, position: u64, app: &str, session: &SessionId) -> RecordWriter<'b> {
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&[RECORD_VERSION, app.len() as u8, session.length(), kind]);
        out.extend_from_slice(&position.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(app.as_bytes());
        out.extend_from_slice(session.as_bytes());
        RecordWriter { out, start, writes: 0 }
    }

    fn write(&mut self, key: &[u8], value: Option<&[u8]>) {
        self.head(key, value.map_or(DELETED, |value| value.len() as u32));
        self.out.extend_from_slice(value.unwrap_or_default());
    }

    fn head(&mut self, key: &[u8], value_bytes: u32) {
        self.writes += 1;
        self.out.extend_from_slice(&value_bytes.to_le_bytes());
        self.out.push(key.len() as u8);
        self.out.extend_from_slice(key);
    }

    fn end(self) {
        let bytes = (self.out.len() - self.start) as u32;
        self.out[self.start..self.start + 4].copy_from_slice(&bytes.to_le_bytes());
        self.out[self.start + 16..self.start + RECORD_HEAD_BYTES].copy_from_slice(&self.writes.to_le_bytes());
    }
}

/// Appends all that a session holds as one record of position 0.
pub fn record_session(out: &mut Vec<u8>, app: &str, region: &Region, session: &SessionId, namespace: NamespaceRef) {
    let mut record = RecordWriter::begin(out, KIND_WRITES, 0, app, session);
    for key in region.keys(namespace) {
        record.head(key.as_bytes(), key.value_bytes() as u32);
        let start = record.out.len();
        record.out.resize(start + key.value_bytes(), 0);
        region.read(namespace, key.as_bytes(), &mut record.out[start..]);
    }
    record.end();
}

/// A record as it lies in a batch.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    pub position: u64,
    pub app: &'a str,
    pub session: SessionId,
    /// Nothing that the log has of the session counts.
    pub is_end: bool,
    writes: &'a [u8],
}

/// Bytes that are no record of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no record of version {RECORD_VERSION}")]
pub struct BadRecord;

impl<'a> Record<'a> {
    /// The first record of `bytes`, and what follows it. Every length is checked, those of the writes too.
    pub fn decode(bytes: &'a [u8]) -> Result<(Record<'a>, &'a [u8]), BadRecord> {
        let head = bytes.first_chunk::<RECORD_HEAD_BYTES>().ok_or(BadRecord)?;
        let [l0, l1, l2, l3, version, app_bytes, session_bytes, kind, p0, p1, p2, p3, p4, p5, p6, p7, w0, w1, w2, w3] = *head;
        let (record, rest) = bytes.split_at_checked(u32::from_le_bytes([l0, l1, l2, l3]) as usize).ok_or(BadRecord)?;
        let body = record.get(RECORD_HEAD_BYTES..).ok_or(BadRecord)?;
        let (app, body) = body.split_at_checked(usize::from(app_bytes)).ok_or(BadRecord)?;
        let (session, writes) = body.split_at_checked(usize::from(session_bytes)).ok_or(BadRecord)?;
        let app = std::str::from_utf8(app).ok().filter(|app| xfaas_common::ids::is_name(app.as_bytes())).ok_or(BadRecord)?;
        let session = SessionId::new(session).ok_or(BadRecord)?;
        let record =
            Record { position: u64::from_le_bytes([p0, p1, p2, p3, p4, p5, p6, p7]), app, session, is_end: kind == KIND_END, writes };
        let (mut at, mut count) = (writes, 0);
        while !at.is_empty() {
            at = next_write(at).ok_or(BadRecord)?.1;
            count += 1;
        }
        let is_known = version == RECORD_VERSION && (kind == KIND_WRITES || kind == KIND_END && count == 0);
        let is_whole = is_known && count == u32::from_le_bytes([w0, w1, w2, w3]);
        is_whole.then_some((record, rest)).ok_or(BadRecord)
    }

    /// Keys with their values, or `None` where the key was deleted.
    pub fn writes(&self) -> impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> + Clone + use<'a> {
        let mut at = self.writes;
        std::iter::from_fn(move || {
            let (write, rest) = next_write(at)?;
            at = rest;
            Some(write)
        })
    }
}

type Write<'a> = (&'a [u8], Option<&'a [u8]>);

fn next_write(bytes: &[u8]) -> Option<(Write<'_>, &[u8])> {
    let [v0, v1, v2, v3, key_bytes] = *bytes.first_chunk::<WRITE_HEAD_BYTES>()?;
    let (key, rest) = bytes[WRITE_HEAD_BYTES..].split_at_checked(usize::from(key_bytes))?;
    match u32::from_le_bytes([v0, v1, v2, v3]) {
        DELETED => Some(((key, None), rest)),
        value_bytes => {
            let (value, rest) = rest.split_at_checked(value_bytes as usize)?;
            Some(((key, Some(value)), rest))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    type OwnedWrites = Vec<(Vec<u8>, Option<Vec<u8>>)>;

    fn any_writes() -> impl Strategy<Value = OwnedWrites> {
        vec((vec(any::<u8>(), 1..=255), proptest::option::of(vec(any::<u8>(), 0..300))), 0..5)
    }

    fn borrowed(writes: &OwnedWrites) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        writes.iter().map(|(key, value)| (key.as_slice(), value.as_deref()))
    }

    proptest! {
        #[test]
        fn records_come_back_as_they_were_written(records in vec(any_writes(), 0..5)) {
            let mut journal = Journal::default();
            journal.log_app(3, "shop", 7);
            let session = SessionId::new(b"cart-1").unwrap();
            for writes in &records {
                journal.record(3, &session, borrowed(writes));
                journal.record(2, &session, borrowed(writes)); // not logged
            }
            prop_assert_eq!(journal.position_of(3), Some(records.len() as u64));
            let batch = journal.take(Vec::new());
            let mut at = &batch[BATCH_HEAD_BYTES..];
            for (before, writes) in records.iter().enumerate() {
                let (record, rest) = Record::decode(at).unwrap();
                prop_assert_eq!((record.position, record.app, record.session), (before as u64 + 1, "shop", session));
                prop_assert!(record.writes().eq(borrowed(writes)));
                at = rest;
            }
            prop_assert!(at.is_empty() && journal.waiting_bytes() == 0);
        }

        #[test]
        fn a_session_is_ended_only_of_an_app_that_has_left(is_left: bool) {
            let (mut journal, session) = (Journal::default(), SessionId::new(b"cart-1").unwrap());
            journal.log_app(3, "shop", 7);
            if is_left {
                journal.leave_app(3, "shop", 7);
            }
            prop_assert_eq!((journal.logs(3), journal.leaving_of(3)), (!is_left, is_left.then_some(1)));
            prop_assert!(journal.apps_in_log().eq([(3, "shop", 7)]), "either way the log has it");
            prop_assert_eq!(journal.end_session(3, &session), is_left.then_some(1));
            if is_left {
                let batch = journal.take(Vec::new());
                let (record, rest) = Record::decode(&batch[BATCH_HEAD_BYTES..]).unwrap();
                prop_assert_eq!((record.is_end, record.app, record.session, record.writes().count(), rest.len()), (true, "shop", session, 0, 0));
            }
            journal.log_app(3, "shop", 8);
            prop_assert_eq!((journal.logs(3), journal.leaving_of(3), journal.end_session(3, &session)), (true, None, None));
        }

        #[test]
        fn any_bytes_are_refused_or_a_record(bytes in vec(any::<u8>(), 0..200)) {
            if let Ok((record, rest)) = Record::decode(&bytes) {
                prop_assert!(rest.len() < bytes.len());
                record.writes().for_each(drop);
            }
        }
    }
}
