//! Descriptors of the primary's regions, over its Unix socket: only on the same machine, and only for the same user. docs/PROTOCOL.md, "Region descriptors".
//! Whatever is missing on the way is no error of the container: it asks by RPC instead.

use crate::session::Primary;
use crate::state::{RegionError, RegionReader};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg, sockopt};
use std::fs::File;
use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;
use xfaas_common::wire::{REGION_GIVEN, REGION_MAGIC, REGION_REQUEST_HEAD_BYTES, REGION_VERSION};

const ANSWER_MAX: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub(super) enum MapError {
    #[error("cannot ask {socket:?} for regions")]
    Socket {
        socket: std::path::PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{socket:?} belongs to a process of user {owner}, which is not to be trusted")]
    Stranger { socket: std::path::PathBuf, owner: u32 },
    #[error("the primary gives no region of app {app:?} on shard {shard}")]
    NotGiven { app: String, shard: u16 },
    #[error("the region of app {app:?} on shard {shard} cannot be used")]
    Region {
        app: String,
        shard: u16,
        #[source]
        source: RegionError,
    },
}

/// Maps the regions of `apps` (name and index) on all shards of the primary; those of an app that it does not give are left out.
/// Errors: the first that cannot be had, or none was given; nothing is mapped then.
pub(super) fn map(socket: &Path, primary: &Primary, apps: &[(String, u16)]) -> Result<Vec<(u16, u16, RegionReader)>, MapError> {
    let failed = |source| MapError::Socket { socket: socket.to_owned(), source };
    let mut stream = UnixStream::connect(socket).map_err(failed)?;
    stream.set_read_timeout(Some(ANSWER_MAX)).and_then(|()| stream.set_write_timeout(Some(ANSWER_MAX))).map_err(failed)?;
    let owner = sockopt::socket_peercred(&stream).map_err(|error| failed(error.into()))?.uid;
    if !owner.is_root() && owner != rustix::process::geteuid() {
        return Err(MapError::Stranger { socket: socket.to_owned(), owner: owner.as_raw() });
    }
    let (mut readers, mut refused) = (Vec::new(), None);
    for (app, index) in apps {
        let others = readers.len();
        for shard in 0..primary.shards() {
            let Some(file) = ask(&mut stream, app, shard).map_err(failed)? else {
                // Its durability is `sync`: only the owner knows which values are safe to show.
                refused = Some(MapError::NotGiven { app: app.clone(), shard });
                readers.truncate(others);
                break;
            };
            // Another primary of this machine has another fingerprint: a primary elsewhere may name a path that exists here too.
            let reader = RegionReader::of_file(&file, app, shard, primary.fingerprint());
            readers.push((*index, shard, reader.map_err(|source| MapError::Region { app: app.clone(), shard, source })?));
        }
    }
    match refused {
        Some(error) if readers.is_empty() => Err(error),
        _ => Ok(readers),
    }
}

fn ask(stream: &mut UnixStream, app: &str, shard: u16) -> std::io::Result<Option<File>> {
    let mut request = Vec::with_capacity(REGION_REQUEST_HEAD_BYTES + app.len());
    request.extend_from_slice(&REGION_MAGIC);
    request.extend_from_slice(&[REGION_VERSION, app.len() as u8]); // names have at most 64 bytes
    request.extend_from_slice(&shard.to_be_bytes());
    request.extend_from_slice(app.as_bytes());
    stream.write_all(&request)?;
    let mut answer = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(&*stream, &mut [IoSliceMut::new(&mut answer)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if received.bytes == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    let descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let file = descriptors.flatten().next().map(File::from);
    Ok(file.filter(|_| answer == [REGION_GIVEN]))
}
