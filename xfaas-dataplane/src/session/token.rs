//! Session tokens: who may speak for a session of an app, until when. CONTRACT.md section 1, "Tokens".
//! Made by control, checked by the shard where a request landed, before anything runs. Token bytes are hostile; a check allocates nothing.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use std::fmt;
use xfaas_common::ids::SessionId;

/// Bytes of the node's secret.
pub const TOKEN_SECRET_BYTES: usize = 32;
const MAC_BYTES: usize = 32;
/// Characters of a MAC in base64 without padding.
const MAC_CHARACTERS: usize = 43;
const VERSION: &str = "v1.";
/// Keeps these MACs apart from others that the same secret may be used for one day.
const DOMAIN: &[u8] = b"xfaas session token v1\0";

/// The secret of a node, ready to make and check tokens with. Cloning copies 200 bytes.
#[derive(Clone)]
pub struct TokenKey(Hmac<Sha256>);

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenKey(secret)")
    }
}

impl TokenKey {
    pub fn new(secret: &[u8; TOKEN_SECRET_BYTES]) -> TokenKey {
        let mut mac = Hmac::new_from_slice(secret).expect("a key of any length is fine");
        mac.update(DOMAIN);
        TokenKey(mac)
    }

    /// `v1.<expiry>.<mac>`: lets its bearer speak for `session` of `app` until that second.
    pub fn issue(&self, app: &str, session: &SessionId, expires_unix_s: u64) -> String {
        let expiry = expires_unix_s.to_string();
        let mac = self.mac(app, session, expiry.as_bytes()).finalize().into_bytes();
        format!("{VERSION}{expiry}.{}", URL_SAFE_NO_PAD.encode(mac))
    }

    /// Errors: what is wrong with the token, in words for the client. The time a wrong one takes does not tell how wrong it is.
    pub fn check(&self, app: &str, session: &SessionId, token: &[u8], now_unix_s: u64) -> Result<(), &'static str> {
        let (expiry, mac) = parse(token).ok_or("the token is not v1.<expiry>.<mac>")?;
        let expected = self.mac(app, session, expiry);
        expected.verify_slice(&mac).map_err(|_| "the token was not made by this node for this app and session")?;
        let expires_unix_s = expiry.iter().fold(0_u64, |sum, byte| sum.saturating_mul(10).saturating_add(u64::from(byte - b'0')));
        if now_unix_s >= expires_unix_s { Err("the token has expired") } else { Ok(()) }
    }

    /// No field can hold the NUL that ends it.
    fn mac(&self, app: &str, session: &SessionId, expiry: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        for field in [app.as_bytes(), session.as_bytes(), expiry] {
            mac.update(field);
            mac.update(b"\0");
        }
        mac
    }
}

/// Output: the digits of the expiry, and the MAC.
fn parse(token: &[u8]) -> Option<(&[u8], [u8; MAC_BYTES])> {
    let rest = token.strip_prefix(VERSION.as_bytes())?;
    let dot = memchr::memchr(b'.', rest)?;
    let (expiry, text) = (&rest[..dot], &rest[dot + 1..]);
    if expiry.is_empty() || expiry.len() > 20 || !expiry.iter().all(u8::is_ascii_digit) || text.len() != MAC_CHARACTERS {
        return None;
    }
    // The decoder wants room for whole groups.
    let mut bytes = [0; MAC_CHARACTERS.div_ceil(4) * 3];
    let length = URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).ok()?;
    Some((expiry, *bytes[..length].first_chunk()?))
}

/// The token at the front of a datagram's payload: its length in one byte, then the token. Output: the token, and the bytes before the
/// payload proper.
pub fn datagram_token(payload: &[u8]) -> Option<(&[u8], usize)> {
    let (length, rest) = payload.split_first()?;
    let token = rest.get(..usize::from(*length))?;
    Some((token, 1 + token.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key() -> TokenKey {
        TokenKey::new(&[7; TOKEN_SECRET_BYTES])
    }

    fn session(text: &str) -> SessionId {
        SessionId::new(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_token_is_good_for_its_app_session_and_time_alone() {
        let token = key().issue("shop", &session("alice"), 1_000);
        let check = |key: &TokenKey, app: &str, name: &str, now_s: u64| key.check(app, &session(name), token.as_bytes(), now_s);
        assert_eq!(check(&key(), "shop", "alice", 999), Ok(()));
        assert!(check(&key(), "shop", "alice", 1_000).unwrap_err().contains("expired"));
        for (app, name) in [("shop", "alic"), ("shop", "Alice"), ("sho", "alice"), ("shopa", "lice")] {
            assert!(check(&key(), app, name, 0).unwrap_err().contains("not made"), "{app} {name}");
        }
        assert!(check(&TokenKey::new(&[8; TOKEN_SECRET_BYTES]), "shop", "alice", 0).is_err());
    }

    #[test]
    fn the_mac_is_that_of_rfc_2104_over_the_documented_text() {
        let mut mac = Hmac::<Sha256>::new_from_slice(&[7; TOKEN_SECRET_BYTES]).unwrap();
        mac.update(b"xfaas session token v1\0shop\0alice\x001000\0");
        let expected = format!("v1.1000.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()));
        assert_eq!(key().issue("shop", &session("alice"), 1_000), expected);
    }

    #[test]
    fn a_secret_is_not_shown() {
        assert_eq!(format!("{:?}", key()), "TokenKey(secret)");
    }

    #[test]
    fn a_datagram_says_how_long_its_token_is() {
        assert_eq!(datagram_token(b"\x03abcrest"), Some((&b"abc"[..], 4)));
        assert_eq!(datagram_token(b"\x00rest"), Some((&b""[..], 1)));
        assert_eq!((datagram_token(b""), datagram_token(b"\x04abc")), (None, None));
    }

    proptest! {
        #[test]
        fn one_changed_byte_makes_a_token_worthless(at in 0_usize..60, value: u8, expires_s in 1_u64..u64::MAX) {
            let token = key().issue("shop", &session("alice"), expires_s).into_bytes();
            let mut changed = token.clone();
            let at = at % changed.len();
            changed[at] = value;
            prop_assert_eq!(key().check("shop", &session("alice"), &changed, 0).is_ok(), changed == token);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..80), is_versioned: bool) {
            let token = if is_versioned { [b"v1.5.", &bytes[..]].concat() } else { bytes };
            prop_assert!(key().check("shop", &session("alice"), &token, 0).is_err());
        }
    }
}
