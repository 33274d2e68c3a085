//! What containers of other processes are told about this node: docs/PROTOCOL.md, "RPC", kind 20.

use crate::control::Running;
use crate::shard::ContainerOffer;
use crate::worker::FunctionManifest;
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;
use xfaas_common::hash::HashKeys;
use xfaas_common::rpc::PROTOCOL;

/// What does not change while the node runs.
pub(super) struct NodeFacts {
    pub(super) shards: usize,
    pub(super) keys: HashKeys,
    pub(super) session_header: String,
    pub(super) lock_wait_ms: u32,
    /// Where descriptors of regions are given out.
    pub(super) region_socket: Option<PathBuf>,
}

#[derive(Serialize)]
struct WelcomeText<'a> {
    protocol: u32,
    shards: usize,
    hash_keys: Vec<String>,
    slot_to_core: &'static str,
    session_header: &'a str,
    lock_wait_ms: u32,
    region_socket: Option<&'a str>,
    functions: Vec<FunctionText<'a>>,
}

#[derive(Serialize)]
struct FunctionText<'a> {
    #[serde(flatten)]
    manifest: &'a FunctionManifest,
    app_index: u16,
    generation: u64,
    wasm_bytes: usize,
    sha256: &'a str,
}

impl NodeFacts {
    pub(super) fn offer(&self, functions: &[Running]) -> ContainerOffer {
        let text = WelcomeText {
            protocol: PROTOCOL,
            shards: self.shards,
            hash_keys: self.keys.keys.iter().map(|key| format!("{key:016x}")).collect(),
            slot_to_core: "dealt in turn",
            session_header: &self.session_header,
            lock_wait_ms: self.lock_wait_ms,
            region_socket: self.region_socket.as_deref().and_then(|path| path.to_str()),
            functions: functions.iter().map(function_text).collect(),
        };
        let welcome = serde_json::to_vec(&text).expect("numbers and text become JSON");
        let modules = functions.iter().map(|running| {
            let name: Box<[u8]> = running.function.manifest.name.as_bytes().into();
            (name, Arc::clone(&running.wasm))
        });
        ContainerOffer { welcome: welcome.into(), modules: modules.collect() }
    }
}

fn function_text(running: &Running) -> FunctionText<'_> {
    FunctionText {
        manifest: &running.function.manifest,
        app_index: running.function.app,
        generation: running.function.generation,
        wasm_bytes: running.wasm.len(),
        sha256: &running.sha256,
    }
}
