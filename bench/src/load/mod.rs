//! The load generator: closed loop, one thread, one ring, every reply checked. It must out-run the server it measures, so the loop
//! copies a prepared request, reads the clock once a reply and makes one system call for a whole batch of completions.

mod burst;
mod check;
mod client;
mod datagram;
mod fetch;
mod http;
mod interrupt;
mod measure;
mod outbox;
mod plan;
mod random;
mod reply;

pub use self::burst::{BurstReply, run_burst};
pub(crate) use self::check::excerpt;
pub use self::check::{BodyRule, Expect};
pub use self::client::Client;
pub(crate) use self::datagram::connect as connect_datagrams;
pub use self::datagram::{DatagramLoad, run_datagrams};
pub use self::fetch::{FetchError, Fetched, fetch};
pub use self::http::{HttpLoad, run_http};
pub use self::interrupt::{Interrupt, InterruptError};
pub use self::measure::{LoadReport, Summary};
pub(crate) use self::outbox::Outbox;
pub(crate) use self::plan::SILENCE_NS_MAX;
pub use self::plan::{LoadError, LoadPlan};
pub(crate) use self::random::Random;
pub use self::reply::{BadReply, Reply, parse_reply};
