//! A connection that speaks for one session moves to the shard that owns it: its descriptor by ring message, its state by mailbox.
//! It moves only between two requests, with nothing under way; whatever fails on the way leaves it where it was.

use super::connection::{Arrival, Closing, Connection, MovedConnection, SpeaksFor};
use super::mailbox::Message;
use super::start::GROUP_STREAMS;
use super::tag::Operation;
use super::turn::Shard;
use crate::net::Phase;
use crate::sys::{Completion, FixedFile, Ring};
use socket2::SockRef;
use std::net::{IpAddr, SocketAddr};
use xfaas_common::map_layout::FlowKey;

impl Shard {
    /// Starts, or takes the next step of, the move of a connection that speaks for another shard's session.
    pub(super) fn settle_move(&mut self, id: u32) {
        let connection = &mut self.connections[id as usize];
        let SpeaksFor::Owner(owner) = connection.speaks_for else { return };
        if owner == self.core.0 || connection.busy {
            return;
        }
        if connection.ended {
            // Nothing more will come, so there is nothing to move for; what came last is still answered.
            if connection.moving_to.take().is_some() {
                connection.speaks_for = SpeaksFor::Many;
                let generation = u32::from(connection.generation);
                self.resume(id, generation);
            }
            return;
        }
        let between = connection.decoder.phase() == Phase::BetweenRequests && connection.pending.is_empty();
        if connection.moving_to.is_none() {
            // While the shards drain, the owner may be gone before the connection is there.
            if !between || !connection.out.is_empty() || self.draining_since_ns.is_some() {
                return;
            }
            connection.moving_to = Some(owner);
            if connection.armed {
                let tag = Operation::Receive { connection: id, generation: connection.generation }.tag();
                self.ring.cancel_receive(tag, GROUP_STREAMS);
            }
        }
        self.hand_over(id);
    }

    fn hand_over(&mut self, id: u32) {
        let connection = &mut self.connections[id as usize];
        let Some(owner) = connection.moving_to else { return };
        if !connection.is_quiet() || !connection.out.is_empty() {
            return;
        }
        // From here the descriptor is with the kernel: `busy` keeps everything else away until it says how it went.
        connection.busy = true;
        let generation = connection.generation;
        let arrival = Arrival { from: self.core.0 as u8, connection: id, generation };
        let handed = Operation::Handed { connection: id, generation }.tag();
        let remote = Operation::Arrived(arrival).tag();
        self.ring.message_file(handed, self.rings[usize::from(owner)], connection.file, remote);
    }

    /// The other shard has the descriptor, or has no room for it.
    pub(super) fn on_handed(&mut self, id: u32, generation: u16, result: i32) {
        let core = self.core.0;
        let Some(connection) = self.connection(id, generation) else { return };
        connection.busy = false;
        let Some(owner) = connection.moving_to.take() else { return };
        if result < 0 {
            connection.speaks_for = SpeaksFor::Many; // it stays and forwards
            return self.resume(id, u32::from(generation));
        }
        let state = MovedConnection {
            arrival: Arrival { from: core as u8, connection: id, generation },
            decoder: std::mem::take(&mut connection.decoder),
            pending: std::mem::take(&mut connection.pending),
            speaks_for: connection.speaks_for,
            spoke_for: connection.spoke_for,
        };
        self.post.send(usize::from(owner), Message::Moved(Box::new(state)));
        self.view.counters.moved.add(1);
        self.remove_connection(id); // closes this ring's descriptor only: the other ring holds its own
    }

    pub(super) fn on_arrived(&mut self, arrival: Arrival, result: i32) {
        let Ok(file) = u32::try_from(result) else { return };
        if let Some((state, file)) = self.arrivals.file(arrival, FixedFile(file)) {
            self.adopt(*state, file);
        }
    }

    pub(super) fn on_moved(&mut self, state: Box<MovedConnection>) {
        if let Some((state, file)) = self.arrivals.state(state.arrival, state) {
            self.adopt(*state, file);
        }
    }

    fn adopt(&mut self, state: MovedConnection, file: FixedFile) {
        let MovedConnection { decoder, pending, speaks_for, spoke_for, .. } = state;
        let id = self.insert_connection(|generation, now_ns| Connection {
            decoder,
            pending,
            speaks_for,
            spoke_for,
            ..Connection::new(file, generation, now_ns)
        });
        let generation = self.connections[id as usize].generation;
        if self.flows.is_some() {
            self.ring.install(Operation::Installed { connection: id, generation }.tag(), file);
        }
        self.resume(id, u32::from(generation));
    }

    /// Somebody traces from now on, or nobody does: segments are found in the kernel's stamps by their connections' ports.
    pub(super) fn set_traced(&mut self, is_traced: bool) {
        self.is_traced = is_traced;
        if !is_traced || self.flows.is_none() {
            return;
        }
        let unknown = self.connections.iter().filter(|(_, connection)| connection.peer_port == 0 && connection.closing != Closing::Shut);
        let unknown: Vec<u32> = unknown.map(|(id, _)| id as u32).collect();
        unknown.into_iter().for_each(|id| self.ask_for_port(id));
    }

    pub(super) fn ask_for_port(&mut self, id: u32) {
        let connection = &self.connections[id as usize];
        self.ring.install(Operation::Installed { connection: id, generation: connection.generation }.tag(), connection.file);
    }

    /// An ordinary descriptor of a connection that was moved, or is traced: tells the kernel program where its packets belong now.
    pub(super) fn on_installed(&mut self, id: u32, generation: u16, completion: &Completion) {
        let Some(descriptor) = Ring::installed(completion) else { return };
        if self.connection(id, generation).is_none() {
            return;
        }
        let socket = SockRef::from(&descriptor);
        let addresses = socket.peer_addr().and_then(|peer| Ok((peer, socket.local_addr()?)));
        let Ok((peer, local)) = addresses else { return };
        let (Some(peer), Some(local), Some(flows)) = (peer.as_socket(), local.as_socket(), &mut self.flows) else { return };
        self.connections[id as usize].peer_port = peer.port();
        // Without the entry packets take the detour over another CPU, no more: not worth an error.
        flows.remember(flow_key(peer, local), self.core).ok();
    }
}

/// The key under which the kernel program knows packets from `peer` to `local`.
fn flow_key(peer: SocketAddr, local: SocketAddr) -> FlowKey {
    let octets = |address: SocketAddr| match address.ip() {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    };
    FlowKey {
        source: octets(peer),
        destination: octets(local),
        source_port: peer.port().to_be_bytes(),
        destination_port: local.port().to_be_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv4_is_mapped_whichever_socket_family_saw_it() {
        let plain = flow_key("10.0.0.2:1234".parse().unwrap(), "10.0.0.1:80".parse().unwrap());
        let mapped = flow_key("[::ffff:10.0.0.2]:1234".parse().unwrap(), "[::ffff:10.0.0.1]:80".parse().unwrap());
        assert_eq!(plain, mapped);
        assert_eq!((plain.source_port, plain.destination_port), ([4, 210], [0, 80]));
    }
}
