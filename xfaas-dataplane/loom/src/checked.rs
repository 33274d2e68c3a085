//! Memory whose words are plain until the reader's thread begins and loom's from then on, and mutations of it. Stands in for
//! `sys/shm.rs` and `state/memory.rs`; orderings and fences are what the real code asks for, unless a mutation says otherwise.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64 as PlainU64;

use loom::sync::atomic::AtomicU64 as LoomU64;
pub use std::sync::atomic::Ordering;

/// Words that come into being together, at the first touch of one of them.
const CHUNK_WORDS: usize = 256;
/// Words of a region of 1 MiB: its header and page table, and its pages.
const WORDS: usize = (10 << 20) / size_of::<u64>();

/// Tries in vain of which all orders are tried.
const RETRIES_MAX: usize = 1;

/// What is left out of the code, to show that a model notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// The owner's release fences do nothing.
    NoReleaseFence,
    /// The readers' acquire fences do nothing.
    NoAcquireFence,
    /// Release stores are relaxed ones.
    RelaxedPublish,
    /// A reader that loads this word of the header again takes it to be what it was.
    NoSecondLookAtHeader(usize),
    /// A reader that loads the version of the cell of session and key again takes it to be what it was.
    NoSecondLookAtVersion,
    /// A reader that loads the session's sequence again takes it to be what it was.
    NoSecondLookAtSequence,
    /// A mark on a cell is not seen: readers go by the version alone.
    NoMark,
}

thread_local! {
    // All threads of a model share the system's thread.
    static MUTATION: Cell<Option<Mutation>> = const { Cell::new(None) };
    static IS_RACING: Cell<bool> = const { Cell::new(false) };
    static RETRIES: Cell<usize> = const { Cell::new(0) };
    static STORED: RefCell<Option<BTreeSet<usize>>> = const { RefCell::new(None) };
    static READER: RefCell<Option<Reader>> = const { RefCell::new(None) };
}

/// The reader's thread, and the words it may not look at twice, with what it saw there.
struct Reader {
    thread: loom::thread::ThreadId,
    once: BTreeMap<usize, Option<u64>>,
    /// Words of which it sees these bits only.
    masked: BTreeMap<usize, u64>,
}

pub fn set_mutation(mutation: Option<Mutation>) {
    MUTATION.set(mutation);
}

pub fn mutation() -> Option<Mutation> {
    MUTATION.get()
}

/// From now on the words are plain; stores are taken note of if `is_recording`.
pub fn begin_alone(is_recording: bool) {
    IS_RACING.set(false);
    RETRIES.set(0);
    READER.set(None);
    STORED.set(is_recording.then(BTreeSet::new));
}

/// The words stored to since `begin_alone`.
pub fn take_stored() -> BTreeSet<usize> {
    STORED.take().expect("a recording was begun")
}

/// Called on the reader's thread before it reads: which words mutations take from it.
pub fn begin_reading(once: &[usize], masked: &[(usize, u64)]) {
    let once = once.iter().map(|word| (*word, None)).collect();
    let reader = Reader { thread: loom::thread::current().id(), once, masked: masked.iter().copied().collect() };
    READER.set(Some(reader));
}

/// What a load of the reader's is to return instead of what it would.
fn mutated(index: usize, load: impl Fn() -> u64) -> u64 {
    let is_readers = READER.with_borrow(|reader| reader.as_ref().is_some_and(|reader| reader.thread == loom::thread::current().id()));
    if !is_readers {
        return load();
    }
    let seen = READER.with_borrow(|reader| reader.as_ref().and_then(|reader| *reader.once.get(&index)?));
    let value = seen.unwrap_or_else(load); // a load lets other threads run, so nothing is borrowed here
    READER.with_borrow_mut(|reader| {
        let Some(reader) = reader else { return value };
        if let Some(seen) = reader.once.get_mut(&index) {
            *seen = Some(value);
        }
        value & reader.masked.get(&index).copied().unwrap_or(u64::MAX)
    })
}

pub struct AtomicU64 {
    index: usize,
    plain: PlainU64,
    checked: OnceLock<LoomU64>,
}

impl AtomicU64 {
    pub fn load(&self, ordering: Ordering) -> u64 {
        match self.checked.get() {
            Some(checked) if IS_RACING.get() => mutated(self.index, || checked.load(ordering)),
            _ => self.plain.load(ordering),
        }
    }

    pub fn store(&self, value: u64, ordering: Ordering) {
        if !IS_RACING.get() {
            STORED.with_borrow_mut(|stored| stored.as_mut().map(|stored| stored.insert(self.index)));
            return self.plain.store(value, ordering);
        }
        let checked = self.checked.get().expect("the owner stores to the same words in every run");
        let ordering = if MUTATION.get() == Some(Mutation::RelaxedPublish) { Ordering::Relaxed } else { ordering };
        checked.store(value, ordering);
    }
}

pub fn fence(ordering: Ordering) {
    let is_left_out = match MUTATION.get() {
        Some(Mutation::NoReleaseFence) => ordering == Ordering::Release,
        Some(Mutation::NoAcquireFence) => ordering == Ordering::Acquire,
        _ => false,
    };
    if IS_RACING.get() && !is_left_out {
        loom::sync::atomic::fence(ordering);
    }
}

/// A reader's try was in vain. What comes after the last retry is run in one order only: more tries show the same things again.
pub fn spin_loop() {
    if !IS_RACING.get() {
        return;
    }
    RETRIES.set(RETRIES.get() + 1);
    if RETRIES.get() == RETRIES_MAX {
        loom::skip_branch();
    }
    loom::hint::spin_loop();
}

/// True when a reader went on after its last retry: that it gave up says nothing then.
pub fn is_past_retries() -> bool {
    RETRIES.get() >= RETRIES_MAX
}

type Chunk = Box<[AtomicU64]>;

pub struct Memory {
    chunks: Vec<OnceLock<Chunk>>,
}

impl Memory {
    fn new() -> Memory {
        Memory { chunks: (0..WORDS.div_ceil(CHUNK_WORDS)).map(|_| OnceLock::new()).collect() }
    }

    pub fn word(&self, index: usize) -> Option<&AtomicU64> {
        let first = index / CHUNK_WORDS * CHUNK_WORDS;
        let new = |index| AtomicU64 { index, plain: PlainU64::new(0), checked: OnceLock::new() };
        let chunk = self.chunks.get(index / CHUNK_WORDS)?;
        chunk.get_or_init(|| (first..first + CHUNK_WORDS).map(new).collect()).get(index - first)
    }

    /// From now on a reader may run: these words are loom's, and all others stay as they are.
    pub fn begin_race(&self, stored: &BTreeSet<usize>) {
        for index in stored {
            let word = self.word(*index).expect("the owner's words lie inside the region");
            assert!(word.checked.set(LoomU64::new(word.plain.load(Ordering::Relaxed))).is_ok(), "one race a memory");
        }
        IS_RACING.set(true);
    }
}

pub struct SharedMemory {
    memory: Memory,
}

impl SharedMemory {
    pub fn new() -> SharedMemory {
        SharedMemory { memory: Memory::new() }
    }

    pub fn words(&self) -> &Memory {
        &self.memory
    }
}

impl std::fmt::Debug for SharedMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SharedMemory")
    }
}

/// There is no file: memory is there from the start.
pub struct SharedFile;

impl SharedFile {
    pub fn commit(&self, _offset: u64, _bytes: u64) -> io::Result<()> {
        Ok(())
    }
}
