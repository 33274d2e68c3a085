//! Why a datagram was dropped without an answer, in the kernel or in user space; the position is the counter's index.

/// Reasons of silence, CONTRACT.md section 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum DropReason {
    /// Shorter than the 32-byte header.
    Truncated = 0,
    BadMagic = 1,
    BadVersion = 2,
    /// Any kind but 1: replies, errors and state access are never taken on this port.
    BadKind = 3,
    /// `flags`, `status` or `reserved` not zero.
    BadReserved = 4,
    /// `session_len` 0 or over 64.
    BadSessionLength = 5,
    /// A session ID byte outside 0x21-0x7E.
    BadSessionByte = 6,
    /// Header + session ID + payload is not the datagram's length.
    BadLength = 7,
    /// Sent to a broadcast or multicast address: every core's socket gets a copy, so none may be answered.
    NotUnicast = 8,
}

impl DropReason {
    pub const ALL: [DropReason; 9] = [
        DropReason::Truncated,
        DropReason::BadMagic,
        DropReason::BadVersion,
        DropReason::BadKind,
        DropReason::BadReserved,
        DropReason::BadSessionLength,
        DropReason::BadSessionByte,
        DropReason::BadLength,
        DropReason::NotUnicast,
    ];

    /// The `reason` label in `/metrics`.
    pub const fn name(self) -> &'static str {
        match self {
            DropReason::Truncated => "truncated",
            DropReason::BadMagic => "bad_magic",
            DropReason::BadVersion => "bad_version",
            DropReason::BadKind => "bad_kind",
            DropReason::BadReserved => "bad_reserved",
            DropReason::BadSessionLength => "bad_session_length",
            DropReason::BadSessionByte => "bad_session_byte",
            DropReason::BadLength => "bad_length",
            DropReason::NotUnicast => "not_unicast",
        }
    }
}

const _: () = {
    let mut i = 0;
    while i < DropReason::ALL.len() {
        assert!(DropReason::ALL[i] as usize == i, "the position is the counter's index");
        i += 1;
    }
};
