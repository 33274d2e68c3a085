//! Gives containers of the same user on this machine the descriptors of regions, opened for reading only: docs/PROTOCOL.md, "Region
//! descriptors". On the control thread. A peer is an outsider until the kernel has said whose process it is.

use rustix::io::IoSlice;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use xfaas_common::ids::is_name;
use xfaas_common::limits::REGION_CONNECTIONS_MAX;
use xfaas_common::wire::{REGION_GIVEN, REGION_MAGIC, REGION_REFUSED, REGION_REQUEST_HEAD_BYTES, REGION_VERSION};

/// A connection that asks nothing for so long is closed.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(2);
/// Before the next try when connections cannot be taken, as when this process has no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub(super) type IsGiven = dyn Fn(&str) -> bool + Send + Sync;

/// The socket, bound. Its path goes when this is dropped.
#[derive(Debug)]
pub struct RegionDoor {
    listener: UnixListener,
    path: PathBuf,
    /// Where the regions' files lie.
    directory: PathBuf,
}

impl RegionDoor {
    /// Binds `path`, in place of what a killed process may have left there: its folder is ours alone.
    /// Errors: as the system gives them; a path of over 107 bytes cannot be bound.
    pub fn bind(path: &Path, directory: PathBuf) -> io::Result<RegionDoor> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let door = RegionDoor { listener: UnixListener::bind(path)?, path: path.to_owned(), directory };
        std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
        door.listener.set_nonblocking(true)?;
        Ok(door)
    }

    /// Answers until the runtime ends. Errors: the listener cannot be used at all.
    ///
    /// `is_given`: an app's regions may be read without asking their owner.
    pub(super) async fn serve(self, is_given: Arc<IsGiven>) -> io::Result<()> {
        let listener = tokio::net::UnixListener::from_std(self.listener.try_clone()?)?;
        let places = Arc::new(Semaphore::new(REGION_CONNECTIONS_MAX));
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            // None left: closed without an answer, and the container asks again or reads by RPC.
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
            let (directory, is_given) = (self.directory.clone(), Arc::clone(&is_given));
            tokio::spawn(async move {
                if let Err(error) = serve_peer(&stream, &directory, &*is_given).await {
                    tracing::warn!(%error, "a container gets no region descriptors");
                }
                drop(place);
            });
        }
    }
}

impl Drop for RegionDoor {
    fn drop(&mut self) {
        // Left behind it would be replaced at the next start.
        std::fs::remove_file(&self.path).ok();
    }
}

/// Errors: the peer is someone else, or broke the protocol. One that is silent or leaves is none.
async fn serve_peer(stream: &UnixStream, directory: &Path, is_given: &IsGiven) -> io::Result<()> {
    let peer = stream.peer_cred()?.uid();
    if peer != 0 && peer != rustix::process::geteuid().as_raw() {
        return Err(io::Error::other(format!("it is a process of user {peer}")));
    }
    while let Ok(request) = tokio::time::timeout(REQUEST_TIME_MAX, read_request(stream)).await {
        let Some((app, shard)) = request? else { return Ok(()) };
        // The name is one of ours, so it cannot lead out of the folder.
        let file = is_given(&app).then(|| File::open(directory.join(format!("{app}.{shard}.region"))).ok()).flatten();
        let answered = tokio::time::timeout(REQUEST_TIME_MAX, answer(stream, file.as_ref())).await;
        answered.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    }
    Ok(())
}

/// The next request: an app's name and a shard. `None`: the peer has left.
async fn read_request(stream: &UnixStream) -> io::Result<Option<(String, u16)>> {
    let mut head = [0; REGION_REQUEST_HEAD_BYTES];
    if !read_all(stream, &mut head).await? {
        return Ok(None);
    }
    let [magic_0, magic_1, version, app_bytes, shard @ ..] = head;
    if [magic_0, magic_1] != REGION_MAGIC || version != REGION_VERSION {
        return Err(io::Error::other("it speaks another protocol"));
    }
    let mut app = vec![0; usize::from(app_bytes)];
    if !read_all(stream, &mut app).await? {
        return Ok(None);
    }
    match String::from_utf8(app) {
        Ok(app) if is_name(app.as_bytes()) => Ok(Some((app, u16::from_be_bytes(shard)))),
        _ => Err(io::Error::other("it asked for an app whose name is none")),
    }
}

/// False: the stream ended before `buffer` was full.
async fn read_all(stream: &UnixStream, mut buffer: &mut [u8]) -> io::Result<bool> {
    while !buffer.is_empty() {
        stream.readable().await?;
        match stream.try_read(buffer) {
            Ok(0) => return Ok(false),
            Ok(bytes) => buffer = &mut buffer[bytes..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

async fn answer(stream: &UnixStream, file: Option<&File>) -> io::Result<()> {
    let send = || {
        let descriptors = file.map(|file| [file.as_fd()]);
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let code = [if file.is_some() { REGION_GIVEN } else { REGION_REFUSED }];
        if let Some(descriptors) = &descriptors
            && !control.push(SendAncillaryMessage::ScmRights(descriptors))
        {
            return Err(io::Error::other("no room for a descriptor"));
        }
        Ok(sendmsg(stream, &[IoSlice::new(&code)], &mut control, SendFlags::NOSIGNAL)?)
    };
    stream.async_io(Interest::WRITABLE, send).await.map(drop)
}
