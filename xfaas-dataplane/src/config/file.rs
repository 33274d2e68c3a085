//! The shape of `xfaas.toml`, as written. Unknown keys are refused with their line and column.

use super::checkpoints::CheckpointsSection;
use super::limits::Limits;
use crate::worker::{FunctionManifest, with_deploy_flags};
use serde::Deserialize;
use std::mem::take;
use std::net::SocketAddr;
use std::path::PathBuf;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct FileConfig {
    pub listen: ListenSection,
    pub shards: ShardsSection,
    pub steering: SteeringSection,
    pub limits: Limits,
    pub checkpoints: CheckpointsSection,
    pub state_dir: Option<PathBuf>,
    pub shared_memory_dir: Option<PathBuf>,
    pub function: Vec<FunctionEntry>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ListenSection {
    /// Default 0.0.0.0:8080.
    pub http: Option<SocketAddr>,
    /// Default: the address of `http`.
    pub udp: Option<SocketAddr>,
    /// Default 127.0.0.1:9070.
    pub admin: Option<SocketAddr>,
    /// Default 127.0.0.1:9071.
    pub rpc: Option<SocketAddr>,
    /// Default `x-session-id`. The kernel programs know names of up to 39 bytes: with a longer one TCP connections find their shard later, in user space.
    pub session_header: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ShardsSection {
    /// Default: all CPUs this process may run on.
    pub cpus: Option<Vec<u16>>,
    /// Default true: hot sessions move from busy cores to idle ones by themselves.
    pub rebalance: Option<bool>,
    /// Default false: shards share their CPUs with ordinary threads.
    pub realtime: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SteeringSection {
    /// Default `auto`.
    pub mode: Option<String>,
    pub iface: Option<String>,
}

with_deploy_flags! {
    /// One `[[function]]`: the flags of `xfaas deploy` in snake case, and the modules.
    #[derive(Debug)]
    pub(super) struct FunctionEntry {
        name: String,
        wasm: PathBuf,
        hook: Option<PathBuf>,
    }
}

impl FunctionEntry {
    /// The manifest, and the paths of the module and of its hook as written.
    pub fn into_parts(mut self) -> (FunctionManifest, PathBuf, Option<PathBuf>) {
        let (name, wasm, hook) = (take(&mut self.name), take(&mut self.wasm), self.hook.take());
        (self.into_manifest(&name), wasm, hook)
    }
}
