//! What xfaas is measured with: a load generator, the bare io_uring echo it is held against, and the processes under test.
//! Used by the binaries and benches of this package only. Everything here talks to loopback and is bounded in count and time.

pub mod baseline;
pub mod bursts;
pub mod counts;
pub mod curves;
pub mod fork;
pub mod generator;
pub mod guest;
pub mod limit;
pub mod load;
pub mod network;
pub mod paper;
pub mod peers;
pub mod picture;
pub mod policies;
pub mod profile;
pub mod read_scaling;
pub mod report;
pub mod rival;
pub mod servers;
pub mod sessions;
pub mod settings;
pub mod soak;
pub mod stamps;
pub mod state;
pub mod steer;
pub mod suite;
pub mod sync;
pub mod train;
