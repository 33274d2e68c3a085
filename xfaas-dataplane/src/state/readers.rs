//! Lock-free readers of regions that other shards own, by app and shard. Held by `ShardState`; filled by control's commands.
//! A read takes no lock, makes no system call and allocates nothing. What it cannot answer is the owner's to answer.

use xfaas_common::ids::SessionId;

use super::error::ReadRefused;
use super::reader::RegionReader;
use super::snapshot::{KeyList, SnapshotSink, snapshot_of_nothing};

/// The readers one shard holds.
#[derive(Debug, Default)]
pub struct Readers {
    /// By the app's index, then by the owner's.
    by_app: Vec<Vec<Option<RegionReader>>>,
}

impl Readers {
    /// Takes over the reader of `app` on `shard`, in place of an earlier one.
    pub fn set(&mut self, app: u16, shard: u16, reader: RegionReader) {
        let (app, shard) = (usize::from(app), usize::from(shard));
        if self.by_app.len() <= app {
            self.by_app.resize_with(app + 1, Vec::new);
        }
        let shards = &mut self.by_app[app];
        if shards.len() <= shard {
            shards.resize_with(shard + 1, || None);
        }
        shards[shard] = Some(reader);
    }

    /// Lets go of an app's readers.
    pub fn clear_app(&mut self, app: u16) {
        if let Some(shards) = self.by_app.get_mut(usize::from(app)) {
            shards.clear();
        }
    }

    /// Lets go of the readers of apps for which `keep` is false; asked only for apps that have some.
    pub fn retain(&mut self, mut keep: impl FnMut(u16) -> bool) {
        for (app, shards) in self.by_app.iter_mut().enumerate() {
            if !shards.is_empty() && !keep(app as u16) {
                shards.clear();
            }
        }
    }

    pub fn clear(&mut self) {
        self.by_app.clear();
    }

    #[inline(always)]
    pub fn get(&self, app: u16, shard: u16) -> Option<&RegionReader> {
        self.by_app.get(usize::from(app))?.get(usize::from(shard))?.as_ref()
    }

    /// Copies the value of a session's key into `buf`, as much as fits; its full length in bytes, or `Ok(None)` when there is none.
    /// After an error `buf` holds bytes that mean nothing.
    ///
    /// Errors: `Missing` when there is no reader for the owner's region, else as `RegionReader::read`; `Gone` only when the session was
    /// removed twice meanwhile.
    pub fn read(
        &self,
        app: u16,
        shard: u16,
        session: &SessionId,
        table_hash: u32,
        key: &[u8],
        buf: &mut [u8],
    ) -> Result<Option<usize>, ReadRefused> {
        let reader = self.get(app, shard).ok_or(ReadRefused::Missing)?;
        let try_once = |buf: &mut [u8]| match reader.find(session, table_hash)? {
            Some(namespace) => reader.read(namespace, key, buf),
            None => Ok(None),
        };
        match try_once(buf) {
            Err(ReadRefused::Gone) => try_once(buf),
            outcome => outcome,
        }
    }

    /// Copies the values of several keys of a session, as they are at one moment, into `sink`. Errors: as `read`.
    pub fn snapshot(
        &self,
        app: u16,
        shard: u16,
        session: &SessionId,
        table_hash: u32,
        keys: KeyList<'_>,
        sink: &mut impl SnapshotSink,
    ) -> Result<(), ReadRefused> {
        let reader = self.get(app, shard).ok_or(ReadRefused::Missing)?;
        let mut try_once = || match reader.find(session, table_hash)? {
            Some(namespace) => reader.snapshot(namespace, keys, sink),
            None => {
                snapshot_of_nothing(keys, sink);
                Ok(())
            }
        };
        match try_once() {
            Err(ReadRefused::Gone) => try_once(),
            outcome => outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::region_tests::{Scratch, open, session};
    use super::super::snapshot::SnapshotWriter;
    use super::*;

    const SESSION_BYTES: usize = 1 << 20;

    #[test]
    fn a_read_finds_the_session_in_the_owners_region_or_says_who_is_missing() {
        let scratch = Scratch::new();
        let mut region = open(&scratch, 8).unwrap();
        let (id, table_hash) = session(3);
        let mut readers = Readers::default();
        let mut buf = [0; 8];
        assert_eq!(readers.read(2, 1, &id, table_hash, b"n", &mut buf), Err(ReadRefused::Missing));
        readers.set(2, 1, region.reader());
        assert_eq!(readers.read(2, 0, &id, table_hash, b"n", &mut buf), Err(ReadRefused::Missing));
        assert_eq!(readers.read(2, 1, &id, table_hash, b"n", &mut buf), Ok(None));
        for round in 0..3_u8 {
            let ns = region.find_or_create(&id, table_hash).unwrap();
            region.write(ns, b"n", &[round; 3], SESSION_BYTES).unwrap();
            assert_eq!(readers.read(2, 1, &id, table_hash, b"n", &mut buf), Ok(Some(3)));
            assert_eq!(buf[..3], [round; 3]);
            let (keys, mut answer) = (KeyList::new(b"m\0n\0").unwrap(), [0; 16]);
            let mut sink = SnapshotWriter::new(&mut answer);
            assert_eq!(readers.snapshot(2, 1, &id, table_hash, keys, &mut sink), Ok(()));
            assert_eq!(sink.full_bytes(), 11);
            assert_eq!(answer[..11], [0xFF, 0xFF, 0xFF, 0xFF, 3, 0, 0, 0, round, round, round]);
            assert_eq!(readers.read(2, 1, &id, table_hash, b"m", &mut buf), Ok(None));
            region.remove(ns);
            assert_eq!(readers.snapshot(2, 1, &id, table_hash, keys, &mut SnapshotWriter::new(&mut answer)), Ok(()));
            assert_eq!(answer[..8], [0xFF; 8]);
            assert_eq!(readers.read(2, 1, &id, table_hash, b"n", &mut buf), Ok(None));
        }
        readers.clear_app(2);
        assert_eq!(readers.read(2, 1, &id, table_hash, b"n", &mut buf), Err(ReadRefused::Missing));
    }
}
