//! A primary's welcome, read: JSON from the network, so nothing in it is trusted before it is checked.

use super::line::LineError;
use crate::session::Primary;
use crate::sys::clock::MS_NS;
use crate::worker::{AppRules, CpuShare, Durability, FunctionManifest, Hint, KeepAliveRule};
use serde::Deserialize;
use std::path::PathBuf;
use xfaas_common::hash::{HASH_KEYS, HashKeys};
use xfaas_common::limits::{CONTAINERS_MAX_DEFAULT, FUNCTIONS_MAX, SLOTS};

/// How the welcome says that slot `s` belongs to shard `s mod shards`.
const DEALT_IN_TURN: &str = "dealt in turn";

/// What a welcome says, checked.
pub(super) struct Welcome {
    pub(super) primary: Primary,
    pub(super) functions: Vec<Offer>,
    pub(super) region_socket: Option<PathBuf>,
}

/// A function of the primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Offer {
    pub(super) manifest: FunctionManifest,
    /// Of its module, in hexadecimal.
    pub(super) sha256: String,
}

#[derive(Deserialize)]
struct Text {
    shards: u16,
    hash_keys: Vec<String>,
    slot_to_core: Slots,
    session_header: String,
    lock_wait_ms: u32,
    region_socket: Option<PathBuf>,
    functions: Vec<OfferText>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Slots {
    Words(String),
    Table(Vec<u16>),
}

#[derive(Deserialize)]
struct OfferText {
    name: String,
    app: String,
    sha256: String,
    read_only: bool,
    atomic: bool,
    idempotent: bool,
    fresh: bool,
    #[serde(default)]
    read_sessions: bool,
    deadline_ms: u32,
    memory_mib: u32,
    workers_max: u16,
    state_mib: u32,
    #[serde(default)]
    durability: Durability,
    #[serde(default)]
    hint: Hint,
    hook_deadline_ms: Option<u32>,
    #[serde(default)]
    tokens: bool,
    requests_per_s: Option<u32>,
    cpu_share: Option<CpuShare>,
    #[serde(default)]
    keep_alive: KeepAliveRule,
    keep_alive_s: Option<u32>,
    checkpoint_every_s: Option<u32>,
}

impl Welcome {
    /// Errors: what is wrong with it, in words.
    pub(super) fn read(text: &[u8]) -> Result<Welcome, LineError> {
        Welcome::check(text).map_err(|reason| LineError::BadWelcome { reason })
    }

