//! The steps between a request that is read and its guest: which session it names, where that is, and its lock. `counts` counts them.

use super::wire::{HttpReader, http_request, session};
use crate::servers::scratch_directory;
use crate::state::{Case, CaseError};
use std::hint::black_box;
use tempfile::TempDir;
use xfaas_common::hash::{HASH_KEYS, HashKeys};
use xfaas_common::ids::SessionId;
use xfaas_dataplane::net::Request;
use xfaas_dataplane::session::{LocalPlacement, Placement, named_session};
use xfaas_dataplane::state::{Acquire, CallToken, LockKey, LockTable, Region, RegionOptions};
use xfaas_dataplane::worker::Hint;

const REGION_BYTES: u64 = 64 << 20;
const SESSIONS: u32 = 1_000;
/// Prime to `SESSIONS`, so that every session has its turn and none follows its neighbour.
const STRIDE: u32 = 379;

/// The hint of an app's rule, the hash, the tables and the lock.
pub(super) fn session_cases() -> Result<Vec<Box<dyn Case>>, CaseError> {
    Ok(vec![
        Box::new(HintOf::new("hint/header", Hint::SessionHeader)?),
        Box::new(HintOf::new("hint/cookie", Hint::Cookie("sid".to_owned()))?),
        Box::new(HintOf::new("hint/query", Hint::Query("sid".to_owned()))?),
        Box::new(Owner { placement: placement(), session: session(0) }),
        Box::new(Find::new()?),
        Box::new(Lock { locks: LockTable::new(), granted: Vec::with_capacity(1), session: session(0) }),
    ])
}

/// The same keys each time: other keys put sessions elsewhere in the tables.
pub(super) fn placement() -> LocalPlacement {
    let mut word = 0_u64;
    let keys = std::array::from_fn::<u64, HASH_KEYS, _>(|_| {
        word = word.wrapping_add(0x9E37_79B9_7F4A_7C15);
        (word ^ word >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9)
    });
    LocalPlacement::with_keys(1, HashKeys { keys })
}

struct HintOf {
    name: &'static str,
    hint: Hint,
    request: Request,
}

impl HintOf {
    fn new(name: &'static str, hint: Hint) -> Result<HintOf, CaseError> {
        let mut request = Request::default();
        let text =
            String::from_utf8_lossy(&http_request("127.0.0.1:8080", "counter-rmw?a=b&sid=session-00000000", &session(0))).into_owned();
        let text = text.replace("Accept: */*", "Cookie: theme=dark; sid=session-00000000");
        HttpReader::new().read(text.as_bytes(), &mut request)?;
        let case = HintOf { name, hint, request };
        match named_session(&case.request, &case.hint) {
            Ok(Some(named)) if named == session(0) => Ok(case),
            other => Err(CaseError::Answer(format!("{name} finds {other:?}"))),
        }
    }
}

impl Case for HintOf {
    fn name(&self) -> &'static str {
        self.name
    }

    fn operations(&self) -> u32 {
        1
    }

    fn batch(&mut self) -> Result<(), CaseError> {
        black_box(named_session(black_box(&self.request), black_box(&self.hint)))
            .map(drop)
            .map_err(|detail| CaseError::Answer(detail.to_owned()))
    }
}

/// The shard that owns a session.
struct Owner {
    placement: LocalPlacement,
    session: SessionId,
}

impl Case for Owner {
    fn name(&self) -> &'static str {
        "session/owner"
    }

    fn operations(&self) -> u32 {
        1
    }

    fn batch(&mut self) -> Result<(), CaseError> {
        let hash = self.placement.hash(black_box(&self.session));
        black_box((self.placement.owner(hash.slot()), hash.table_hash()));
        Ok(())
    }
}

/// A session's record among others.
struct Find {
    region: Region,
    sessions: Vec<(SessionId, u32)>,
    next: u32,
    _directory: TempDir,
}

impl Find {
    fn new() -> Result<Find, CaseError> {
        let directory = scratch_directory("counts").map_err(CaseError::Directory)?;
        let options = RegionOptions { app: "bench", shard: 0, bytes_max: REGION_BYTES, hash_tag: 0 };
        let mut region = Region::open_or_create(&directory.path().join("bench.region"), &options)?;
        let placement = placement();
        let sessions: Vec<_> = (0..SESSIONS).map(session).map(|session| (session, placement.hash(&session).table_hash())).collect();
        for (session, hash) in &sessions {
            region.find_or_create(session, *hash)?;
        }
        Ok(Find { region, sessions, next: 0, _directory: directory })
    }
}

impl Case for Find {
    fn name(&self) -> &'static str {
        "session/find"
    }

    /// All of them, so that it does not matter which are counted.
    fn operations(&self) -> u32 {
        SESSIONS
    }

    fn batch(&mut self) -> Result<(), CaseError> {
        for _ in 0..SESSIONS {
            self.next = (self.next + STRIDE) % SESSIONS;
            let (session, hash) = &self.sessions[self.next as usize];
            if black_box(self.region.find(session, *hash)).is_none() {
                return Err(CaseError::Answer("a session is gone".to_owned()));
            }
        }
        Ok(())
    }
}

/// Taken and given back; nobody else wants it.
struct Lock {
    locks: LockTable,
    granted: Vec<CallToken>,
    session: SessionId,
}

impl Case for Lock {
    fn name(&self) -> &'static str {
        "lock/uncontended"
    }

    fn operations(&self) -> u32 {
        1
    }

    fn batch(&mut self) -> Result<(), CaseError> {
        let key = LockKey { app: 0, session: &self.session, key: b"n" };
        if self.locks.acquire(black_box(&key), CallToken(1)) != Acquire::Granted {
            return Err(CaseError::Answer("a lock that nobody holds was not granted".to_owned()));
        }
        self.locks.release(&key, CallToken(1), &mut self.granted);
        Ok(())
    }
}
