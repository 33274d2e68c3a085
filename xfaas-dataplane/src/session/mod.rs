//! Sessions: which shard owns one, how a request names one, and the proxy that runs its workers.

mod hint;
mod idle;
mod namespace;
mod outcome;
mod placement;
mod primary;
mod proxy;

pub use self::hint::FreshIds;
pub use self::outcome::{Finished, Outcome};
pub use self::placement::{LocalPlacement, Placement};
pub use self::primary::{ContainerPlacement, Primary};
pub use self::proxy::{CallName, EndedInvocation, Proxy, ProxyOptions, ProxyStats, RemoteAnswer, RemoteTicket, invocation_of};
