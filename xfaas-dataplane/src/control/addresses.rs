//! Who may speak for a session, and by which other names: tokens and aliases. CONTRACT.md sections 1 and 4. Called by the admin API.

use super::aliases::Aliases;
use super::api::{AliasInfo, TokenReply, TokenRequest};
use super::deploy::Deployer;
use super::shards::{Shards, ShardsError};
use super::store::StoreError;
use crate::session::{AliasChange, TokenKey};
use crate::sys::clock;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use xfaas_common::ids::{SessionId, is_name};
use xfaas_common::limits::ALIASES_MAX;

/// Seconds for which a token can be good: ten years.
pub const TOKEN_TTL_S_MAX: u64 = 10 * 366 * 86_400;

/// Why an address cannot be had. Every text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    #[error("{text:?} is not a session ID: give 1 to 64 visible ASCII characters")]
    BadSession { text: String },
    #[error("`ttl_s` is {ttl_s}: give a value in 1..={TOKEN_TTL_S_MAX}")]
    BadTtl { ttl_s: u64 },
    #[error("{app:?} is not an app's name: use 1 to 64 of A-Z a-z 0-9 _ . -")]
    BadApp { app: String },
    #[error("{key:?} cannot be an alias of itself: give another session")]
    Itself { key: String },
    #[error("there is no alias {key:?}, or not in this app: see `xfaas sessions aliases`")]
    UnknownAlias { key: String },
    #[error("this node has {ALIASES_MAX} aliases, the most it takes: unmap one first")]
    TooManyAliases,
    #[error("this is a container: ask its primary, which makes tokens and keeps aliases")]
    IsContainer,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the alias is stored, but not every shard follows it yet: repeat the command")]
    Shards {
        #[source]
        source: ShardsError,
    },
    #[error("no function of app {app:?} runs: see `xfaas functions`")]
    UnknownApp { app: String },
    #[error("app {app:?} wants no tokens: deploy its functions with --tokens first")]
    NoTokens { app: String },
}

/// What the admin API knows of addresses.
pub struct Addresses {
    tokens: TokenKey,
    aliases: Mutex<Aliases>,
}

impl Addresses {
    /// Reads the aliases of a node. Errors: they cannot be read, or cannot be written.
    pub fn open(tokens: TokenKey, state_dir: &Path) -> Result<Addresses, StoreError> {
        Ok(Addresses { tokens, aliases: Mutex::new(Aliases::open(state_dir)?) })
    }

    /// Tells the shards all aliases. Called once, before they serve.
    pub fn start(&self, shards: &dyn Shards) -> Result<(), ShardsError> {
        let aliases = self.lock();
        if aliases.len() == 0 {
            return Ok(());
        }
        let change = |(app, key, session): (Option<&str>, &str, &SessionId)| {
            let key = SessionId::new(key.as_bytes()).expect("checked when it was read");
            AliasChange { app: app.map(Box::from), key, session: Some(*session) }
        };
        let changes: Vec<AliasChange> = aliases.list().map(change).collect();
        let pins: Vec<_> = changes.iter().map(|change| (change.key, change.session)).collect();
        shards.alias(&changes, &pins)
    }

    pub(super) fn aliases(&self) -> Vec<AliasInfo> {
        let aliases = self.lock();
        let info = |(app, key, session): (Option<&str>, &str, &SessionId)| AliasInfo {
            app: app.map(str::to_owned),
            key: key.to_owned(),
            session: session.to_string(),
        };
        aliases.list().map(info).collect()
    }

    /// Adds, changes or (`session` is `None`) takes away an alias; returns when it is on disk and every shard follows it.
    pub(super) fn alias(&self, shards: &dyn Shards, app: Option<&str>, key: &str, session: Option<&str>) -> Result<(), AddressError> {
        let id = |text: &str| SessionId::new(text.as_bytes()).ok_or_else(|| AddressError::BadSession { text: text.to_owned() });
        if let Some(app) = app.filter(|app| !is_name(app.as_bytes())) {
            return Err(AddressError::BadApp { app: app.to_owned() });
        }
        let change = AliasChange { app: app.map(Box::from), key: id(key)?, session: session.map(id).transpose()? };
        if change.session == Some(change.key) {
            return Err(AddressError::Itself { key: key.to_owned() });
        }
        let mut aliases = self.lock();
        if change.session.is_none() && !aliases.contains(&change) {
            return Err(AddressError::UnknownAlias { key: key.to_owned() });
        }
        if aliases.is_full_for(&change) {
            return Err(AddressError::TooManyAliases);
        }
        aliases.apply(&change)?;
        let meaning = change.session.or_else(|| aliases.other_meaning(&change.key));
        let pins = [(change.key, meaning)];
        shards.alias(&[change], &pins).map_err(|source| AddressError::Shards { source })
    }

    fn lock(&self) -> MutexGuard<'_, Aliases> {
        self.aliases.lock().unwrap_or_else(PoisonError::into_inner)
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
