//! Sessions that were moved off the shard that owns their slot, and where they are now. One board for all shards of a process; a request looks
//! at its shard's own view of it, which costs one load while nothing was ever moved. ARCHITECTURE.md "Moving a session".
//! Written by the two shards of a move (`shard::moving_session`), read by all shards and by control.

use super::pin_book::{PinBook, PinError};
use super::placement::Placement;
use rustc_hash::FxHashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use xfaas_common::hash::SessionHash;
use xfaas_common::ids::{CoreIndex, SessionId};
use xfaas_common::limits::PINNED_SESSIONS_MAX;

/// Where pinned sessions are. Only operators and the balancer pin, so the hash of the table needs no key.
#[derive(Clone, Default)]
pub(super) struct PinTable {
    /// By session: apps and their cores; one session's name is rarely pinned in more than one app.
    by_session: FxHashMap<SessionId, Vec<(Box<str>, CoreIndex)>>,
    pins: usize,
}

impl PinTable {
    pub(super) fn core_of(&self, app: &str, session: &SessionId) -> Option<CoreIndex> {
        self.by_session.get(session)?.iter().find(|(name, _)| **name == *app).map(|(_, core)| *core)
    }

    /// `None` as the core: the session is with its slot's owner again.
    pub(super) fn set(&mut self, app: &str, session: &SessionId, core: Option<CoreIndex>) {
        let cores = self.by_session.entry(*session).or_default();
        let before = cores.len();
        cores.retain(|(name, _)| **name != *app);
        cores.extend(core.map(|core| (Box::from(app), core)));
        self.pins = self.pins - before + cores.len();
        if cores.is_empty() {
            self.by_session.remove(session);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.pins
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &SessionId, CoreIndex)> {
        self.by_session.iter().flat_map(|(session, cores)| cores.iter().map(move |(app, core)| (&**app, session, *core)))
    }
}

/// All pins of a process, and the record of moves on tmpfs that says after a kill which copy of a session counts.
pub struct PinBoard {
    /// Rises after each change of the table.
    generation: AtomicU64,
    table: Mutex<Arc<PinTable>>,
    /// `None` in a container: nothing is moved there.
    book: Mutex<Option<PinBook>>,
    /// A move is under way: one at a time.
    is_moving: AtomicBool,
    /// A container wants to join: it knows slots, not pins, so all sessions are to go home first.
    is_wanted_home: AtomicBool,
}

impl std::fmt::Debug for PinBoard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PinBoard").field("pins", &self.len()).finish()
    }
}

impl PinBoard {
    /// Of a node whose record of moves was opened.
    pub fn new(book: PinBook) -> PinBoard {
        let table = book.table().clone();
        let generation = AtomicU64::new(u64::from(table.len() > 0));
        PinBoard { generation, table: Mutex::new(Arc::new(table)), book: Mutex::new(Some(book)), ..PinBoard::none() }
    }

    /// Where nothing is ever moved.
    pub fn none() -> PinBoard {
        PinBoard {
            generation: AtomicU64::new(0),
            table: Mutex::default(),
            book: Mutex::new(None),
            is_moving: AtomicBool::new(false),
            is_wanted_home: AtomicBool::new(false),
        }
    }

