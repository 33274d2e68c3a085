//! What a ring operation's 60-bit tag says: the kind of operation, the connection's generation, and its slot.

use super::connection::Arrival;
use crate::sys::Tag;

/// What is under way on a container's connection to its primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinkOperation {
    Received,
    Sent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Accept,
    Datagram,
    DatagramSent,
    Command,
    Mail,
    Receive {
        connection: u32,
        generation: u16,
    },
    Sent {
        connection: u32,
        generation: u16,
    },
    Closed,
    /// The writing half of a connection is shut.
    HalfClosed {
        connection: u32,
        generation: u16,
    },
    /// A connection that is not read was reset.
    Watched {
        connection: u32,
        generation: u16,
    },
    /// A connection was handed to another shard, or not.
    Handed {
        connection: u32,
        generation: u16,
    },
    /// A connection's descriptor came from another shard.
    Arrived(Arrival),
    /// An ordinary descriptor of a connection, to ask its addresses.
    Installed {
        connection: u32,
        generation: u16,
    },
    Rpc(RpcOperation),
    /// A container's descriptor came from another shard.
    RpcArrived(Arrival),
    /// Of a container's connection to its primary.
    Link {
        link: u32,
        generation: u16,
        operation: LinkOperation,
    },
    /// A write of the log is over.
    Logged,
}

/// The same of containers' connections; their kind lies where other tags have the sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RpcOperation {
    Accept,
    Receive { connection: u32, generation: u16 },
    Sent { connection: u32, generation: u16 },
    Handed { connection: u32, generation: u16 },
}

impl Operation {
    /// True for what is the client's next word, or the end of a send: neither changes what calls that were understood before it find.
    pub(super) fn leaves_calls_alone(self) -> bool {
        matches!(self, Operation::Receive { .. } | Operation::Sent { .. } | Operation::Datagram | Operation::DatagramSent)
    }
}

const KIND_SHIFT: u32 = 56;
const FROM_SHIFT: u32 = 48;
const GENERATION_SHIFT: u32 = 32;

impl Operation {
    pub(super) fn tag(self) -> Tag {
        let pack = |kind: u64, from: u8, generation: u16, connection: u32| {
            Tag(kind << KIND_SHIFT | u64::from(from) << FROM_SHIFT | u64::from(generation) << GENERATION_SHIFT | u64::from(connection))
        };
        match self {
            Operation::Accept => pack(1, 0, 0, 0),
            Operation::Datagram => pack(2, 0, 0, 0),
            Operation::DatagramSent => pack(3, 0, 0, 0),
            Operation::Command => pack(4, 0, 0, 0),
            Operation::Mail => pack(5, 0, 0, 0),
            Operation::Closed => pack(6, 0, 0, 0),
            Operation::Receive { connection, generation } => pack(7, 0, generation, connection),
            Operation::Sent { connection, generation } => pack(8, 0, generation, connection),
            Operation::Handed { connection, generation } => pack(9, 0, generation, connection),
            Operation::Arrived(arrival) => pack(10, arrival.from, arrival.generation, arrival.connection),
            Operation::Installed { connection, generation } => pack(11, 0, generation, connection),
            Operation::HalfClosed { connection, generation } => pack(12, 0, generation, connection),
            Operation::Watched { connection, generation } => pack(12, 1, generation, connection),
            Operation::Link { link, generation, operation } => pack(15, operation as u8, generation, link),
            Operation::Rpc(RpcOperation::Accept) => pack(13, 0, 0, 0),
            Operation::Rpc(RpcOperation::Receive { connection, generation }) => pack(13, 1, generation, connection),
            Operation::Rpc(RpcOperation::Sent { connection, generation }) => pack(13, 2, generation, connection),
            Operation::Rpc(RpcOperation::Handed { connection, generation }) => pack(13, 3, generation, connection),
            Operation::RpcArrived(arrival) => pack(14, arrival.from, arrival.generation, arrival.connection),
            Operation::Logged => pack(16, 0, 0, 0),
        }
    }

    pub(super) fn of(tag: Tag) -> Operation {
        let connection = tag.0 as u32;
        let generation = (tag.0 >> GENERATION_SHIFT) as u16;
        match tag.0 >> KIND_SHIFT {
            1 => Operation::Accept,
            2 => Operation::Datagram,
            3 => Operation::DatagramSent,
            4 => Operation::Command,
            5 => Operation::Mail,
            6 => Operation::Closed,
            7 => Operation::Receive { connection, generation },
            8 => Operation::Sent { connection, generation },
            9 => Operation::Handed { connection, generation },
            10 => Operation::Arrived(Arrival { from: (tag.0 >> FROM_SHIFT) as u8, connection, generation }),
            11 => Operation::Installed { connection, generation },
            12 if (tag.0 >> FROM_SHIFT) as u8 == 0 => Operation::HalfClosed { connection, generation },
            12 => Operation::Watched { connection, generation },
            15 => {
                let is_sent = (tag.0 >> FROM_SHIFT) as u8 == LinkOperation::Sent as u8;
                let operation = if is_sent { LinkOperation::Sent } else { LinkOperation::Received };
                Operation::Link { link: connection, generation, operation }
            }
            13 => Operation::Rpc(match (tag.0 >> FROM_SHIFT) as u8 {
                0 => RpcOperation::Accept,
                1 => RpcOperation::Receive { connection, generation },
                2 => RpcOperation::Sent { connection, generation },
                3 => RpcOperation::Handed { connection, generation },
                kind => unreachable!("no RPC operation has kind {kind}: tags are made by `Operation::tag` only"),
            }),
            14 => Operation::RpcArrived(Arrival { from: (tag.0 >> FROM_SHIFT) as u8, connection, generation }),
            16 => Operation::Logged,
            kind => unreachable!("no operation has kind {kind}: tags are made by `Operation::tag` only"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_tag_says_what_it_was_made_of(connection: u32, generation: u16, from: u8) {
            for operation in [
                Operation::Accept, Operation::Datagram, Operation::DatagramSent, Operation::Command, Operation::Mail, Operation::Closed, Operation::Logged,
                Operation::Receive { connection, generation }, Operation::Sent { connection, generation },
                Operation::Handed { connection, generation }, Operation::Installed { connection, generation },
                Operation::HalfClosed { connection, generation }, Operation::Watched { connection, generation },
                Operation::Arrived(Arrival { from, connection, generation }),
                Operation::Link { link: connection, generation, operation: LinkOperation::Received },
                Operation::Link { link: connection, generation, operation: LinkOperation::Sent },
                Operation::RpcArrived(Arrival { from, connection, generation }),
                Operation::Rpc(RpcOperation::Accept), Operation::Rpc(RpcOperation::Receive { connection, generation }),
                Operation::Rpc(RpcOperation::Sent { connection, generation }),
                Operation::Rpc(RpcOperation::Handed { connection, generation }),
            ] {
                prop_assert_eq!(Operation::of(operation.tag()), operation);
                prop_assert_eq!(operation.tag().0 >> 61, 0);
            }
        }
    }
}
