//! Where checkpoints are kept: a local folder, read and written on an io_uring (`ring_files`), or an S3-compatible bucket by `object_store`, which
//! lists folders too. Called on the checkpoints' thread, inside its tokio-uring runtime; nothing here is on a request's path.
//!
//! An object is named `<prefix>/<app>/<bucket>/<session>.<number>`: a bucket is one of 1,024, so that no folder gets too long, and bytes of names
//! that stores or file systems treat in their own way are written as `=XX`.

use super::checkpoint::{CheckpointName, Damage, decode_checkpoint, encode_checkpoint};
use super::drafts::remove_drafts;
use super::ring_files::{Piece, RingFiles};
use futures_util::{FutureExt, StreamExt, TryFutureExt, TryStreamExt};
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::prefix::PrefixStore;
use object_store::{ClientOptions, ObjectStore, ObjectStoreExt, PutPayload, RetryConfig};
use std::any::Any;
use std::fmt::Write;
use std::os::unix::fs::DirBuilderExt;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use xfaas_common::ids::{SessionId, is_name};
use xfaas_common::limits::{CHECKPOINT_BYTES_MAX, STORE_MS_MAX};

const BUCKETS: u32 = 1_024;
/// Read at once while checkpoints are deleted.
const DELETES_MAX: usize = 8;
const RETRIES_MAX: usize = 2;
const CONNECT_WAIT: Duration = Duration::from_secs(3);
/// What a store is expected to move at least: 1 MB/s.
const STORE_BYTES_PER_MS: u64 = 1_000;
/// Written to see whether a store that failed takes objects again.
pub(super) const PROBE: &str = "probe";

/// Where checkpoints go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StorePlace {
    Folder(PathBuf),
    S3(S3Place),
}

/// A bucket of an S3-compatible store.
#[derive(Clone, PartialEq, Eq)]
pub struct S3Place {
    pub bucket: String,
    pub prefix: String,
    pub endpoint: Option<String>,
    pub region: Option<String>,
    pub access_key_id: Option<String>,
    pub secret_access_key: Option<String>,
    pub session_token: Option<String>,
}

impl std::fmt::Debug for S3Place {
    /// Without what is secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let S3Place { bucket, prefix, endpoint, region, .. } = self;
        f.debug_struct("S3Place")
            .field("bucket", bucket)
            .field("prefix", prefix)
            .field("endpoint", endpoint)
            .field("region", region)
            .finish()
    }
}