    fn table(&self) -> Arc<PinTable> {
        Arc::clone(&lock(&self.table))
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Where the session is, if it is not with its slot's owner.
    pub fn core_of(&self, app: &str, session: &SessionId) -> Option<CoreIndex> {
        self.table().core_of(app, session)
    }

    /// Where a session of this name is pinned in some app: the kernel knows no apps.
    pub fn core_in_any_app(&self, session: &SessionId) -> Option<CoreIndex> {
        self.table().by_session.get(session)?.first().map(|(_, core)| *core)
    }

    /// All pins: app, session, core.
    pub fn list(&self) -> Vec<(String, SessionId, CoreIndex)> {
        self.table().iter().map(|(app, session, core)| (app.to_owned(), *session, core)).collect()
    }

    pub fn len(&self) -> usize {
        self.table().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The right to move a session; `None`: another is being moved.
    pub fn claim(self: &Arc<PinBoard>) -> Option<MoveClaim> {
        let is_free = !self.is_moving.swap(true, Ordering::SeqCst);
        is_free.then(|| MoveClaim(Arc::clone(self)))
    }

    /// Asked when a container says hello. True: it must come again, when no session is moved or elsewhere than its slot says.
    pub fn keeps_containers_out(&self) -> bool {
        let is_in_use = self.is_moving.load(Ordering::SeqCst) || !self.is_empty();
        if is_in_use {
            self.is_wanted_home.store(true, Ordering::Release);
        }
        is_in_use
    }

    /// True when a container was turned away; asking forgets it.
    pub fn take_wanted_home(&self) -> bool {
        self.is_wanted_home.swap(false, Ordering::AcqRel)
    }

    /// Writes down that copies of the session are about to be made on `to`: after a kill it is looked at.
    pub fn begin(&self, app: &str, session: &SessionId, is_home: bool) -> Result<(), PinError> {
        if !is_home && self.core_of(app, session).is_none() && self.len() >= PINNED_SESSIONS_MAX {
            return Err(PinError::TooMany);
        }
        self.with_book(|book| book.begin(app, session))
    }

    /// The copy on `core` is complete: it counts from here on, also after a kill. `is_home`: that is the owner of the session's slot.
    /// Errors: nothing changed.
    pub fn commit(&self, app: &str, session: &SessionId, core: CoreIndex, is_home: bool) -> Result<(), PinError> {
        let core = (!is_home).then_some(core);
        self.with_book(|book| book.set(app, session, core))?;
        let mut shared = lock(&self.table);
        let mut table = PinTable::clone(&shared);
        table.set(app, session, core);
        *shared = Arc::new(table);
        drop(shared);
        self.generation.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// The other copies are gone. An error only means that the next start looks for them once more.
    pub fn end(&self, app: &str, session: &SessionId) -> Result<(), PinError> {
        self.with_book(|book| book.end(app, session))
    }

    fn with_book(&self, work: impl FnOnce(&mut PinBook) -> Result<(), PinError>) -> Result<(), PinError> {
        lock(&self.book).as_mut().map_or(Err(PinError::NoBook), work)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The right to move a session; dropping it gives it back.
pub struct MoveClaim(Arc<PinBoard>);

impl Drop for MoveClaim {
    fn drop(&mut self) {
        self.0.is_moving.store(false, Ordering::SeqCst);
    }
}

/// One shard's view of the board.
pub struct PinView {
    board: Arc<PinBoard>,
    seen: u64,
    table: Arc<PinTable>,
}

impl PinView {
    pub fn new(board: Arc<PinBoard>) -> PinView {
        let (seen, table) = (board.generation(), board.table());
        PinView { board, seen, table }
    }

    pub fn board(&self) -> &Arc<PinBoard> {
        &self.board
    }

    /// Takes over what changed. Cost while nothing did: one load of a line that nobody writes.
    #[inline(always)]
    pub fn refresh(&mut self) {
        if self.board.generation() != self.seen {
            self.take_over();
        }
    }

    #[cold]
    fn take_over(&mut self) {
        // In this order: a table may be newer than what is noted of it, never older.
        self.seen = self.board.generation();
        self.table = self.board.table();
    }

    /// Names what this view knows; 0: nothing was ever moved.
    pub fn generation(&self) -> u64 {
        self.seen
    }

    /// True when a session was moved since the view had that generation.
    pub fn has_changed_since(&self, generation: u64) -> bool {
        self.board.generation() != generation
    }

    /// The shard that owns a session: where it is pinned, else its slot's owner. For the latest word call `refresh` first.
    #[inline(always)]
    pub fn owner(&self, placement: &dyn Placement, app: &str, session: &SessionId, hash: SessionHash) -> CoreIndex {
        if self.table.len() != 0
            && let Some(core) = self.table.core_of(app, session)
        {
            return core;
        }
        placement.owner(hash.slot())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::LocalPlacement;

    #[test]
    fn a_view_follows_the_board() {
        let folder = tempfile::tempdir().unwrap();
        let board = Arc::new(PinBoard::new(PinBook::open(folder.path()).unwrap()));
        let placement = LocalPlacement::new(2);
        let session = SessionId::new(b"hot").unwrap();
        let hash = placement.hash(&session);
        let home = placement.owner(hash.slot());
        let away = CoreIndex(1 - home.0);
        let mut view = PinView::new(Arc::clone(&board));
        assert_eq!((view.owner(&placement, "shop", &session, hash), view.generation()), (home, 0));
        board.begin("shop", &session, false).unwrap();
        board.commit("shop", &session, away, false).unwrap();
        assert!(view.has_changed_since(view.generation()));
        view.refresh();
        assert_eq!(view.owner(&placement, "shop", &session, hash), away);
        assert_eq!(view.owner(&placement, "other", &session, hash), home);
        assert_eq!((board.core_in_any_app(&session), board.len()), (Some(away), 1));
        board.commit("shop", &session, home, true).unwrap();
        view.refresh();
        assert_eq!(view.owner(&placement, "shop", &session, hash), home);
        assert!(board.is_empty() && view.generation() != 0);
    }

    #[test]
    fn there_is_a_most_and_going_home_is_always_possible() {
        let folder = tempfile::tempdir().unwrap();
        let board = PinBoard::new(PinBook::open(folder.path()).unwrap());
        let id = |i: usize| SessionId::new(format!("s{i}").as_bytes()).unwrap();
        for i in 0..PINNED_SESSIONS_MAX {
            board.begin("a", &id(i), false).unwrap();
            board.commit("a", &id(i), CoreIndex(1), false).unwrap();
            board.end("a", &id(i)).unwrap();
        }
        assert!(matches!(board.begin("a", &id(PINNED_SESSIONS_MAX), false), Err(PinError::TooMany)));
        board.begin("a", &id(0), false).unwrap();
        board.begin("a", &id(1), true).unwrap();
    }

    #[test]
    fn containers_are_kept_out_while_a_session_is_not_where_its_slot_says() {
        let board = Arc::new(PinBoard::none());
        assert!(!board.keeps_containers_out() && !board.take_wanted_home());
        let claim = board.claim();
        assert!(claim.is_some() && board.claim().is_none());
        assert!(board.keeps_containers_out() && board.take_wanted_home());
        drop(claim);
        assert!(!board.keeps_containers_out());
    }
}
