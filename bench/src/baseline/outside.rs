//! State that is kept elsewhere: what redis and an object store can both do for a guest, and how long anybody waits for a lock.

use super::object_state::ObjectState;
use super::redis_state::RedisState;
use crate::load::Random;
use std::collections::hash_map::RandomState;
use std::fmt::Write as _;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use xfaas_common::ids::SessionId;

/// As `lock_wait_ms` of xfaas.
pub const LOCK_WAIT_MAX: Duration = Duration::from_secs(5);

/// How often a lock is asked for. More often, and those who wait slow down the one who holds it: they share its store.
#[derive(Clone, Copy)]
struct Pace {
    /// Tries that follow each other.
    at_once: u32,
    /// Then it waits, each time longer, up to the last; a timer is no finer than a millisecond.
    pause_min: Duration,
    pause_max: Duration,
}

/// Most sections are shorter than a round trip or two.
const REDIS_PACE: Pace = Pace { at_once: 2, pause_min: Duration::from_millis(1), pause_max: Duration::from_millis(8) };
/// A round trip is milliseconds.
const OBJECTS_PACE: Pace = Pace { at_once: 0, pause_min: Duration::from_millis(4), pause_max: Duration::from_millis(64) };

/// Why an invocation could not go on.
#[derive(Debug, thiserror::Error)]
pub enum StateFault {
    #[error("a lock was not free within {} s", LOCK_WAIT_MAX.as_secs())]
    LockWait,
    #[error("the lock had expired and was somebody else's: nothing was written")]
    LockLost,
    #[error("{operation} at the store of the session's state")]
    Store {
        operation: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl StateFault {
    pub(super) fn store<E: std::error::Error + Send + Sync + 'static>(operation: &'static str) -> impl FnOnce(E) -> StateFault {
        move |source| StateFault::Store { operation, source: Box::new(source) }
    }

    /// The store may have taken a write although it did not say so, or had taken it before something else failed.
    pub(super) fn may_have_written(&self) -> bool {
        matches!(self, StateFault::Store { operation: "write" | "release" | "write and release", .. })
    }
}

/// A key of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateKey {
    pub session: SessionId,
    pub key: Vec<u8>,
}

impl StateKey {
    /// The kind, the session and the key. A session has no space in it, so no two keys share a name.
    pub(super) fn name(&self, kind: &str) -> Vec<u8> {
        let session = self.session.as_bytes();
        let mut name = Vec::with_capacity(kind.len() + session.len() + self.key.len() + 2);
        name.extend_from_slice(kind.as_bytes());
        name.push(b':');
        name.extend_from_slice(session);
        name.push(b' ');
        name.extend_from_slice(&self.key);
        name
    }

    /// As a path: the key in hex digits, since it may hold any bytes.
    pub(super) fn path(&self, kind: &str) -> object_store::path::Path {
        let mut key = String::with_capacity(2 * self.key.len());
        self.key.iter().for_each(|byte| write!(key, "{byte:02x}").expect("a String takes all"));
        object_store::path::Path::from_iter([kind, self.session.as_str(), &key])
    }
}

/// What a lock's holder puts there, so that nobody else releases it. Never given twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockToken(String);

