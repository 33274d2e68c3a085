//! The shape of `xfaas.toml`, as written. Unknown keys are refused with their line and column.

use super::checkpoints::CheckpointsSection;
use super::limits::Limits;
use crate::worker::{AppRules, CpuShare, Durability, FunctionManifest, Hint, KeepAliveRule};
use serde::Deserialize;
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

/// One `[[function]]`: the flags of `xfaas deploy` in snake case, and the module. The flags are spelt out, not flattened in: serde refuses
/// unknown keys only of a flat struct.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FunctionEntry {
    name: String,
    wasm: PathBuf,
    hook: Option<PathBuf>,
    app: Option<String>,
    #[serde(default)]
    read_only: bool,
    #[serde(default)]
    atomic: bool,
    #[serde(default)]
    idempotent: bool,
    #[serde(default)]
    fresh: bool,
    #[serde(default)]
    read_sessions: bool,
    deadline_ms: Option<u32>,
    memory_mib: Option<u32>,
    workers_max: Option<u16>,
    containers_max: Option<u16>,
    state_mib: Option<u32>,
    #[serde(default)]
    durability: Durability,
    #[serde(default)]
    hint: Hint,
    #[serde(default)]
    tokens: bool,
    hook_deadline_ms: Option<u32>,
    requests_per_s: Option<u32>,
    cpu_share: Option<CpuShare>,
    #[serde(default)]
    keep_alive: KeepAliveRule,
    keep_alive_s: Option<u32>,
    checkpoint_every_s: Option<u32>,
}

impl FunctionEntry {
    /// The manifest with the defaults of CONTRACT.md section 4, and the paths of the module and of its hook as written.
    pub fn into_parts(self) -> (FunctionManifest, PathBuf, Option<PathBuf>) {
        let default = FunctionManifest::named(&self.name);
        let manifest = FunctionManifest {
            app: self.app.unwrap_or(default.app),
            name: self.name,
            read_only: self.read_only,
            atomic: self.atomic,
            idempotent: self.idempotent,
            fresh: self.fresh,
            read_sessions: self.read_sessions,
            deadline_ms: self.deadline_ms.unwrap_or(default.deadline_ms),
            memory_mib: self.memory_mib.unwrap_or(default.memory_mib),
            workers_max: self.workers_max.unwrap_or(default.workers_max),
            containers_max: self.containers_max.unwrap_or(default.containers_max),
            state_mib: self.state_mib.unwrap_or(default.state_mib),
            durability: self.durability,
            rules: AppRules {
                hint: self.hint,
                hook_deadline_ms: self.hook_deadline_ms,
                tokens: self.tokens,
                requests_per_s: self.requests_per_s,
                cpu_share: self.cpu_share,
                keep_alive: self.keep_alive,
                keep_alive_s: self.keep_alive_s,
                checkpoint_every_s: self.checkpoint_every_s,
            },
        };
        (manifest, self.wasm, self.hook)
    }
}
