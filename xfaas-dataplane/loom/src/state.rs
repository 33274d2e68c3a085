//! The real files of `state/`, but for `memory` and `open`, and the models beside them.

#[path = "../../src/state/ahead.rs"]
mod ahead;
#[path = "../../src/state/alloc.rs"]
mod alloc;
#[path = "../../src/state/cell.rs"]
mod cell;
#[path = "../../src/state/class.rs"]
mod class;
#[path = "../../src/state/compact.rs"]
mod compact;
#[path = "../../src/state/error.rs"]
mod error;
#[path = "../../src/state/hash.rs"]
mod hash;
#[path = "../../src/state/layout.rs"]
mod layout;
#[path = "memory.rs"]
mod memory;
#[path = "models.rs"]
mod models;
#[path = "../../src/state/namespace.rs"]
mod namespace;
#[path = "open.rs"]
mod open;
#[path = "../../src/state/reader.rs"]
mod reader;
#[path = "../../src/state/region.rs"]
mod region;
#[path = "../../src/state/scan.rs"]
mod scan;
#[path = "../../src/state/snapshot.rs"]
mod snapshot;
#[path = "../../src/state/space.rs"]
mod space;
#[path = "../../src/state/sparse.rs"]
mod sparse;
#[path = "../../src/state/table.rs"]
mod table;
#[path = "../../src/state/transaction.rs"]
mod transaction;
#[path = "../../src/state/value.rs"]
mod value;
#[path = "../../src/state/walk.rs"]
mod walk;
#[path = "../../src/state/words.rs"]
mod words;

pub use self::models::{MODELS, Model};