impl LockToken {
    pub fn fresh() -> LockToken {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        // The standard library seeds each hasher's keys from the system's randomness.
        LockToken(format!("{:016x}{next:016x}", RandomState::new().hash_one(next)))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Where the sessions' state is.
pub enum OutsideState {
    Redis(RedisState),
    Objects(ObjectState),
}

impl OutsideState {
    pub async fn read(&self, key: &StateKey) -> Result<Option<Vec<u8>>, StateFault> {
        match self {
            OutsideState::Redis(redis) => redis.read(key).await,
            OutsideState::Objects(objects) => objects.read(key).await,
        }
    }

    pub async fn write(&self, key: &StateKey, value: &[u8]) -> Result<(), StateFault> {
        match self {
            OutsideState::Redis(redis) => redis.write(key, value).await,
            OutsideState::Objects(objects) => objects.write(key, value).await,
        }
    }

    /// Takes the key's lock, waiting for it, and then reads the key if `reads`.
    pub async fn lock(&self, key: &StateKey, token: &LockToken, reads: bool) -> Result<Option<Vec<u8>>, StateFault> {
        let mut wait = LockWait::begin(match self {
            OutsideState::Redis(_) => REDIS_PACE,
            OutsideState::Objects(_) => OBJECTS_PACE,
        });
        loop {
            let tried = match self {
                OutsideState::Redis(redis) => redis.try_lock(key, token, reads).await?,
                OutsideState::Objects(objects) => objects.try_lock(key, token, reads).await?,
            };
            match tried {
                Some(value) => return Ok(value),
                None => wait.pause().await?,
            }
        }
    }

    /// Writes while the lock is held, and releases it.
    pub async fn write_and_release(&self, key: &StateKey, value: &[u8], token: &LockToken) -> Result<(), StateFault> {
        match self {
            OutsideState::Redis(redis) => redis.write_and_release(key, value, token).await,
            OutsideState::Objects(objects) => {
                objects.write(key, value).await?;
                objects.release(key, token).await
            }
        }
    }

    /// Releases the lock if it still is the token's.
    pub async fn release(&self, key: &StateKey, token: &LockToken) -> Result<(), StateFault> {
        match self {
            OutsideState::Redis(redis) => redis.release(key, token).await,
            OutsideState::Objects(objects) => objects.release(key, token).await,
        }
    }
}

/// One wait for a lock: a few tries at once, then pauses that grow, none as long as the one beside it.
struct LockWait {
    began: Instant,
    pace: Pace,
    tries: u32,
    pause: Duration,
    random: Random,
}

impl LockWait {
    fn begin(pace: Pace) -> LockWait {
        let random = Random::new(RandomState::new().hash_one(0));
        LockWait { began: Instant::now(), pace, tries: 0, pause: pace.pause_min, random }
    }

    /// Errors: it has waited for long enough.
    async fn pause(&mut self) -> Result<(), StateFault> {
        if self.began.elapsed() >= LOCK_WAIT_MAX {
            return Err(StateFault::LockWait);
        }
        self.tries += 1;
        if self.tries <= self.pace.at_once {
            tokio::task::yield_now().await;
            return Ok(());
        }
        let percent = 50 + self.random.below(101) as u32;
        tokio::time::sleep(self.pause * percent / 100).await;
        self.pause = (self.pause * 2).min(self.pace.pause_max);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(session: &str, key: &[u8]) -> StateKey {
        StateKey { session: SessionId::new(session.as_bytes()).unwrap(), key: key.to_vec() }
    }

    #[test]
    fn only_what_comes_after_a_write_began_may_have_written() {
        let fault = |operation| StateFault::store(operation)(std::io::Error::other("gone"));
        assert!(["write", "release", "write and release"].into_iter().all(|operation| fault(operation).may_have_written()));
        assert!(!["connect", "read", "lock"].into_iter().any(|operation| fault(operation).may_have_written()));
        assert!(!StateFault::LockWait.may_have_written() && !StateFault::LockLost.may_have_written());
    }

    #[test]
    fn names_tell_sessions_and_keys_apart() {
        assert_eq!(key("a", b"n").name("lock"), b"lock:a n");
        assert_ne!(key("a:b", b"c").name("state"), key("a", b"b:c").name("state"));
        assert_ne!(key("a", b"n").name("state"), key("a", b"n").name("lock"));
        assert_eq!(key("a", b"n").path("state").as_ref(), "state/a/6e");
        assert_ne!(key("..", b"/").path("state"), key(".", b"/").path("state"));
        assert_ne!(key("a/b", b"c").path("state"), key("a", b"c").path("state"));
    }

    #[test]
    fn no_two_tokens_are_alike() {
        let tokens: std::collections::HashSet<String> = (0..1_000).map(|_| LockToken::fresh().0).collect();
        assert_eq!(tokens.len(), 1_000);
        assert!(tokens.iter().all(|token| token.len() == 32));
    }

    #[test]
    fn a_wait_for_a_lock_ends() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let mut wait = LockWait::begin(REDIS_PACE);
        runtime.block_on(wait.pause()).unwrap();
        assert_eq!(wait.pause, REDIS_PACE.pause_min);
        (0..8).for_each(|_| runtime.block_on(wait.pause()).unwrap());
        assert_eq!(wait.pause, REDIS_PACE.pause_max);
        wait.began -= LOCK_WAIT_MAX;
        assert!(matches!(runtime.block_on(wait.pause()), Err(StateFault::LockWait)));
    }
}
