//! Brings a session's state nearer before a call of it runs. Called by the session proxy; nothing is read for its value, so nothing can go wrong.

use super::cell::cell_bytes;
use super::namespace::{self, NamespaceRef, record_bytes};
use super::region::Region;
use super::table::Link;

/// Bytes of a record, and of a cell, that most calls touch.
const RECORD_BYTES: usize = record_bytes(16);
const CELL_BYTES: usize = cell_bytes(8);

impl Region {
    /// Begins to bring the namespace's record into the caches.
    #[inline]
    pub fn prefetch_record(&self, namespace: NamespaceRef) {
        self.space.words().prefetch(namespace.record, RECORD_BYTES);
    }

    /// The same for the cells of its first keys. Its record should be near by then.
    #[inline]
    pub fn prefetch_cells(&self, namespace: NamespaceRef) {
        let words = self.space.words();
        for place in namespace::own_links(namespace.record) {
            let link = Link(words.get(place, 0).unwrap_or(0));
            if link.is_leaf() {
                words.prefetch(link.offset(), CELL_BYTES);
            }
        }
    }
}
