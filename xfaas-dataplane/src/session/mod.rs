//! Sessions: which shard owns one, how a request names one, and the proxy that runs its workers.

mod alarms;
mod alias;
mod budget;
mod fresh;
mod hint;
mod idle;
mod keep_alive;
mod known;
mod loads;
mod namespace;
mod outcome;
mod pin_book;
mod pins;
mod placement;
mod places;
mod primary;
mod proxy;
mod resting;
mod secondaries;
mod token;

pub use self::alarms::Alarms;
pub use self::alias::{AliasChange, AliasTable};
pub use self::fresh::FreshIds;
pub use self::hint::named_session;
pub use self::keep_alive::{EvictionOrder, Evictor, KeepAlive, KeepAlivePolicy, Priority, Use, Windows};
pub use self::known::{KnownSession, KnownSessions, NO_TICKET, NOT_STORED};
pub use self::loads::ShardLoads;
pub use self::outcome::{Finished, Outcome};
pub use self::pin_book::{Displaced, FoundBook, PIN_BOOK, PinBook, PinError};
pub use self::pins::{MoveClaim, PinBoard, PinView};
pub use self::placement::{LocalPlacement, Placement};
pub use self::places::{ContainerPlaces, NodePlaces};
pub use self::primary::{ContainerPlacement, Primary};
pub use self::proxy::{
    Ahead, CallName, EndedInvocation, HotNamespace, LastUse, Offer, Proxy, ProxyOptions, ProxyStats, RemoteAnswer, RemoteTicket,
    UsedLimits, invocation_of,
};
pub use self::token::{TOKEN_SECRET_BYTES, TokenKey, datagram_token};
