//! The places of sessions as guests ask for them, from what the shard knows of their owners. Called by the shard when it starts or joins a primary.

use super::pins::PinView;
use super::placement::Placement;
use super::primary::Primary;
use crate::state::{SessionPlace, SessionPlaces};
use std::cell::RefCell;
use std::sync::Arc;
use xfaas_common::hash::session_hash;
use xfaas_common::ids::{CoreIndex, SessionId};

/// Of a node's shard: a session is in its own region or in a neighbour's.
pub struct NodePlaces {
    placement: Arc<dyn Placement>,
    /// Asked while a guest runs, and so apart from the shard's own.
    pins: RefCell<PinView>,
    core: CoreIndex,
}

impl NodePlaces {
    pub fn new(placement: Arc<dyn Placement>, pins: PinView, core: CoreIndex) -> NodePlaces {
        NodePlaces { placement, pins: RefCell::new(pins), core }
    }
}

impl SessionPlaces for NodePlaces {
    fn place(&self, app: &str, session: &SessionId) -> SessionPlace {
        let hash = self.placement.hash(session);
        let mut pins = self.pins.borrow_mut();
        pins.refresh();
        let owner = pins.owner(&*self.placement, app, session, hash);
        SessionPlace { table_hash: hash.table_hash(), shard: (owner != self.core).then_some(owner.0) }
    }
}

/// Of a container's shard: all are with the primary.
pub struct ContainerPlaces(pub Arc<Primary>);

impl SessionPlaces for ContainerPlaces {
    fn place(&self, _app: &str, session: &SessionId) -> SessionPlace {
        let table_hash = session_hash(self.0.keys(), session.padded(), session.length()).table_hash();
        SessionPlace { table_hash, shard: Some(self.0.shard_of(table_hash)) }
    }
}
