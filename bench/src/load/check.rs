//! What a good reply looks like; anything else is an error of the run.

use super::reply::Reply;

/// What the body must be.
#[derive(Clone, Debug)]
pub enum BodyRule {
    Anything,
    /// 1 to 20 decimal digits: a counter's text.
    Number,
    /// Exactly these bytes.
    Equals(Vec<u8>),
}

impl BodyRule {
    /// Cost: one pass over the body.
    pub fn holds(&self, body: &[u8]) -> bool {
        match self {
            BodyRule::Anything => true,
            BodyRule::Number => (1..=20).contains(&body.len()) && body.iter().all(u8::is_ascii_digit),
            BodyRule::Equals(expected) => body == expected,
        }
    }
}

/// What an HTTP reply must be, besides status 200 and a connection that stays.
#[derive(Clone, Debug)]
pub struct Expect {
    pub body: BodyRule,
    /// The reply names the session of its request.
    pub names_session: bool,
}

impl Expect {
    /// What is wrong with `reply` to a request of `session`; `None` when nothing is.
    pub(super) fn fault(&self, reply: &Reply<'_>, session: &[u8]) -> Option<&'static str> {
        if reply.status != 200 {
            return Some("the status is not 200");
        }
        if !self.body.holds(reply.body) {
            return Some("the body is not what was asked for");
        }
        if self.names_session && reply.session != Some(session) {
            return Some("the reply is another session's");
        }
        if reply.closes {
            return Some("the connection closes");
        }
        None
    }
}

/// The start of a reply as text, for a message.
pub(crate) fn excerpt(bytes: &[u8]) -> String {
    bytes[..bytes.len().min(400)].escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_1_to_20_digits() {
        assert!(BodyRule::Number.holds(b"0"));
        assert!(BodyRule::Number.holds(b"18446744073709551615"));
        assert!(!BodyRule::Number.holds(b""));
        assert!(!BodyRule::Number.holds(b"1 "));
        assert!(!BodyRule::Number.holds(b"184467440737095516150"));
    }

    #[test]
    fn every_part_of_a_reply_is_held_against_the_rule() {
        let expect = Expect { body: BodyRule::Number, names_session: true };
        let good = || Reply { status: 200, session: Some(b"a"), closes: false, body: b"7", bytes: 90 };
        assert_eq!(expect.fault(&good(), b"a"), None);
        assert!(expect.fault(&Reply { status: 503, ..good() }, b"a").is_some());
        assert!(expect.fault(&Reply { body: b"x", ..good() }, b"a").is_some());
        assert!(expect.fault(&Reply { closes: true, ..good() }, b"a").is_some());
        assert!(expect.fault(&good(), b"b").is_some());
    }
}
