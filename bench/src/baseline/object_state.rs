//! State in an S3-compatible object store: an object for each key of a session. A lock is an object that only one PUT can make (`If-None-Match: *`)
//! and its holder deletes: without an end, since nothing in S3 takes an object away in seconds.

use super::outside::{LockToken, StateFault, StateKey};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{ClientOptions, Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, RetryConfig};
use std::time::Duration;

const CONNECT_WAIT: Duration = Duration::from_secs(1);
const ANSWER_WAIT: Duration = Duration::from_secs(5);
/// What comes to the same when it is done twice is tried so often: a server may end a connection that rested just when the next request leaves on it.
const TRIES: usize = 3;
const STATE: &str = "state";
const LOCK: &str = "lock";

/// Where the objects are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectPlace {
    pub bucket: String,
    /// `http://HOST:PORT`.
    pub endpoint: String,
    /// Key and secret; without them requests are not signed.
    pub credentials: Option<(String, String)>,
}

pub struct ObjectState {
    store: AmazonS3,
    /// The store refuses a second PUT of that kind.
    has_locks: bool,
}

impl ObjectState {
    /// Inside a tokio runtime with its timers and network on. Tries whether the store can lock.
    /// Errors: no such store, or no such bucket.
    pub async fn connect(place: &ObjectPlace) -> Result<ObjectState, StateFault> {
        // Refused when a provider is there already, which then does the same.
        rustls::crypto::ring::default_provider().install_default().ok();
        let client = ClientOptions::new().with_timeout(ANSWER_WAIT).with_connect_timeout(CONNECT_WAIT).with_http1_only();
        let client = client.with_allow_http(place.endpoint.starts_with("http://"));
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&place.bucket)
            .with_endpoint(&place.endpoint)
            .with_unsigned_payload(true)
            .with_skip_signature(place.credentials.is_none())
            // Tried again below, by what each operation means: a PUT that took the lock and whose answer was lost would wait for itself.
            .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() })
            .with_client_options(client);
        if let Some((key, secret)) = &place.credentials {
            builder = builder.with_access_key_id(key).with_secret_access_key(secret);
        }
        let store = builder.build().map_err(StateFault::store("open"))?;
        let mut state = ObjectState { store, has_locks: true };
        state.has_locks = state.refuses_a_second_put().await?;
        Ok(state)
    }

    /// Strong access can be had.
    pub fn has_locks(&self) -> bool {
        self.has_locks
    }

    async fn refuses_a_second_put(&self) -> Result<bool, StateFault> {
        let probe = Path::from_iter([LOCK, LockToken::fresh().as_str()]);
        if !self.put_new(&probe, "probe").await? {
            return Ok(false);
        }
        let is_refused = !self.put_new(&probe, "probe").await?;
        self.store.delete(&probe).await.map_err(StateFault::store("release"))?;
        Ok(is_refused)
    }

    pub(super) async fn read(&self, key: &StateKey) -> Result<Option<Vec<u8>>, StateFault> {
        self.content(&key.path(STATE)).await.map_err(StateFault::store("read"))
    }

    pub(super) async fn write(&self, key: &StateKey, value: &[u8]) -> Result<(), StateFault> {
        let (path, value) = (key.path(STATE), PutPayload::from(value.to_vec()));
        let mut tries = 1;
        loop {
            match self.store.put(&path, value.clone()).await {
                Err(Error::Generic { .. }) if tries < TRIES => tries += 1,
                put => return put.map(drop).map_err(StateFault::store("write")),
            }
        }
    }

    /// `None`: the lock is somebody's.
    pub(super) async fn try_lock(&self, key: &StateKey, token: &LockToken, reads: bool) -> Result<Option<Option<Vec<u8>>>, StateFault> {
        if !self.has_locks {
            return Err(StateFault::store("lock")(std::io::Error::other("this store has no conditional PUT")));
        }
        let path = key.path(LOCK);
        let is_taken = match self.put_new(&path, token.as_str()).await {
            Err(fault) if !self.is_ours(&path, token).await => return Err(fault),
            Err(_) => true, // only its answer was lost
            Ok(is_taken) => is_taken,
        };
        if !is_taken {
            return Ok(None);
        }
        if !reads {
            return Ok(Some(None));
        }
        match self.read(key).await {
            Ok(value) => Ok(Some(value)),
            Err(fault) => self.release(key, token).await.and(Err(fault)),
        }
    }

    /// Only by the holder: nobody else can have taken the lock, as it has no end. Not done again where the lock may be somebody else's already.
    pub(super) async fn release(&self, key: &StateKey, token: &LockToken) -> Result<(), StateFault> {
        let path = key.path(LOCK);
        let (mut released, mut tries) = (self.store.delete(&path).await, 1);
        while released.is_err() {
            match self.content(&path).await {
                Ok(holder) if holder.as_deref() != Some(token.as_str().as_bytes()) => return Ok(()), // only the answer was lost
                Ok(_) if tries < TRIES => (released, tries) = (self.store.delete(&path).await, tries + 1),
                _ => break,
            }
        }
        released.map_err(StateFault::store("release"))
    }

    /// The lock is known to be this token's.
    async fn is_ours(&self, path: &Path, token: &LockToken) -> bool {
        self.content(path).await.is_ok_and(|holder| holder.as_deref() == Some(token.as_str().as_bytes()))
    }

    /// What an object holds; `None`: there is none.
    async fn content(&self, path: &Path) -> Result<Option<Vec<u8>>, Error> {
        let mut tries = 1;
        loop {
            let found = match self.store.get(path).await {
                Ok(found) => found.bytes().await,
                Err(error) => Err(error),
            };
            match found {
                Ok(bytes) => return Ok(Some(bytes.into())),
                Err(Error::NotFound { .. }) => return Ok(None),
                Err(Error::Generic { .. }) if tries < TRIES => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// False: there is such an object already.
    async fn put_new(&self, path: &Path, text: &str) -> Result<bool, StateFault> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.store.put_opts(path, PutPayload::from(text.to_owned()), options).await {
            Ok(_) => Ok(true),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(false),
            Err(error) => Err(StateFault::store("lock")(error)),
        }
    }
}
