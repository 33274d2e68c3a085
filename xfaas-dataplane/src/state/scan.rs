//! The check at open: everything reachable is looked at once, blocks in use are told to the allocator, sizes are counted anew.
//! After it the owner trusts each offset in the region. Corruption is refused with its place; leaked blocks are free again. A transaction
//! in whose middle the last owner was killed is settled on the way: rolled forward if its number was committed, else dropped.

use xfaas_common::limits::{SESSION_ID_BYTES_MAX, SESSION_KEYS_MAX};

use super::ahead::Ahead;
use super::alloc::Allocator;
use super::error::RegionError;
use super::hash::Secret;
use super::layout::{HEADER, Kind, WORD_INCARNATIONS};
use super::region::SESSIONS;
use super::table::{Link, NODE_BYTES, Table};
use super::value::ValueHead;
use super::words::{Offset, WORD_BYTES, Words};
use super::{cell, namespace};

/// What was found, and what the owner keeps up from then on.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    pub sessions: u64,
    pub keys: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
}

/// More than any owner can give out in its life: beyond it the count would begin at 0 again, which names a free record.
const INCARNATIONS_MAX: u64 = 1 << 63;

/// A place and what is wrong there.
type Fault = (Offset, &'static str);

/// A cell without a value that is still linked from its session's record: a transaction's new key or deleted one, left by a kill.
pub(super) struct AbsentCell {
    pub record: Offset,
    pub cell: Offset,
}

/// Input: a region whose header was checked, and the pages ever taken. Errors: `Corrupt`.
pub(super) fn scan(words: Words<'_>, alloc: &mut Allocator, fresh: u32, secret: Secret) -> Result<(Totals, Vec<AbsentCell>), RegionError> {
    let corrupt = |(at, what): Fault| RegionError::Corrupt { offset: at.0, what };
    alloc.load_page_table(words, fresh).map_err(corrupt)?;
    if words.load(HEADER, WORD_INCARNATIONS) > INCARNATIONS_MAX {
        return Err(corrupt((HEADER.plus((WORD_INCARNATIONS * WORD_BYTES) as u64), "more incarnations than can have been given out")));
    }
    let (mut totals, mut absent) = (Totals::default(), Vec::new());
    let mut visit = |alloc: &mut Allocator, found: Found| scan_namespace(words, alloc, secret, found, &mut totals, &mut absent);
    let top = Prefix { bits: 0, value: 0, ahead: Ahead::Sessions };
    scan_links(words, alloc, SESSIONS.root, 1 << SESSIONS.root_bits, top, SESSIONS.root_bits, &mut visit).map_err(corrupt)?;
    alloc.finish_claims(words);
    Ok((totals, absent))
}

/// The hash bits that lead to a node, and whether what it leads to is in the cache by now.
#[derive(Clone, Copy)]
struct Prefix {
    bits: u32,
    value: u64,
    ahead: Ahead,
}

impl Prefix {
    fn matches(self, hash: u64) -> bool {
        self.bits >= 64 || hash & ((1 << self.bits) - 1) == self.value
    }
}

/// A leaf, where the link to it lies, and the hash bits that led there.
#[derive(Clone, Copy)]
struct Found {
    place: Offset,
    link: Link,
    prefix: Prefix,
}

impl Found {
    /// True when a lookup of that hash ends here.
    fn is_home_of(self, hash: u64) -> bool {
        self.prefix.matches(hash) && self.link.may_be(hash)
    }
}

type Visit<'v> = dyn FnMut(&mut Allocator, Found) -> Result<(), Fault> + 'v;

/// Claims all nodes below an array of links and visits the leaves. Each node can be claimed once, so the walk ends, whatever the words say.
fn scan_links(
    words: Words<'_>,
    alloc: &mut Allocator,
    at: Offset,
    links: usize,
    prefix: Prefix,
    bits: u32,
    visit: &mut Visit<'_>,
) -> Result<(), Fault> {
    for slot in 0..links {
        let place = at.plus((slot * WORD_BYTES) as u64);
        let link = Link(words.get(place, 0).map_err(|_| (place, "the table lies outside the file"))?);
        if link.is_empty() {
            continue;
        }
        let ahead = prefix.ahead.look(words, alloc, std::iter::once(link));
        let below = Prefix { bits: prefix.bits + bits, value: prefix.value | (slot as u64) << prefix.bits, ahead };
        if !link.is_well_formed() {
            return Err((place, "the link has bits that no link has"));
        }
        if link.is_leaf() {
            visit(alloc, Found { place, link, prefix: below })?;
            continue;
        }
        if below.bits >= 64 {
            return Err((place, "the table is deeper than its hash is long"));
        }
        alloc.claim(link.offset(), Kind::Node, NODE_BYTES).map_err(|what| (place, what))?;
        let node = Table::of_node(link.offset());
        scan_links(words, alloc, node.root, 1 << node.root_bits, below, node.root_bits, visit)?;
    }
    Ok(())
}

fn scan_namespace(
    words: Words<'_>,
    alloc: &mut Allocator,
    secret: Secret,
    found: Found,
    totals: &mut Totals,
    absent: &mut Vec<AbsentCell>,
) -> Result<(), Fault> {
    let record = found.link.offset();
    let (session, table_hash) = namespace::session(words, record).ok_or((record, "the record holds no session ID"))?;
    let bytes = namespace::record_bytes(usize::from(session.length()));
    alloc.claim(record, Kind::Namespace, bytes).map_err(|what| (found.place, what))?;
    if !found.is_home_of(secret.session_hash(&session, table_hash)) {
        return Err((found.place, "the session is not where its hash leads"));
    }
    // Look-ups compare whole words, so what is behind the name counts too.
    if namespace::is_of(words, record, &session) != Ok(true) {
        return Err((record, "the session ID is not padded with zeros"));
    }
    let incarnation = namespace::incarnation(words, record).unwrap_or(0);
    if incarnation == 0 || incarnation > words.load(HEADER, WORD_INCARNATIONS) {
        return Err((record, "the record's incarnation was never given out"));
    }
    namespace::settle_sequence(words, record);
    let committed = namespace::committed(words, record).map_err(|_| (record, "the record lies outside the file"))?;
    if committed >= cell::TRANSACTIONS_MAX {
        return Err((record, "more transactions than can have been committed"));
    }
    let mut size = Totals::default();
    let mut visit = |alloc: &mut Allocator, found: Found| {
        let (key_bytes, value) = scan_cell(words, alloc, secret, found, committed)?;
        if value.is_absent() {
            absent.push(AbsentCell { record, cell: found.link.offset() });
            return Ok(());
        }
        size.keys += 1;
        size.bytes += (key_bytes + value.bytes) as u64;
        Ok(())
    };
    match namespace::table(words, record).map_err(|_| (record, "the record lies outside the file"))? {
        None => {
            let root = Prefix { bits: 0, value: 0, ahead: Ahead::Done };
            for place in namespace::own_links(record) {
                let link = Link(words.get(place, 0).map_err(|_| (place, "the record lies outside the file"))?);
                match link.is_leaf() {
                    true => visit(alloc, Found { place, link, prefix: root })?,
                    false if link.is_empty() => {}
                    false => return Err((place, "a record's own link leads to a table")),
                }
            }
        }
        Some(table) => {
            alloc.claim(table.root, Kind::Node, NODE_BYTES).map_err(|what| (record, what))?;
            let top = Prefix { bits: 0, value: 0, ahead: Ahead::Keys.look_at_node(words, alloc, table.root) };
            scan_links(words, alloc, table.root, 1 << table.root_bits, top, table.root_bits, &mut visit)?;
        }
    }
    if size.keys > SESSION_KEYS_MAX as u64 {
        return Err((record, "the session has more keys than a session can have"));
    }
    namespace::set_size(words, record, size.bytes, size.keys);
    totals.sessions += 1;
    totals.keys += size.keys;
    totals.bytes += size.bytes;
    Ok(())
}

/// Output: bytes of the cell's key, and its value, whose blocks are claimed.
fn scan_cell(words: Words<'_>, alloc: &mut Allocator, secret: Secret, found: Found, committed: u64) -> Result<(usize, ValueHead), Fault> {
    let cell = found.link.offset();
    // Claimed as the smallest cell first: the length of its key is not to be believed before the block is known to be a cell.
    alloc.claim(cell, cell::KIND, cell::cell_bytes(1)).map_err(|what| (found.place, what))?;
    let key_bytes = cell::key_bytes(words, cell);
    if key_bytes == 0 || cell::cell_bytes(key_bytes) > alloc.block_bytes(cell) {
        return Err((cell, "the key is longer than its cell"));
    }
    if !found.is_home_of(namespace::key_hash(words, secret, cell)) {
        return Err((found.place, "the key is not where its hash leads"));
    }
    if !namespace::is_key_padded(words, cell) {
        return Err((cell, "the key is not padded with zeros"));
    }
    // Readers of other processes may be looking on: they were told to look again when this open began.
    match cell::pending(words, cell).map(|pending| pending.number) {
        None => {}
        Some(number) if number == committed => _ = cell::roll_forward(words, cell),
        Some(number) if number == committed.wrapping_add(1) => cell::give_up(words, cell),
        Some(_) => return Err((cell, "the pending write is of no transaction of its session")),
    }
    let value = cell::value(words, cell);
    value.claim(words, alloc, cell)?;
    Ok((key_bytes, value))
}

const _: () = assert!(namespace::record_bytes(SESSION_ID_BYTES_MAX) <= super::class::BLOCK_BYTES_MAX);
