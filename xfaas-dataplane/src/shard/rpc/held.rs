//! Answers to containers that wait for the log: nothing leaves a connection before what it was told is on the disk. Called by `logging`.

use super::super::turn::Shard;

impl Shard {
    /// Holds what a container was just answered about `app`, if that is not safe yet.
    pub(super) fn hold_rpc(&mut self, id: u32, app: Option<u16>) {
        let position = app.and_then(|app| self.proxy.state().journal.position_of(app)).unwrap_or(0);
        if self.logging.is_behind(position) {
            let waits_for = &mut self.rpc.connections[id as usize].waits_for;
            *waits_for = position.max(*waits_for);
            if !self.rpc.held.contains(&id) {
                self.rpc.held.push(id);
            }
        }
    }

    /// Sends what is safe by now.
    pub(in crate::shard) fn release_held_rpc(&mut self) {
        for index in (0..self.rpc.held.len()).rev() {
            let id = self.rpc.held[index];
            let Some(connection) = self.rpc.connections.get(id as usize) else {
                self.rpc.held.swap_remove(index);
                continue;
            };
            if !self.logging.is_behind(connection.waits_for) {
                self.rpc.held.swap_remove(index);
                self.settle_rpc(id);
            }
        }
    }

    /// Ends the connections whose answers wait: nobody knows whether what they asked will last.
    pub(in crate::shard) fn shut_held_rpc(&mut self) {
        for id in std::mem::take(&mut self.rpc.held) {
            if self.rpc.connections.get(id as usize).is_some_and(|connection| self.logging.is_behind(connection.waits_for)) {
                self.shut_rpc(id);
                self.settle_rpc(id);
            }
        }
    }
}
