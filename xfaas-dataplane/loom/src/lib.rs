//! The files of `xfaas-dataplane/src/state` under loom, which tries every order of loads and stores that the memory model allows, within a
//! bound of thread switches. Only what touches the machine is replaced: the atomics and the mapping (`checked`), and the file (`open`).
//! Run by `cargo test`; `tests/models.rs` says which models, and which mutations each of them must notice.
//!
//! The owner's stores of a model are known from a run without a reader: only those words are loom's, all others keep their values while the
//! two run side by side. That keeps the number of orders small enough to try them with the real code and not with a sketch of it.

mod checked;
#[allow(dead_code, reason = "the models use a part of what the dataplane uses")]
mod state;

/// What `state` knows the machine by.
mod sys {
    pub mod shm {
        pub use crate::checked::{SharedFile, SharedMemory};
    }
}

pub use checked::Mutation;
pub use state::{MODELS, Model};
