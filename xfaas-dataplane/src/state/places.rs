//! Where the state of any session is: asked when a guest names a session other than its own. Set by the shard, which knows who owns what.

use xfaas_common::ids::SessionId;

/// Where a session's state is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionPlace {
    /// `SessionHash::table_hash` of the session.
    pub table_hash: u32,
    /// The shard whose region it is in, of this process or of the primary; `None`: this shard's own.
    pub shard: Option<u16>,
}

/// Knows the place of every session. Must neither block nor allocate.
pub trait SessionPlaces: Send {
    /// `app`: the name of the session's app.
    fn place(&self, app: &str, session: &SessionId) -> SessionPlace;
}
