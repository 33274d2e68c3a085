//! Compaction: moves what lies on sparse pages elsewhere, so that the pages can serve other sizes. A little with each change of a region, more
//! when its shard is idle; never with a read.
//!
//! ```text
//! Resting -> Surveying -> Choosing -> Moving -> Resting
//!            how full     sparsest    every node, cell and value, in the order of the tables: what lies on a chosen page
//!            pages are    pages       gets another block, by one store
//! ```
//! A class gives up as many pages as its other pages have room for, the sparsest first, so about as much is moved as becomes free. Nothing
//! in a page says what its blocks belong to: the walk over the tables finds that out, so no block carries a word for it.
//!
//! Readers and kills: a value is moved as it is overwritten, by `cell::swap`; a cell or node as it is removed, by one store to the link that leads
//! to it, before the reclaim word rises and its block is freed. The record of a namespace has references to it outside: it is moved in idle
//! work only, if its shard says that it holds none, and a reader elsewhere finds its reference gone and looks the session up again.

use std::ops::Range;

use xfaas_common::ids::SessionId;
use xfaas_common::limits::KEY_BYTES_MAX;

use super::alloc::{Allocator, CONTENT_LISTS, PageFill, Purpose, RECORD_LISTS};
use super::layout::{HEADER, Kind, WORD_RECLAIM};
use super::region::SESSIONS;
use super::space::Space;
use super::sparse::Survey;
use super::table::{NODE_BYTES, NODE_LINKS, NoRoom};
use super::walk::{Cursor, Place};
use super::words::{Offset, release_fence};
use super::{cell, namespace};

/// Bytes moved with one change of the region, but for the last block: a write does not take much longer for it.
const CHANGE_BYTES_MAX: usize = 16 << 10;
/// Sessions and keys looked at with one change: while little is wasted, and how many times as many while more is.
const CHANGE_VISITS: usize = 8;
/// Waste from which on a change does twice, and four times as much: 1/10 and 1/8, in 1/256.
const WASTE_HIGH_256THS: [u64; 2] = [26, 32];
/// Changes of a wasteful region between two questions whether moving would gain.
const CHANGES_BETWEEN: u32 = 64;
/// Times a round is not begun after one that set no page free: what was in its way is asked again later.
const RESTS: u32 = 64;
/// Pages looked at for one visit.
const PAGES_PER_VISIT: u32 = 32;
/// Pieces of a value looked at for one visit.
const PIECES_PER_VISIT: usize = 8;
/// Idle work: one visit for so many bytes that may be moved.
const IDLE_BYTES_PER_VISIT: usize = 32;

/// Asked whether the owner holds a reference to a session's record, which then stays where it is.
pub(super) type IsHeld<'h> = dyn FnMut(&SessionId, u32) -> bool + 'h;

/// Work that may still be done in one step.
pub(super) struct Budget {
    visits: usize,
    bytes: usize,
}

impl Budget {
    /// For the step that goes with one change.
    fn of_change(alloc: &Allocator) -> Budget {
        let waste = alloc.waste_256ths();
        let doublings = WASTE_HIGH_256THS.iter().filter(|high| waste >= **high).count();
        Budget { visits: CHANGE_VISITS << doublings, bytes: CHANGE_BYTES_MAX }
    }

    /// For idle work.
    pub fn of_bytes(bytes: usize) -> Budget {
        Budget { visits: bytes / IDLE_BYTES_PER_VISIT + 1, bytes: bytes.max(1) }
    }

    fn is_spent(&self) -> bool {
        self.visits == 0 || self.bytes == 0
    }

    fn spend_visits(&mut self, visits: usize) {
        self.visits = self.visits.saturating_sub(visits);
    }

