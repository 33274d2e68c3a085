//! How an invocation ended. Made by the proxy, carried between shards, turned into an answer by `shard/tx.rs` and `shard/datagram.rs`.

use crate::net::ErrorCode;
use crate::worker::Call;

/// The end of one invocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// `handle` returned 0: the output is the reply.
    Replied,
    /// The function ran and failed, or never ran: `code` says which.
    Failed { code: ErrorCode, detail: &'static str, guest_code: Option<i32> },
    /// Nobody gets an answer: its client went away before it was over, or its long reply found no room on its way to another shard.
    Cancelled,
}

impl Outcome {
    pub const fn failed(code: ErrorCode, detail: &'static str) -> Outcome {
        Outcome::Failed { code, detail, guest_code: None }
    }

    /// True when guest code ran, so that the answer names session and invocation, and an idempotent one is remembered.
    pub const fn ran(&self) -> bool {
        match self {
            Outcome::Replied | Outcome::Cancelled => true,
            Outcome::Failed { code, .. } => matches!(
                code,
                ErrorCode::GuestTrapped | ErrorCode::GuestError | ErrorCode::Deadline | ErrorCode::LockWait | ErrorCode::NoPrimary
            ),
        }
    }

    /// The `outcome` label in `/metrics`.
    pub const fn name(&self) -> &'static str {
        match self {
            Outcome::Replied => "ok",
            Outcome::Failed { code, .. } => code.code(),
            Outcome::Cancelled => "cancelled",
        }
    }
}

/// A call that is over, on its way to whoever asked.
pub struct Finished {
    pub call: Box<Call>,
    pub outcome: Outcome,
}
