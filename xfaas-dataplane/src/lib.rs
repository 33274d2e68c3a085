//! The dataplane of xfaas. Folders, lowest first; one may use only those before it:
//! sys < state < net < durable < rpc < worker < session < steering < shard < control < config, node, cli < the `xfaas` binary.

pub mod cli;
pub mod config;
pub mod control;
pub mod durable;
pub mod ebpf_object;
pub mod net;
pub mod node;
pub mod rpc;
pub mod session;
pub mod shard;
pub mod state;
pub mod steering;
pub mod sys;
pub mod worker;
