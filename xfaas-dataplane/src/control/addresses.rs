//! Who may speak for a session: tokens. CONTRACT.md sections 1 and 4. Called by the admin API.

use super::api::{TokenReply, TokenRequest};
use super::deploy::Deployer;
use crate::session::TokenKey;
use crate::sys::clock;
use xfaas_common::ids::SessionId;

/// Seconds for which a token can be good: ten years.
pub const TOKEN_TTL_S_MAX: u64 = 10 * 366 * 86_400;

/// Why an address cannot be had. Every text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    #[error("{text:?} is not a session ID: give 1 to 64 visible ASCII characters")]
    BadSession { text: String },
    #[error("`ttl_s` is {ttl_s}: give a value in 1..={TOKEN_TTL_S_MAX}")]
    BadTtl { ttl_s: u64 },
    #[error("no function of app {app:?} runs: see `xfaas functions`")]
    UnknownApp { app: String },
    #[error("app {app:?} wants no tokens: deploy its functions with --tokens first")]
    NoTokens { app: String },
}

/// What the admin API knows of addresses.
pub struct Addresses {
    tokens: TokenKey,
}

impl Addresses {
    pub fn new(tokens: TokenKey) -> Addresses {
        Addresses { tokens }
    }

    pub(super) fn token(&self, deployer: &Deployer, request: TokenRequest) -> Result<TokenReply, AddressError> {
        let TokenRequest { app, session: text, ttl_s } = request;
        let Some(session) = SessionId::new(text.as_bytes()) else { return Err(AddressError::BadSession { text }) };
        if !(1..=TOKEN_TTL_S_MAX).contains(&ttl_s) {
            return Err(AddressError::BadTtl { ttl_s });
        }
        let functions = deployer.functions();
        let Some(function) = functions.iter().find(|function| function.manifest.app == app && function.fault.is_none()) else {
            return Err(AddressError::UnknownApp { app });
        };
        if !function.manifest.rules.tokens {
            return Err(AddressError::NoTokens { app });
        }
        let expires_unix_s = clock::unix_s() + ttl_s;
        let token = self.tokens.issue(&app, &session, expires_unix_s);
        Ok(TokenReply { app, session: text, token, expires_unix_s })
    }
}
