//! Knows a head again that came before on its connection: clients that keep a connection mostly send the same bytes, but for the session ID.
//! Asked by the decoder before a head is scanned. What it says must be what `read_head` would say of the same bytes.

use xfaas_common::limits::SESSION_ID_BYTES_MAX;

use super::head::Head;
use crate::net::request::Request;

/// Longer heads are read anew each time: a connection at rest should not hold more.
const REMEMBERED_BYTES_MAX: usize = 1024;
/// So that heads that differ a little in length need no new memory.
const REMEMBERED_BYTES_STEP: usize = 256;

/// A connection's last good head.
#[derive(Debug)]
pub(super) struct Remembered {
    bytes: Vec<u8>,
    head: Head,
}

impl Remembered {
    /// Puts a good head in place of the one before it. `bytes`: from the method to the final empty line.
    pub(super) fn note(place: &mut Option<Box<Remembered>>, bytes: &[u8], head: Head) {
        if bytes.len() > REMEMBERED_BYTES_MAX {
            return;
        }
        let remembered = place.get_or_insert_with(|| Box::new(Remembered { bytes: Vec::new(), head }));
        remembered.head = head;
        remembered.bytes.clear();
        remembered.bytes.reserve_exact(bytes.len().next_multiple_of(REMEMBERED_BYTES_STEP));
        remembered.bytes.extend_from_slice(bytes);
    }

    /// If `piece` begins with the same head, whole, or with one that differs in a well-formed session ID only: fills `request` from it.
    /// Output: bytes of the head, and what is known of it. Cost: a comparison of as many bytes.
    ///
    /// A session ID holds neither white space nor a line end, so whatever ID stands there, all else means what it meant the last time.
    #[inline]
    pub(super) fn recognise(&self, piece: &[u8], request: &mut Request) -> Option<(usize, Head)> {
        request.clear();
        let Some(session_at) = self.head.session_at() else {
            piece.starts_with(&self.bytes).then(|| self.head.fill(&self.bytes, request))?;
            return Some((self.bytes.len(), self.head));
        };
        let rest = piece.strip_prefix(&self.bytes[..session_at.start])?;
        let after = &self.bytes[session_at.end..];
        // Mostly it is as long as the last one; where it is not, and what follows it stands there all the same, the bytes before are no ID.
        let is_there = |length: usize| rest.get(length..).is_some_and(|rest| rest.starts_with(after));
        let length = if is_there(session_at.len()) {
            session_at.len()
        } else {
            let to_look_at = &rest[..rest.len().min(SESSION_ID_BYTES_MAX + 1)];
            memchr::memchr(*after.first()?, to_look_at).filter(|length| is_there(*length))?
        };
        if !request.name_session(&rest[..length]) {
            return None;
        }
        let head_bytes = session_at.start + length + after.len();
        self.head.fill(&piece[..head_bytes], request);
        Some((head_bytes, self.head))
    }
}
