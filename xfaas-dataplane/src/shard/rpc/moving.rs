//! A connection goes to the shard that its hello names: its descriptor by ring message, the rest by mailbox. Nothing of it is under way
//! then, and what came behind the hello goes along.

use super::super::connection::Arrival;
use super::super::mailbox::Message;
use super::super::tag::{Operation, RpcOperation};
use super::super::turn::Shard;
use super::connection::{MovedRpc, Moving};
use crate::sys::FixedFile;
use xfaas_common::wire::Status;

impl Shard {
    /// Takes the next step of a move, if its time has come.
    pub(super) fn hand_rpc_over(&mut self, id: u32) {
        let connection = &mut self.rpc.connections[id as usize];
        let Some(Moving { to, .. }) = connection.moving else { return };
        if !connection.is_quiet() || connection.is_answering() {
            return;
        }
        connection.handing = true;
        let generation = connection.generation;
        let handed = Operation::Rpc(RpcOperation::Handed { connection: id, generation }).tag();
        let remote = Operation::RpcArrived(Arrival { from: self.core.0 as u8, connection: id, generation }).tag();
        self.ring.message_file(handed, self.rings[usize::from(to)], connection.file, remote);
    }

    /// The other shard has the descriptor, or has no room for it.
    pub(super) fn on_rpc_handed(&mut self, id: u32, generation: u16, result: i32) {
        let core = self.core.0;
        let Some(connection) = self.rpc_connection(id, generation) else { return };
        connection.handing = false;
        let Some(Moving { to, request_id }) = connection.moving.take() else { return };
        if result < 0 {
            self.refuse_request(id, request_id, Status::Overloaded as u8, "overloaded");
            return self.settle_rpc(id);
        }
        // Given up meanwhile: the other side's descriptor is adopted all the same, and falls silent there.
        let pending = std::mem::take(&mut connection.pending);
        let arrival = Arrival { from: core as u8, connection: id, generation };
        self.post.send(usize::from(to), Message::RpcMoved(Box::new(MovedRpc { arrival, request_id, pending })));
        self.view.counters.rpc.moved.add(1);
        let connection = self.rpc.connections.remove(id as usize);
        self.ring.close(Operation::Closed.tag(), connection.file); // this ring's only: the other ring holds its own
    }

    pub(in crate::shard) fn on_rpc_arrived(&mut self, arrival: Arrival, result: i32) {
        let Ok(file) = u32::try_from(result) else { return };
        if let Some((moved, file)) = self.rpc.arrivals.file(arrival, FixedFile(file)) {
            self.adopt_rpc(*moved, file);
        }
    }

    pub(in crate::shard) fn on_rpc_moved(&mut self, moved: Box<MovedRpc>) {
        if let Some((moved, file)) = self.rpc.arrivals.state(moved.arrival, moved) {
            self.adopt_rpc(*moved, file);
        }
    }

    fn adopt_rpc(&mut self, moved: MovedRpc, file: FixedFile) {
        let Some(id) = self.insert_rpc(file) else { return };
        self.rpc.connections[id as usize].pending = moved.pending;
        self.welcome(id, moved.request_id);
        self.settle_rpc(id);
    }
}
