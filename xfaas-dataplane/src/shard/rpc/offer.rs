//! What a container is told when it says hello, made by control and shared by all shards.

use std::collections::HashMap;
use std::sync::Arc;

/// The functions of this node as containers get them.
#[derive(Debug)]
pub struct ContainerOffer {
    /// The welcome's JSON, at most `RPC_PAYLOAD_BYTES_MAX - WELCOME_HEAD_BYTES`.
    pub welcome: Box<[u8]>,
    /// Modules by function name, as they were deployed.
    pub modules: HashMap<Box<[u8]>, Arc<[u8]>>,
}

impl Default for ContainerOffer {
    /// Nothing yet.
    fn default() -> ContainerOffer {
        ContainerOffer { welcome: Box::from(*b"{}"), modules: HashMap::new() }
    }
}
