//! What a deploy says about a function beside its module. CONTRACT.md section 4. Read from JSON and TOML; holds no behaviour.

use super::app_rules::AppRules;
use serde::{Deserialize, Serialize};
use xfaas_common::limits::{
    CHECKPOINT_EVERY_S_DEFAULT, CONTAINERS_MAX_DEFAULT, DEADLINE_MS_DEFAULT, MEMORY_MIB_DEFAULT, STATE_MIB_DEFAULT, WORKERS_MAX_DEFAULT,
};

/// What an app's state outlives; the same for all functions of an app.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// The process.
    #[default]
    Memory,
    /// The machine, as of the last checkpoint.
    Checkpoint,
    /// The machine: a reply leaves when all that it tells of is on the disk.
    Sync,
}

impl Durability {
    /// Errors: there is none of that name.
    pub fn parse(text: &str) -> Result<Durability, String> {
        match text {
            "memory" => Ok(Durability::Memory),
            "checkpoint" => Ok(Durability::Checkpoint),
            "sync" => Ok(Durability::Sync),
            _ => Err("choose memory, checkpoint or sync".to_owned()),
        }
    }

    /// The default is not written down.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
    fn is_default(&self) -> bool {
        *self == Durability::Memory
    }

    pub const fn name(self) -> &'static str {
        match self {
            Durability::Memory => "memory",
            Durability::Checkpoint => "checkpoint",
            Durability::Sync => "sync",
        }
    }
}

/// A function's name, app and limits. An app left out is the function's own name; a limit left out has its default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "ManifestText")]
pub struct FunctionManifest {
    /// `[A-Za-z0-9_.-]{1,64}`, unique on a node.
    pub name: String,
    /// The functions of one app share session state.
    pub app: String,
    /// Writes are refused with -2; the call may run on any shard.
    pub read_only: bool,
    /// Writes take effect together, when `handle` has returned 0, or not at all.
    pub atomic: bool,
    /// A datagram seen twice within 60 s gets its first answer again.
    pub idempotent: bool,
    /// Every call gets a worker of its own.
    pub fresh: bool,
    /// It may read other sessions of its app.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub read_sessions: bool,
    /// A call that runs longer is stopped. Waiting for a lock does not count.
    pub deadline_ms: u32,
    /// Linear memory of one worker.
    pub memory_mib: u32,
    /// Workers that run at once in one container of a namespace.
    pub workers_max: u16,
    /// Containers of one namespace in this process: the primary, and secondaries on other shards.
    #[serde(skip_serializing_if = "is_one")]
    pub containers_max: u16,
    /// Keys and values of one session.
    pub state_mib: u32,
    #[serde(skip_serializing_if = "Durability::is_default")]
    pub durability: Durability,
    /// What all functions of the app agree on. Its keys are written beside the others.
    #[serde(flatten)]
    pub rules: AppRules,
}

/// The default is not written down.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
fn is_one(containers_max: &u16) -> bool {
    *containers_max == CONTAINERS_MAX_DEFAULT
}

/// Declares a struct of the fields given and of one for each flag of `xfaas deploy`, by its key, with `into_manifest`. A macro, because serde refuses unknown
/// keys only of a flat struct: the flags cannot be a struct within the others.
macro_rules! with_deploy_flags {
    ($(#[$attribute:meta])* $visibility:vis struct $name:ident { $($own:ident: $own_type:ty,)* }) => {
        $(#[$attribute])*
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        $visibility struct $name {
            $($own: $own_type,)*
            pub app: Option<String>,
            #[serde(default)]
            pub read_only: bool,
            #[serde(default)]
            pub atomic: bool,
            #[serde(default)]
            pub idempotent: bool,
            #[serde(default)]
            pub fresh: bool,
            #[serde(default)]
            pub read_sessions: bool,
            pub deadline_ms: Option<u32>,
            pub memory_mib: Option<u32>,
            pub workers_max: Option<u16>,
            pub containers_max: Option<u16>,
            pub state_mib: Option<u32>,
            pub durability: Option<$crate::worker::Durability>,
            pub hint: Option<$crate::worker::Hint>,
            #[serde(default)]
            pub tokens: bool,
            pub hook_deadline_ms: Option<u32>,
            pub requests_per_s: Option<u32>,
            pub cpu_share: Option<$crate::worker::CpuShare>,
            pub keep_alive: Option<$crate::worker::KeepAliveRule>,
            pub keep_alive_s: Option<u32>,
            pub checkpoint_every_s: Option<u32>,
        }

        impl $name {
            /// The manifest of the function `name`. What is left out has its default, CONTRACT.md section 4.
            pub(crate) fn into_manifest(self, name: &str) -> $crate::worker::FunctionManifest {
                let default = $crate::worker::FunctionManifest::named(name);
                $crate::worker::FunctionManifest {
                    name: default.name,
                    app: self.app.unwrap_or(default.app),
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
                    durability: self.durability.unwrap_or(default.durability),
                    rules: $crate::worker::AppRules {
                        hint: self.hint.unwrap_or_default(),
                        hook_deadline_ms: self.hook_deadline_ms,
                        tokens: self.tokens,
                        requests_per_s: self.requests_per_s,
                        cpu_share: self.cpu_share,
                        keep_alive: self.keep_alive.unwrap_or_default(),
                        keep_alive_s: self.keep_alive_s,
                        checkpoint_every_s: self.checkpoint_every_s,
                    },
                }
            }
        }
    };
}
pub(crate) use with_deploy_flags;

with_deploy_flags! {
    /// The manifest as it is written down.
    struct ManifestText {
        name: String,
    }
}

impl From<ManifestText> for FunctionManifest {
    fn from(mut text: ManifestText) -> FunctionManifest {
        let name = std::mem::take(&mut text.name);
        text.into_manifest(&name)
    }
}

impl FunctionManifest {
    /// How old the checkpoint of a session may be that was written to since; `None`: any age.
    pub fn checkpoint_every_s(&self) -> Option<u32> {
        let every_s = self.rules.checkpoint_every_s.unwrap_or(CHECKPOINT_EVERY_S_DEFAULT);
        (self.durability == Durability::Checkpoint).then_some(every_s)
    }

    /// True when a session with state may be in a checkpoint and not in memory: then only its owner can tell what it holds.
    pub fn may_sleep(&self) -> bool {
        self.rules.lets_sleep() || self.durability == Durability::Checkpoint
    }

    /// The manifest of a function deployed without a flag.
    pub fn named(name: &str) -> FunctionManifest {
        FunctionManifest {
            name: name.to_owned(),
            app: name.to_owned(),
            read_only: false,
            atomic: false,
            idempotent: false,
            fresh: false,
            read_sessions: false,
            deadline_ms: DEADLINE_MS_DEFAULT,
            memory_mib: MEMORY_MIB_DEFAULT,
            workers_max: WORKERS_MAX_DEFAULT,
            containers_max: CONTAINERS_MAX_DEFAULT,
            state_mib: STATE_MIB_DEFAULT,
            durability: Durability::Memory,
            rules: AppRules::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_alone_gets_the_defaults_and_comes_back_the_same() {
        let manifest: FunctionManifest = serde_json::from_str(r#"{"name":"echo"}"#).unwrap();
        assert_eq!(manifest, FunctionManifest::named("echo"));
        let text = serde_json::to_string(&manifest).unwrap();
        assert_eq!(serde_json::from_str::<FunctionManifest>(&text).unwrap(), manifest);
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let error = serde_json::from_str::<FunctionManifest>(r#"{"name":"echo","deadline":5}"#).unwrap_err();
        assert!(error.to_string().contains("deadline"), "{error}");
    }
}
