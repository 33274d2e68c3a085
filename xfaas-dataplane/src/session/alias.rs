//! Aliases: other names of sessions, added and removed while the node runs. CONTRACT.md section 4.
//! A shard looks a hint's value up here before it chooses the session. Every shard has a table of its own, changed by command.

use std::collections::HashMap;
use xfaas_common::ids::SessionId;

/// One alias added, or taken away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AliasChange {
    /// Only in this app; `None`: in every app.
    pub app: Option<Box<str>>,
    pub key: SessionId,
    /// `None`: the alias is no more.
    pub session: Option<SessionId>,
}

#[derive(Default)]
pub struct AliasTable {
    everywhere: HashMap<SessionId, SessionId>,
    by_app: HashMap<Box<str>, HashMap<SessionId, SessionId>>,
}

impl AliasTable {
    pub fn apply(&mut self, change: &AliasChange) {
        match (&change.app, change.session) {
            (None, Some(session)) => drop(self.everywhere.insert(change.key, session)),
            (None, None) => drop(self.everywhere.remove(&change.key)),
            (Some(app), Some(session)) => drop(self.by_app.entry(app.clone()).or_default().insert(change.key, session)),
            (Some(app), None) => {
                if let Some(aliases) = self.by_app.get_mut(app) {
                    aliases.remove(&change.key);
                    if aliases.is_empty() {
                        self.by_app.remove(app);
                    }
                }
            }
        }
    }

    /// Puts the session that `key` means in its place: an alias of the app wins over one of every app, and what an alias means is not looked up again.
    /// Cost: two comparisons while there is no alias.
    #[inline]
    pub fn resolve(&self, app: &str, key: &mut SessionId) {
        if self.everywhere.is_empty() && self.by_app.is_empty() {
            return;
        }
        let own = self.by_app.get(app).and_then(|aliases| aliases.get(key));
        if let Some(session) = own.or_else(|| self.everywhere.get(key)) {
            *key = *session;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> SessionId {
        SessionId::new(text.as_bytes()).unwrap()
    }

    #[test]
    fn an_apps_alias_wins_and_none_is_followed_twice() {
        let mut table = AliasTable::default();
        let mut set = |app: Option<&str>, key: &str, session: Option<&str>, asked: &str| {
            table.apply(&AliasChange { app: app.map(Box::from), key: id(key), session: session.map(id) });
            let mut key = id("k");
            table.resolve(asked, &mut key);
            key.to_string()
        };
        assert_eq!(set(None, "other", Some("x"), "a"), "k");
        assert_eq!(set(None, "k", Some("s"), "a"), "s");
        assert_eq!(set(None, "s", Some("t"), "a"), "s");
        assert_eq!(set(Some("a"), "k", Some("own"), "a"), "own");
        assert_eq!(set(Some("a"), "k", Some("own"), "b"), "s");
        assert_eq!(set(Some("a"), "k", None, "a"), "s");
        assert_eq!(set(Some("a"), "k", None, "a"), "s");
        assert_eq!(set(None, "k", None, "a"), "k");
        assert!(table.by_app.is_empty());
    }
}
