//! The mapped file as the owner holds it: the words, and the file itself for asking memory of the system.

use std::sync::Arc;

use crate::sys::shm::{SharedFile, SharedMemory};

use super::words::Words;

pub(super) struct Space {
    pub file: SharedFile,
    pub memory: Arc<SharedMemory>,
}

impl Space {
    #[inline(always)]
    pub fn words(&self) -> Words<'_> {
        Words::new(self.memory.words())
    }
}
