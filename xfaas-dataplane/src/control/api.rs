//! The JSON documents of the admin API, for the server and the client alike.

use crate::worker::{FunctionManifest, with_deploy_flags};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

with_deploy_flags! {
    /// The flags of `xfaas deploy`, which travel as the query of `PUT /v1/functions/{name}`.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub struct DeployFlags {}
}

impl DeployFlags {
    /// The parameters that differ from their defaults.
    pub(super) fn to_query(&self) -> Vec<(&'static str, String)> {
        let switches = [
            ("read_only", self.read_only),
            ("atomic", self.atomic),
            ("idempotent", self.idempotent),
            ("fresh", self.fresh),
            ("read_sessions", self.read_sessions),
            ("tokens", self.tokens),
        ];
        let numbers = [
            ("deadline_ms", self.deadline_ms),
            ("memory_mib", self.memory_mib),
            ("workers_max", self.workers_max.map(u32::from)),
            ("containers_max", self.containers_max.map(u32::from)),
            ("state_mib", self.state_mib),
            ("hook_deadline_ms", self.hook_deadline_ms),
            ("requests_per_s", self.requests_per_s),
            ("keep_alive_s", self.keep_alive_s),
            ("checkpoint_every_s", self.checkpoint_every_s),
        ];
        let mut query: Vec<_> = self.app.iter().map(|app| ("app", app.clone())).collect();
        query.extend(self.durability.map(|durability| ("durability", durability.name().to_owned())));
        query.extend(self.keep_alive.map(|rule| ("keep_alive", rule.name().to_owned())));
        query.extend(self.hint.iter().map(|hint| ("hint", hint.to_string())));
        query.extend(self.cpu_share.map(|share| ("cpu_share", f64::from(share).to_string())));
        query.extend(switches.iter().filter(|(_, on)| *on).map(|(key, _)| (*key, "true".to_owned())));
        query.extend(numbers.iter().filter_map(|(key, value)| value.map(|value| (*key, value.to_string()))));
        query
    }
}

/// Where a function came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FunctionSource {
    /// `xfaas.toml`: wins over a stored one of the same name at the next start.
    Configuration,
    /// `xfaas deploy`: stored, survives a restart.
    Deployment,
    /// In a container: copied from its primary, not stored.
    Primary,
}

/// One function as `GET /v1/functions` tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionInfo {
    pub manifest: FunctionManifest,
    pub source: FunctionSource,
    /// Grows with every deployment on this node.
    pub generation: u64,
    /// Bytes of the module.
    pub wasm_bytes: u64,
    /// FNV-1a-32 of the name, as in a datagram, in hexadecimal.
    pub hash: String,
    /// Why it does not run: a stored module that no longer loads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// What the operator should know, such as that the configuration wins at the next start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionsReply {
    pub functions: Vec<FunctionInfo>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UndeployReply {
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// What `POST /v1/tokens` is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    pub app: String,
    pub session: String,
    /// Seconds for which the token is good, 1..=TOKEN_TTL_S_MAX.
    pub ttl_s: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenReply {
    pub app: String,
    pub session: String,
    pub token: String,
    /// The first second in which it is good no more.
    pub expires_unix_s: u64,
}

/// What a key means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AliasInfo {
    /// Only in this app; absent: in every app.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    pub key: String,
    pub session: String,
}

/// Names an alias, in a query.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AliasName {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    pub key: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AliasesReply {
    pub aliases: Vec<AliasInfo>,
}

/// One session with state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionInfo {
    pub app: String,
    pub session: String,
    /// `CoreIndex` of the owner.
    pub shard: u16,
    /// Bytes of keys and values.
    pub state_bytes: u64,
    pub keys: u32,
    /// Live workers of the session's primary container.
    pub workers: u32,
    /// Containers of the session in this process, the primary included.
    pub containers: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionsReply {
    pub sessions: Vec<SessionInfo>,
    /// There may be more than the limit let through.
    pub truncated: bool,
}

/// One counter, gauge (`value`) or histogram (`count`, `sum_seconds`, `buckets`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetricSample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub histogram: Option<Histogram>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    pub count: u64,
    pub sum_seconds: f64,
    /// Upper bound in seconds and the observations up to it, cumulative.
    pub buckets: Vec<(f64, u64)>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatsReply {
    pub uptime_s: u64,
    pub shards: usize,
    pub functions: usize,
    /// What is missing before the node serves; absent when it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_ready: Option<String>,
    /// Steering mode and interface in words.
    pub steering: String,
    pub metrics: Vec<MetricSample>,
}

/// The body of every error, RFC 9457.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    #[serde(rename = "type")]
    pub kind: String,
    pub title: String,
    pub status: u16,
    pub code: String,
    pub detail: String,
}
