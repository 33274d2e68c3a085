//! State in an S3-compatible object store: an object for each key of a session. A lock is an object that only one PUT can make (`If-None-Match: *`)
//! and its holder deletes: without an end, since nothing in S3 takes an object away in seconds.

use super::outside::{LockToken, StateFault, StateKey};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{ClientOptions, Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, RetryConfig};
use std::time::Duration;

const CONNECT_WAIT: Duration = Duration::from_secs(1);
const ANSWER_WAIT: Duration = Duration::from_secs(5);
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
            // A PUT that took the lock and whose answer was lost must not be tried again: it would wait for itself.
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
        let failed = StateFault::store::<Error>;
        match self.store.get(&key.path(STATE)).await {
            Ok(found) => Ok(Some(found.bytes().await.map_err(failed("read"))?.into())),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(failed("read")(error)),
        }
    }

    pub(super) async fn write(&self, key: &StateKey, value: &[u8]) -> Result<(), StateFault> {
        let put = self.store.put(&key.path(STATE), PutPayload::from(value.to_vec())).await;
        put.map(drop).map_err(StateFault::store("write"))
    }

    /// `None`: the lock is somebody's.
    pub(super) async fn try_lock(&self, key: &StateKey, token: &LockToken, reads: bool) -> Result<Option<Option<Vec<u8>>>, StateFault> {
        if !self.has_locks {
            return Err(StateFault::store("lock")(std::io::Error::other("this store has no conditional PUT")));
        }
        if !self.put_new(&key.path(LOCK), token.as_str()).await? {
            return Ok(None);
        }
        if !reads {
            return Ok(Some(None));
        }
        match self.read(key).await {
            Ok(value) => Ok(Some(value)),
            Err(fault) => self.release(key).await.and(Err(fault)),
        }
    }

    /// Only by the holder: nobody else can have taken the lock, as it has no end.
    pub(super) async fn release(&self, key: &StateKey) -> Result<(), StateFault> {
        self.store.delete(&key.path(LOCK)).await.map_err(StateFault::store("release"))
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
