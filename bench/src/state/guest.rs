//! State access from inside a guest: one invocation of the guest `state-loop` does a batch, so a 64th of an invocation is in each sample.

use super::case::{Case, CaseError};
use crate::guest::{Guest, GuestError};
use std::path::Path;
use xfaas_dataplane::worker::Worker;

const OPERATIONS: u32 = 64;
/// The guest's actions.
const READ_WEAK: u32 = 0;
const RMW_STRONG: u32 = 1;
const WRITE_WEAK: u32 = 2;

/// A weak read of 16 bytes and a strong read-modify-write of them. Input: the module of `state-loop`.
pub fn guest_cases(module: &Path) -> Result<Vec<Box<dyn Case>>, CaseError> {
    let case = |name, action| -> Result<Box<dyn Case>, CaseError> {
        let guest = Guest::load(module)?;
        let worker = guest.fork()?;
        let mut case = GuestLoop { name, guest, worker };
        case.run(WRITE_WEAK, 1)?;
        case.set(action, OPERATIONS);
        Ok(Box::new(case))
    };
    Ok(vec![case("guest/read_state", READ_WEAK)?, case("guest/rmw_strong", RMW_STRONG)?])
}

struct GuestLoop {
    name: &'static str,
    guest: Guest,
    worker: Worker,
}

impl GuestLoop {
    /// What the next invocations do.
    fn set(&mut self, action: u32, count: u32) {
        self.guest.set_body(&[action.to_le_bytes(), count.to_le_bytes()].concat());
    }

    fn run(&mut self, action: u32, count: u32) -> Result<(), GuestError> {
        self.set(action, count);
        self.guest.call(&mut self.worker).map(drop)
    }
}

impl Case for GuestLoop {
    fn name(&self) -> &'static str {
        self.name
    }

    fn operations(&self) -> u32 {
        OPERATIONS
    }

    fn batch(&mut self) -> Result<(), CaseError> {
        self.guest.call(&mut self.worker)?;
        Ok(())
    }
}