    fn spend_bytes(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// Why a visit ended early.
enum Pause {
    Spent,
    NoRoom,
}

impl From<NoRoom> for Pause {
    fn from(_: NoRoom) -> Pause {
        Pause::NoRoom
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Resting,
    Surveying { page: u32 },
    Choosing { page: u32 },
    Moving,
}

/// What a compactor moves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// Values, cells and nodes.
    Contents,
    /// Records of namespaces.
    Records,
}

impl Scope {
    const fn lists(self) -> Range<usize> {
        match self {
            Scope::Contents => CONTENT_LISTS,
            Scope::Records => RECORD_LISTS,
        }
    }
}

/// What a region remembers of its compaction between two steps.
pub(super) struct Compactor {
    phase: Phase,
    changes: u32,
    rests: u32,
    emptied_before: u64,
    scope: Scope,
    survey: Box<Survey>,
    sessions: Cursor,
    /// Position among the keys of the session that `sessions` is at, if its incarnation is still this.
    keys: Cursor,
    incarnation: u64,
}

impl Compactor {
    pub fn new(scope: Scope) -> Compactor {
        let (sessions, keys) = (Cursor::default(), Cursor::default());
        Compactor {
            phase: Phase::Resting,
            changes: 0,
            rests: 0,
            emptied_before: 0,
            scope,
            survey: Box::default(),
            sessions,
            keys,
            incarnation: 0,
        }
    }

    #[inline(always)]
    pub fn is_resting(&self) -> bool {
        self.phase == Phase::Resting
    }

    /// The step that goes with a change of a region that is wasteful, or under compaction.
    #[cold]
    pub fn step(&mut self, space: &Space, alloc: &mut Allocator) {
        if self.is_resting() {
            self.changes += 1;
            if self.changes < CHANGES_BETWEEN {
                return;
            }
            self.changes = 0;
        }
        self.work(space, alloc, Budget::of_change(alloc), &mut |_, _| true);
    }

    /// Goes on until the budget is spent or nothing is to be gained. Records that `is_held` denies are moved, if that is the scope.
    /// True while there is more to do.
    pub fn work(&mut self, space: &Space, alloc: &mut Allocator, mut budget: Budget, is_held: &mut IsHeld<'_>) -> bool {
        let (words, lists) = (space.words(), self.scope.lists());
        while !budget.is_spent() {
            match self.phase {
                Phase::Resting => {
                    if self.rests > 0 {
                        self.rests -= 1;
                        return false;
                    }
                    if !alloc.is_wasteful() || !alloc.would_gain(lists.clone()) {
                        return false;
                    }
                    self.emptied_before = alloc.pages_emptied();
                    *self.survey = Survey::default();
                    self.phase = Phase::Surveying { page: 0 };
                }
                Phase::Surveying { page } => {
                    let survey = &mut self.survey;
                    let note = |_: &mut Allocator, _, fill: PageFill| {
                        if lists.contains(&fill.list) {
                            survey.note(fill);
                        }
                    };
                    self.phase = match each_page(alloc, page, &mut budget, note) {
                        Some(page) => Phase::Surveying { page },
                        None => {
                            self.survey.choose(|list| alloc.spare_pages(list));
                            Phase::Choosing { page: 0 }
                        }
                    };
                }
                Phase::Choosing { page } => {
                    let survey = &mut self.survey;
                    let choose = |alloc: &mut Allocator, page, fill: PageFill| {
                        // Asked again: the region has changed since it was surveyed.
                        if lists.contains(&fill.list) && survey.takes(fill) && alloc.spare_pages(fill.list) > 0 {
                            alloc.evacuate(words, page, fill);
                        }
                    };
                    match each_page(alloc, page, &mut budget, choose) {
                        Some(page) => self.phase = Phase::Choosing { page },
                        None => self.begin_moving(),
                    }
                }
                Phase::Moving => match self.move_on(space, alloc, &mut budget, is_held) {
                    Err(Pause::Spent) => break,
                    Ok(()) | Err(Pause::NoRoom) => {
                        alloc.end_evacuation(lists.clone());
                        self.rests = if alloc.pages_emptied() == self.emptied_before { RESTS } else { 0 };
                        self.phase = Phase::Resting;
                    }
                },
            }
        }
        !self.is_resting()
    }

    /// What is to be moved lies on the pages evacuated by now.
    pub fn begin_moving(&mut self) {
        self.sessions = Cursor::default();
        self.phase = Phase::Moving;
    }

    /// Visits sessions until all are done.
    fn move_on(&mut self, space: &Space, alloc: &mut Allocator, budget: &mut Budget, is_held: &mut IsHeld<'_>) -> Result<(), Pause> {
        let words = space.words();
        while alloc.is_evacuating(self.scope.lists()) {
            if budget.is_spent() {
                return Err(Pause::Spent);
            }
            let enter = |place| enter_node(space, alloc, budget, place);
            let Some(place) = self.sessions.leaf(words, SESSIONS.root, 1 << SESSIONS.root_bits, enter)? else { break };
            budget.spend_visits(1);
            let record = place.link.offset();
            match self.scope {
                Scope::Contents => self.visit_keys(space, alloc, budget, record)?,
                Scope::Records if alloc.is_evacuated(record) => {
                    let (session, table_hash) = namespace::session(words, record).expect("the record was checked at open, or made since");
                    if !is_held(&session, table_hash) {
                        move_record(space, alloc, budget, place)?;
                    }
                }
                Scope::Records => {}
            }
            self.sessions.pass();
        }
        Ok(())
    }

    /// Visits the keys of a session: one at least, so that every step gets on.
    fn visit_keys(&mut self, space: &Space, alloc: &mut Allocator, budget: &mut Budget, record: Offset) -> Result<(), Pause> {
        let words = space.words();
        let incarnation = namespace::incarnation(words, record).expect("a record lies inside the region");
        if self.incarnation != incarnation {
            self.incarnation = incarnation;
            self.keys = Cursor::default();
        }
        if namespace::table(words, record).expect("a record lies inside the region").is_none() {
            // After a pause from the first one on: by then they may have become a table, which has another order.
            for at in namespace::own_links(record) {
                let place = Place::load(words, at);
                if !place.link.is_empty() {
                    visit_cell(space, alloc, budget, record, place)?;
                }
            }
            return Ok(());
        }
        let root = enter_node(space, alloc, budget, Place::load(words, namespace::table_word(record)))?;
        loop {
            let enter = |place| enter_node(space, alloc, budget, place);
            let Some(place) = self.keys.leaf(words, root, NODE_LINKS, enter)? else { return Ok(()) };
            visit_cell(space, alloc, budget, record, place)?;
            self.keys.pass();
            if budget.is_spent() {
                return Err(Pause::Spent);
            }
        }
    }
}

/// Shows `see` the pages from `page` on that have room. Output: where to go on, `None` when all were seen.
fn each_page(alloc: &mut Allocator, mut page: u32, budget: &mut Budget, mut see: impl FnMut(&mut Allocator, u32, PageFill)) -> Option<u32> {
    while page < alloc.pages_fresh() {
        if budget.visits == 0 {
            return Some(page);
        }
        budget.spend_visits(1);
        let end = alloc.pages_fresh().min(page + PAGES_PER_VISIT);
        for page in page..end {
            if let Some(fill) = alloc.fill_of(page) {
                see(alloc, page, fill);
            }
        }
        page = end;
    }
    None
}

/// Where the node is that `place` leads to, after it was moved if its page is to become empty.
fn enter_node(space: &Space, alloc: &mut Allocator, budget: &mut Budget, place: Place) -> Result<Offset, NoRoom> {
    let (words, node) = (space.words(), place.link.offset());
    if !alloc.is_evacuated(node) {
        return Ok(node);
    }
    let to = alloc.allocate(space, Kind::Node, NODE_BYTES, Purpose::Growth).ok_or(NoRoom)?;
    release_fence(); // the block may have been freed since the last one
    words.copy_between(node, to, NODE_BYTES);
    words.publish(place.at, 0, place.link.moved(to).0);
    words.bump(HEADER, WORD_RECLAIM);
    alloc.free(words, node);
    budget.spend_bytes(NODE_BYTES);
    Ok(to)
}

fn move_record(space: &Space, alloc: &mut Allocator, budget: &mut Budget, place: Place) -> Result<(), NoRoom> {
    let (words, record) = (space.words(), place.link.offset());
    let bytes = namespace::bytes_of(words, record);
    let to = alloc.allocate(space, Kind::Namespace, bytes, Purpose::Growth).ok_or(NoRoom)?;
    release_fence();
    namespace::copy(words, record, to);
    words.publish(place.at, 0, place.link.moved(to).0);
    // Whoever holds on to this record sees by its incarnation that changes are announced elsewhere now.
    namespace::retire(words, record);
    words.bump(HEADER, WORD_RECLAIM);
    alloc.free(words, record);
    budget.spend_bytes(bytes);
    Ok(())
}

/// Moves a cell and its value, each if its page is to become empty.
fn visit_cell(space: &Space, alloc: &mut Allocator, budget: &mut Budget, record: Offset, place: Place) -> Result<(), Pause> {
    if budget.bytes == 0 {
        return Err(Pause::Spent); // not for want of visits: those who come here again would never get on
    }
    let words = space.words();
    let cell = if alloc.is_evacuated(place.link.offset()) {
        budget.spend_bytes(alloc.block_bytes(place.link.offset()));
        move_cell(space, alloc, record, place)?
    } else {
        place.link.offset()
    };
    let mut value = cell::value(words, cell);
    budget.spend_visits(1 + value.pieces() / PIECES_PER_VISIT);
    release_fence();
    while let Some(copy) = value.relocate(space, alloc, &mut budget.bytes)? {
        namespace::change(words, record, || cell::swap(words, cell, copy));
        value.free_replaced(copy, words, alloc);
        if budget.bytes == 0 {
            return Err(Pause::Spent); // there may be more pieces
        }
        value = copy;
        release_fence();
    }
    Ok(())
}

fn move_cell(space: &Space, alloc: &mut Allocator, record: Offset, place: Place) -> Result<Offset, NoRoom> {
    let (words, cell) = (space.words(), place.link.offset());
    let mut key = [0; KEY_BYTES_MAX];
    let key = &mut key[..cell::key_bytes(words, cell)];
    cell::copy_key(words, cell, key);
    let to = alloc.allocate(space, cell::KIND, cell::cell_bytes(key.len()), Purpose::Growth).ok_or(NoRoom)?;
    cell::create(words, to, key, cell::value(words, cell));
    namespace::change(words, record, || words.publish(place.at, 0, place.link.moved(to).0));
    words.bump(HEADER, WORD_RECLAIM);
    cell::retire(words, cell);
    alloc.free(words, cell);
    Ok(to)
}