    fn check(text: &[u8]) -> Result<Welcome, String> {
        let text: Text = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        let slot_to_shard: Box<[u16]> = match text.slot_to_core {
            Slots::Words(words) if words == DEALT_IN_TURN && text.shards > 0 => {
                (0..SLOTS).map(|slot| (slot % usize::from(text.shards)) as u16).collect()
            }
            Slots::Words(words) => return Err(format!("`slot_to_core` is {words:?} for {} shards", text.shards)),
            Slots::Table(table) => table.into(),
        };
        if text.functions.len() > FUNCTIONS_MAX {
            return Err(format!("{} functions: {FUNCTIONS_MAX} at most", text.functions.len()));
        }
        // Its name goes into every reply.
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if !(1..=64).contains(&text.session_header.len()) || !text.session_header.bytes().all(is_plain) {
            return Err(format!("`session_header` is {:?}", text.session_header));
        }
        let keys = HashKeys { keys: hash_keys(&text.hash_keys)? };
        let lock_wait_ns = u64::from(text.lock_wait_ms) * MS_NS;
        let primary = Primary::new(keys, text.shards, slot_to_shard, text.session_header.into_bytes(), lock_wait_ns);
        let primary = primary.ok_or_else(|| format!("`slot_to_core` does not fit {} shards", text.shards))?;
        Ok(Welcome { primary, functions: text.functions.into_iter().map(Offer::from).collect(), region_socket: text.region_socket })
    }
}

fn hash_keys(texts: &[String]) -> Result<[u64; HASH_KEYS], String> {
    let keys: Option<Vec<u64>> = texts.iter().map(|text| u64::from_str_radix(text, 16).ok()).collect();
    keys.and_then(|keys| keys.try_into().ok()).ok_or_else(|| format!("`hash_keys` are not {HASH_KEYS} hexadecimal numbers"))
}

impl From<OfferText> for Offer {
    fn from(text: OfferText) -> Offer {
        let manifest = FunctionManifest {
            name: text.name,
            app: text.app,
            read_only: text.read_only,
            atomic: text.atomic,
            idempotent: text.idempotent,
            fresh: text.fresh,
            read_sessions: text.read_sessions,
            deadline_ms: text.deadline_ms,
            memory_mib: text.memory_mib,
            workers_max: text.workers_max,
            containers_max: CONTAINERS_MAX_DEFAULT, // its shards are containers each
            state_mib: text.state_mib,
            durability: text.durability,
            rules: AppRules {
                hint: text.hint,
                hook_deadline_ms: text.hook_deadline_ms,
                tokens: text.tokens,
                requests_per_s: text.requests_per_s,
                cpu_share: text.cpu_share,
                keep_alive: text.keep_alive,
                keep_alive_s: text.keep_alive_s,
                checkpoint_every_s: text.checkpoint_every_s,
            },
        };
        Offer { manifest, sha256: text.sha256 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn text() -> serde_json::Value {
        json!({
            "protocol": 1, "shards": 2, "hash_keys": vec!["00000000000000ff"; HASH_KEYS], "slot_to_core": "dealt in turn", "session_header": "x-session-id",
            "lock_wait_ms": 5000, "region_socket": null,
            "functions": [{
                "name": "a", "app": "b", "app_index": 0, "generation": 1, "wasm_bytes": 8, "sha256": "00", "read_only": false, "atomic": true,
                "idempotent": false, "fresh": false, "deadline_ms": 50, "memory_mib": 1, "workers_max": 2, "state_mib": 3
            }],
        })
    }

    fn read(text: &serde_json::Value) -> Result<Welcome, LineError> {
        Welcome::read(text.to_string().as_bytes())
    }

    #[test]
    fn a_welcome_says_where_sessions_are_and_which_functions_there_are() {
        let welcome = read(&text()).unwrap();
        assert_eq!((welcome.primary.shards(), welcome.primary.keys().keys[3]), (2, 255));
        assert_eq!([0_u32, 1 << 18, 2 << 18].map(|hash| welcome.primary.shard_of(hash)), [0, 1, 0]);
        let [Offer { manifest, .. }] = &welcome.functions[..] else { panic!("one function") };
        assert_eq!((manifest.app.as_str(), manifest.atomic, manifest.state_mib), ("b", true, 3));
        let mut table = text();
        table["slot_to_core"] = json!(vec![1; SLOTS]);
        assert_eq!(read(&table).unwrap().primary.shard_of(0), 1);
    }

    #[test]
    fn a_welcome_that_does_not_add_up_is_refused() {
        for (key, value) in [
            ("shards", json!(0)),
            ("shards", json!(65)),
            ("hash_keys", json!(["zz"])),
            ("hash_keys", json!(vec!["0"; 3])),
            ("slot_to_core", json!("by moonlight")),
            ("slot_to_core", json!([0, 1])),
            ("slot_to_core", json!(vec![2; SLOTS])),
            ("session_header", json!("x\r\nset-cookie")),
            ("session_header", json!("")),
            ("functions", json!({})),
        ] {
            let mut bad = text();
            bad[key] = value.clone();
            assert!(matches!(read(&bad), Err(LineError::BadWelcome { .. })), "{key}: {value}");
        }
        assert!(Welcome::read(b"HTTP/1.1 400").is_err());
    }
}