/// Why something could not be done with the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreFault {
    #[error("cannot open the folder of checkpoints {}", path.display())]
    Folder {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the store of checkpoints: cannot {operation} {object}")]
    Store {
        operation: &'static str,
        object: String,
        #[source]
        source: object_store::Error,
    },
    #[error("the store of checkpoints: cannot {operation} {}", path.display())]
    File {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the store of checkpoints: to {operation} {object} took longer than {waited_ms} ms")]
    Slow { operation: &'static str, object: String, waited_ms: u64 },
    #[error("the store of checkpoints: to {operation} {object} panicked: {message}")]
    Panicked { operation: &'static str, object: String, message: String },
    #[error("the checkpoint {object} is damaged")]
    Damaged {
        object: String,
        #[source]
        source: Damage,
    },
}

impl StoreFault {
    /// `panic`: what `catch_unwind` caught.
    pub fn panicked(operation: &'static str, object: &str, panic: &(dyn Any + Send)) -> StoreFault {
        let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        let message = text.unwrap_or("the log says where").to_owned();
        StoreFault::Panicked { operation, object: object.to_owned(), message }
    }

    /// False when it is the object that is bad, and not the store.
    pub fn is_of_the_store(&self) -> bool {
        !matches!(self, StoreFault::Damaged { .. })
    }
}

/// A checkpoint as a listing names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedCheckpoint {
    pub app: String,
    pub session: SessionId,
    pub number: u64,
}

/// An open store.
#[derive(Clone, Debug)]
pub struct CheckpointStore {
    objects: Arc<dyn ObjectStore>,
    /// The same objects as files, where they are.
    files: Option<RingFiles>,
}

impl CheckpointStore {
    /// Errors: the folder cannot be made or opened, or the settings of the bucket are wrong. A bucket is not asked anything yet.
    pub fn open(place: &StorePlace) -> Result<CheckpointStore, StoreFault> {
        let path = match place {
            StorePlace::Folder(path) => path,
            StorePlace::S3(place) => return Ok(CheckpointStore { objects: Arc::new(open_bucket(place)?), files: None }),
        };
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(|source| StoreFault::Folder { path: path.clone(), source })?;
        remove_drafts(path).map_err(|source| StoreFault::Folder { path: path.clone(), source })?;
        let open = |source| StoreFault::Store { operation: "open", object: path.display().to_string(), source };
        Ok(CheckpointStore { objects: Arc::new(LocalFileSystem::new_with_prefix(path).map_err(open)?), files: Some(RingFiles::new(path)) })
    }

    /// Writes a checkpoint; when it returns, the checkpoint is as safe as the store is. `record`: see `encode_checkpoint`.
    pub async fn put(&self, name: CheckpointName<'_>, record: Vec<u8>) -> Result<(), StoreFault> {
        let number = name.number;
        let bytes = tokio::task::spawn_blocking(move || encode_checkpoint(number, &record)).await;
        let object = object_of(&name);
        let bytes = bytes.map_err(|error| StoreFault::Store { operation: "encode", object: object.clone(), source: error.into() })?;
        self.put_bytes(&object, bytes).await
    }

    async fn put_bytes(&self, object: &str, bytes: Vec<u8>) -> Result<(), StoreFault> {
        let wait = time_for(bytes.len() as u64);
        match &self.files {
            Some(files) => within(wait, "write", object, files.write(object, bytes)).await,
            None => {
                let path = path_of(object)?;
                in_bucket(wait, "write", object, self.objects.put(&path, PutPayload::from(bytes))).await.map(drop)
            }
        }
    }

    /// The record of a checkpoint. Errors: it is damaged, or cannot be read.
    pub async fn get(&self, name: CheckpointName<'_>) -> Result<Vec<u8>, StoreFault> {
        let object = object_of(&name);
        let bytes = self.get_bytes(&object).await?;
        // Bytes of a store can be anything.
        let decode = async { decode_checkpoint(&bytes, &name).map_err(|source| StoreFault::Damaged { object: object.clone(), source }) };
        unpanicked("decode", &object, decode).await
    }

    async fn get_bytes(&self, object: &str) -> Result<Vec<u8>, StoreFault> {
        if let Some(files) = &self.files {
            let mut open = within(time_for(0), "read", object, files.open(object)).await?;
            loop {
                let wait = time_for(open.make_room());
                open = match within(wait, "read", object, files.read(open)).await? {
                    Piece::Whole(bytes) => return Ok(bytes),
                    Piece::More(open) => open,
                };
            }
        }
        let path = path_of(object)?;
        let found = in_bucket(time_for(0), "read", object, self.objects.get(&path)).await?;
        in_bucket(time_for(found.meta.size), "read", object, found.bytes()).await.map(Vec::from)
    }

    /// Deletes checkpoints that are not needed any more. One that is not there is no error.
    pub async fn delete(&self, app: &str, session: &SessionId, numbers: impl Iterator<Item = u64>) -> Result<(), StoreFault> {
        let all = numbers.map(|number| async move {
            let object = object_of(&CheckpointName { app, session, number });
            if let Some(files) = &self.files {
                return within(time_for(0), "delete", &object, files.delete(&object)).await;
            }
            let path = path_of(&object)?;
            match in_bucket(time_for(0), "delete", &object, self.objects.delete(&path)).await {
                Err(StoreFault::Store { source: object_store::Error::NotFound { .. }, .. }) => Ok(()),
                done => done,
            }
        });
        futures_util::stream::iter(all).buffer_unordered(DELETES_MAX).try_collect().await
    }

    /// All checkpoints, in no particular order, to `found`. Objects with other names are left out.
    pub async fn list(&self, mut found: impl FnMut(ListedCheckpoint)) -> Result<(), StoreFault> {
        let mut objects = self.objects.list(None);
        loop {
            match in_bucket(time_for(0), "list", "all objects", async { objects.next().await.transpose() }).await? {
                Some(meta) => {
                    if let Some(listed) = listed(meta.location.as_ref()) {
                        found(listed);
                    }
                }
                None => return Ok(()),
            }
        }
    }

    /// Writes and reads back a small object. Errors: the store does not work.
    pub async fn probe(&self) -> Result<(), StoreFault> {
        self.put_bytes(PROBE, b"xfaas".to_vec()).await?;
        self.get_bytes(PROBE).await.map(drop)
    }
}

/// How long it may take to write or read so many bytes.
fn time_for(bytes: u64) -> Duration {
    Duration::from_millis(STORE_MS_MAX + bytes.min(CHECKPOINT_BYTES_MAX as u64) / STORE_BYTES_PER_MS)
}

async fn in_bucket<T>(
    wait: Duration,
    operation: &'static str,
    object: &str,
    work: impl Future<Output = Result<T, object_store::Error>>,
) -> Result<T, StoreFault> {
    let work = work.map_err(|source| StoreFault::Store { operation, object: object.to_owned(), source });
    within(wait, operation, object, work).await
}

async fn within<T>(
    wait: Duration,
    operation: &'static str,
    object: &str,
    work: impl Future<Output = Result<T, StoreFault>>,
) -> Result<T, StoreFault> {
    let done = tokio::time::timeout(wait, unpanicked(operation, object, work)).await;
    done.unwrap_or_else(|_| Err(StoreFault::Slow { operation, object: object.to_owned(), waited_ms: wait.as_millis() as u64 }))
}

/// Does work with the store. A panic on the way, as `object_store` has for settings that it cannot put into a request, is a fault of the store.
async fn unpanicked<T>(operation: &'static str, object: &str, work: impl Future<Output = Result<T, StoreFault>>) -> Result<T, StoreFault> {
    // What the work had of the store's own is thrown away with it; what it shares are clients and settings, which no panic leaves half changed.
    let done = AssertUnwindSafe(work).catch_unwind().await;
    done.unwrap_or_else(|panic| Err(StoreFault::panicked(operation, object, &*panic)))
}

fn open_bucket(place: &S3Place) -> Result<PrefixStore<object_store::aws::AmazonS3>, StoreFault> {
    let failed = |source| StoreFault::Store { operation: "open", object: format!("s3://{}", place.bucket), source };
    // Refused when a provider is there already, which then does the same.
    rustls::crypto::ring::default_provider().install_default().ok();
    let timeout = time_for(CHECKPOINT_BYTES_MAX as u64);
    let retry = RetryConfig { max_retries: RETRIES_MAX, retry_timeout: timeout, ..RetryConfig::default() };
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(&place.bucket)
        .with_retry(retry)
        .with_client_options(ClientOptions::new().with_timeout(timeout).with_connect_timeout(CONNECT_WAIT))
        .with_allow_http(place.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://")));
    if let Some(endpoint) = &place.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    if let Some(region) = &place.region {
        builder = builder.with_region(region);
    }
    if let (Some(id), Some(secret)) = (&place.access_key_id, &place.secret_access_key) {
        builder = builder.with_access_key_id(id).with_secret_access_key(secret);
    }
    if let Some(token) = &place.session_token {
        builder = builder.with_token(token);
    }
    let prefix = ObjectPath::parse(&place.prefix).map_err(|source| failed(source.into()))?;
    Ok(PrefixStore::new(builder.build().map_err(failed)?, prefix))
}

fn path_of(object: &str) -> Result<ObjectPath, StoreFault> {
    let failed =
        |source: object_store::path::Error| StoreFault::Store { operation: "name", object: object.to_owned(), source: source.into() };
    ObjectPath::parse(object).map_err(failed)
}

pub(super) fn object_of(name: &CheckpointName<'_>) -> String {
    let mut object = String::with_capacity(64);
    escape(&mut object, name.app.as_bytes());
    let bucket = crc32c::crc32c(name.session.as_bytes()) % BUCKETS;
    write!(object, "/{bucket:03x}/").expect("a String takes all text");
    escape(&mut object, name.session.as_bytes());
    write!(object, ".{:016x}", name.number).expect("a String takes all text");
    object
}

fn escape(out: &mut String, name: &[u8]) {
    for byte in name {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => out.push(char::from(*byte)),
            _ => write!(out, "={byte:02X}").expect("a String takes all text"),
        }
    }
}

pub(super) fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut parts = text.split('=');
    let mut name = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let (hex, rest) = part.split_at_checked(2)?;
        name.push(u8::from_str_radix(hex, 16).ok()?);
        name.extend_from_slice(rest.as_bytes());
    }
    Some(name)
}

