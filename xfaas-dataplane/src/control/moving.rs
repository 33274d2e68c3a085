//! A session's move to another core, as operators and the balancer ask for it. CONTRACT.md section 4. Called by the admin API and `rebalance`;
//! carried out behind the trait `Shards`.

use super::shards::ShardsError;
use crate::shard::MoveRefusal;
use serde::{Deserialize, Serialize};

/// What `POST /v1/sessions/move` is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoveRequest {
    pub app: String,
    pub session: String,
    /// `CoreIndex` of the shard that is to own it.
    pub core: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveReply {
    pub app: String,
    pub session: String,
    pub from: u16,
    pub to: u16,
    pub keys: u64,
    pub state_bytes: u64,
}

/// Why a session stays where it is. Every text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    #[error("{text:?} is not a session ID: give 1 to 64 visible ASCII characters")]
    BadSession { text: String },
    #[error("no function of app {app:?} runs: see `xfaas functions`")]
    UnknownApp { app: String },
    #[error("there is no core {core}: give one of 0..={last}")]
    UnknownCore { core: u16, last: usize },
    #[error("the session is on core {core} already: give another one")]
    SameCore { core: u16 },
    #[error("{connections} connections of containers are open, and containers find sessions by their slots: end the containers first")]
    Containers { connections: usize },
    #[error("another session is being moved: try again in a moment")]
    UnderWay,
    #[error("this is a container, which owns no sessions: ask its primary")]
    IsContainer,
    #[error("{refusal}")]
    Refused { refusal: MoveRefusal },
    #[error(transparent)]
    Shards(#[from] ShardsError),
}

impl MoveError {
    /// The label of `xfaas_session_moves_total`.
    pub fn outcome(&self) -> &'static str {
        match self {
            MoveError::Refused { refusal: MoveRefusal::CallsGoOn } => "busy",
            MoveError::Refused { refusal: MoveRefusal::NoRoom } => "no_room",
            MoveError::Shards(_) | MoveError::Refused { refusal: MoveRefusal::Record } => "failed",
            _ => "refused",
        }
    }
}

/// The labels of `xfaas_session_moves_total`.
pub const MOVE_OUTCOMES: [&str; 5] = ["moved", "busy", "no_room", "failed", "refused"];

/// A session that ran much of late.
#[derive(Clone, Debug, PartialEq)]
pub struct HotSession {
    pub app: String,
    pub session: String,
    /// Its part of what its shard's sessions ran, 0..=1.
    pub part: f64,
}
