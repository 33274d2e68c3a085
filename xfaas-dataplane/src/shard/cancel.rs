//! A client that is gone wants no answer: its call is ended wherever it is, so that its locks go to those who wait for them.
//! Called when a connection is given up: it was reset, did not take its answer, or timed out. A mere end of its sending half is not that.

use super::connection::Closing;
use super::mailbox::Message;
use super::tag::Operation;
use super::turn::Shard;
use crate::session::CallName;
use crate::sys::{Ring, clock};
use crate::worker::Origin;

impl Shard {
    /// Takes the next step of a connection that is given up: its call first, then what is under way in the kernel, then its slot.
    pub(super) fn settle_shut(&mut self, id: u32, generation: u16) {
        let core = self.core.0;
        let Some(connection) = self.connection(id, generation) else { return };
        if let Some(asked) = connection.asked.take() {
            let origin = Origin::Http { connection: id, generation: u32::from(generation), shard: core };
            let name = CallName { origin, app: asked.app, session: asked.session, table_hash: asked.table_hash };
            match asked.shard == core {
                true => self.cancel(&name),
                false => self.post.send(usize::from(asked.shard), Message::Cancel(Box::new(name))),
            }
        }
        // Gone by now, if the delivery of the cancelled call came by here.
        let Some(connection) = self.connections.get(id as usize).filter(|connection| connection.generation == generation) else { return };
        match connection.is_quiet() {
            true => self.remove_connection(id),
            false => self.ring.cancel_all(connection.file),
        }
    }

    /// Has the kernel say when a connection is reset that is not read, because much of its input waits.
    pub(super) fn watch(&mut self, id: u32) {
        let connection = &mut self.connections[id as usize];
        if !connection.watched && connection.closing == Closing::No {
            connection.watched = true;
            let tag = Operation::Watched { connection: id, generation: connection.generation }.tag();
            self.ring.poll_reset(tag, connection.file);
        }
    }

    /// `result`: what happened to the connection, poll(2), or an error where it is no longer watched. A client that only closed its sending half still
    /// gets its replies; it is not watched again, which would end at once.
    pub(super) fn on_watched(&mut self, id: u32, generation: u16, result: i32) {
        let Some(connection) = self.connection(id, generation) else { return };
        connection.watched = false;
        if Ring::is_reset(result) {
            connection.ended = true;
            connection.closing = Closing::Shut; // nobody reads a reply
        }
        self.settle(id, generation);
    }

    /// A call of a connection here goes on to another shard.
    pub(super) fn note_asked(&mut self, origin: Origin, shard: u16) {
        let Origin::Http { connection, generation, .. } = origin else { return };
        if let Some(asked) = self.connection(connection, generation as u16).and_then(|connection| connection.asked.as_mut()) {
            asked.shard = shard;
        }
    }

    /// Ends a call that runs here, unless it is over.
    pub(super) fn cancel(&mut self, name: &CallName) {
        let waiting = self.cancel_held_back(name).or_else(|| self.cancel_cold(name));
        match waiting.or_else(|| self.proxy.cancel(name, clock::monotonic_ns())) {
            Some(finished) => self.deliver(finished),
            None if self.cancel_offered(name) => {}
            None => self.pass_on_cancel(name),
        }
    }
}