/// What an object's name says; `None` for names that we do not give.
pub(super) fn listed(object: &str) -> Option<ListedCheckpoint> {
    let mut parts = object.split('/');
    let (app, _, last, None) = (parts.next()?, parts.next()?, parts.next()?, parts.next()) else { return None };
    let (session, number) = last.split_once('.')?;
    let app = String::from_utf8(unescape(app)?).ok().filter(|app| is_name(app.as_bytes()))?;
    let listed = ListedCheckpoint { app, session: SessionId::new(&unescape(session)?)?, number: u64::from_str_radix(number, 16).ok()? };
    let name = CheckpointName { app: &listed.app, session: &listed.session, number: listed.number };
    (object_of(&name) == object).then_some(listed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_name_comes_back_from_its_object(app in "[A-Za-z0-9_.-]{1,64}", session in "[!-~]{1,64}", number in any::<u64>()) {
            let session = SessionId::new(session.as_bytes()).unwrap();
            let object = object_of(&CheckpointName { app: &app, session: &session, number });
            prop_assert!(object.split('/').all(|part| part.len() < 230) && path_of(&object).unwrap().as_ref() == object);
            prop_assert_eq!(listed(&object), Some(ListedCheckpoint { app, session, number }));
        }

        #[test]
        fn names_of_others_are_no_checkpoints(object in "[ -~]{0,40}") {
            prop_assert!(listed(&object).is_none());
        }
    }

    #[test]
    fn what_is_written_is_listed_read_and_deleted() {
        let folder = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(&StorePlace::Folder(folder.path().join("a/b"))).unwrap();
        let session = SessionId::new(b"../x").unwrap();
        let name = CheckpointName { app: "..", session: &session, number: 3 };
        tokio_uring::start(async {
            store.probe().await.unwrap();
            store.put(name, b"no record".to_vec()).await.unwrap();
            let mut all = Vec::new();
            store.list(|found| all.push(found)).await.unwrap();
            assert_eq!(all, [ListedCheckpoint { app: "..".to_owned(), session, number: 3 }]);
            let damaged = store.get(name).await.unwrap_err();
            assert!(matches!(damaged, StoreFault::Damaged { source: Damage::Record, .. }) && !damaged.is_of_the_store());
            store.delete("..", &session, [2, 3].into_iter()).await.unwrap();
            let missing = store.get(name).await.unwrap_err();
            assert!(missing.is_of_the_store(), "{missing}");
        });
    }

    /// Checkpoints that earlier versions wrote, and whatever an operator copies between a folder and a bucket.
    #[test]
    fn files_are_where_object_store_has_them() {
        let folder = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(&StorePlace::Folder(folder.path().to_owned())).unwrap();
        let session = SessionId::new(b"a/b=c#d%e~").unwrap();
        let (older, newer) =
            (CheckpointName { app: ".x", session: &session, number: 1 }, CheckpointName { app: ".x", session: &session, number: 2 });
        tokio_uring::start(async {
            let path = path_of(&object_of(&older)).unwrap();
            store.objects.put(&path, PutPayload::from_static(b"theirs")).await.unwrap();
            assert_eq!(store.get_bytes(&object_of(&older)).await.unwrap(), b"theirs");
            store.put_bytes(&object_of(&newer), b"ours".to_vec()).await.unwrap();
            let found = store.objects.get(&path_of(&object_of(&newer)).unwrap()).await.unwrap();
            assert_eq!(found.bytes().await.unwrap(), b"ours"[..]);
        });
    }

    #[test]
    fn secrets_are_not_shown() {
        let key = Some("hidden".to_owned());
        let place = S3Place {
            bucket: "b".to_owned(),
            prefix: String::new(),
            endpoint: None,
            region: None,
            access_key_id: key.clone(),
            secret_access_key: key.clone(),
            session_token: key,
        };
        assert!(!format!("{place:?}").contains("hidden"));
    }
}
