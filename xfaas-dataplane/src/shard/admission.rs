//! What is asked of a request before anything runs for it: that it names its session well, and carries a token if its app wants one.
//! CONTRACT.md section 1. Called by the HTTP and datagram stages on the shard where the request landed. Allocates nothing.

use super::turn::Shard;
use crate::net::{ErrorCode, Request};
use crate::session::{datagram_token, named_session};
use crate::sys::clock;
use crate::worker::{Function, Hint};
use xfaas_common::ids::SessionId;

/// Carries a token over HTTP.
const TOKEN_HEADER: &[u8] = b"x-session-token";

/// Why a request is refused.
pub(super) type Refusal = (ErrorCode, &'static str);

impl Shard {
    /// Puts the session that an HTTP request names into `session`, if it names one and may. Output: whether it names one.
    #[inline]
    pub(super) fn admit_http(&self, function: &Function, request: &Request, session: &mut SessionId) -> Result<bool, Refusal> {
        let is_named = match &function.manifest.rules.hint {
            Hint::SessionHeader => request.session().map(|named| *session = *named), // as below, with no copy on the way
            hint => named_session(request, hint).map_err(|detail| (ErrorCode::BadSession, detail))?.map(|named| *session = named),
        };
        self.admit_named(function, request, is_named.map(|()| session))
    }

    /// The same once it is known which session is named.
    #[inline]
    pub(super) fn admit_named(&self, function: &Function, request: &Request, mut named: Option<&mut SessionId>) -> Result<bool, Refusal> {
        if let Some(named) = named.as_deref_mut() {
            self.aliases.resolve(&function.manifest.app, named);
        }
        if function.manifest.rules.tokens {
            self.check_http_token(function, request, named.as_deref()).map_err(|detail| (ErrorCode::BadToken, detail))?;
        }
        Ok(named.is_some())
    }

    fn check_http_token(&self, function: &Function, request: &Request, named: Option<&SessionId>) -> Result<(), &'static str> {
        let session = named.ok_or("this app wants a token, and a token is for a session: name one")?;
        let mut tokens = request.headers(TOKEN_HEADER);
        let token = tokens.next().ok_or("this app wants a token in x-session-token")?;
        if tokens.next().is_some() {
            return Err("x-session-token is there twice");
        }
        self.check_token(function, session, token)
    }

    /// Checks the token at the front of a datagram's payload and takes it off. True: the datagram may go on.
    pub(super) fn admit_datagram(&self, function: &Function, session: &SessionId, request: &mut Request) -> bool {
        if !function.manifest.rules.tokens {
            return true;
        }
        let Some((token, front_bytes)) = datagram_token(request.body()) else { return false };
        let is_good = self.check_token(function, session, token).is_ok();
        if is_good {
            request.drop_body_front(front_bytes);
        }
        is_good
    }

    fn check_token(&self, function: &Function, session: &SessionId, token: &[u8]) -> Result<(), &'static str> {
        let key = self.options.token_key.as_ref().ok_or("this node checks no tokens")?;
        key.check(&function.manifest.app, session, token, clock::unix_s())
    }
}
