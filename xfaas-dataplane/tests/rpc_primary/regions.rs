//! Descriptors of regions: given to processes of our user, for reading only.

use super::harness::{Node, RpcClient, State, eventually};
use super::node;
use rustix::io::IoSliceMut;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use std::fs::{File, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;
use xfaas_common::hash::{HashKeys, session_hash};
use xfaas_common::ids::SessionId;
use xfaas_dataplane::state::RegionReader;

fn socket(node: &Node) -> PathBuf {
    let (_client, welcome) = RpcClient::to_shard(node.rpc, 0);
    PathBuf::from(welcome.text["region_socket"].as_str().unwrap())
}

fn connect(node: &Node) -> UnixStream {
    let stream = UnixStream::connect(socket(node)).unwrap();
    stream.set_read_timeout(Some(super::harness::PATIENCE)).unwrap();
    stream
}

fn request(app: &str, shard: u16) -> Vec<u8> {
    [&b"XR\x01"[..], &[app.len() as u8], &shard.to_be_bytes(), app.as_bytes()].concat()
}

/// The answer's byte, and the descriptor that came with it.
fn answer(stream: &UnixStream) -> (u8, Option<File>) {
    let mut code = [9];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(stream, &mut [IoSliceMut::new(&mut code)], &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    assert_eq!(received.bytes, 1, "the primary closed");
    let file = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    (code[0], file.map(File::from))
}

/// True when the primary has closed, in order or by a reset, and said nothing.
fn is_closed(stream: &mut UnixStream) -> bool {
    match stream.read(&mut [0]) {
        Ok(bytes) => bytes == 0,
        Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
    }
}

#[test]
fn a_descriptor_reads_what_the_owner_writes_and_writes_nothing() {
    let node = node();
    let mut stream = connect(&node);
    for shard in 0..2u16 {
        let (mut client, welcome) = RpcClient::to_shard(node.rpc, shard);
        let session = welcome.session_of(shard, "s");
        let at = State::weak("script", &session);
        assert_eq!(client.call(|id| at.write(id, b"k", b"hello")).result(), 0);
        stream.write_all(&request("script", shard)).unwrap();
        let (code, file) = answer(&stream);
        let mut file = file.expect("a descriptor");
        assert_eq!(code, 0);
        assert!(file.write_all(b"x").is_err(), "opened for reading only");
        assert!(memmap2::MmapOptions::new().len(4_096).map_raw(&file).is_err(), "a shared mapping cannot be written");
        let reader = RegionReader::from_file(&file).unwrap();
        let keys: Vec<u64> = welcome.text["hash_keys"]
            .as_array()
            .unwrap()
            .iter()
            .map(|key| u64::from_str_radix(key.as_str().unwrap(), 16).unwrap())
            .collect();
        let session = SessionId::new(session.as_bytes()).unwrap();
        let hash = session_hash(&HashKeys { keys: keys.try_into().unwrap() }, session.padded(), session.length());
        let namespace = reader.find(&session, hash.table_hash()).unwrap().unwrap();
        let mut buffer = [0; 16];
        assert_eq!(reader.read(namespace, b"k", &mut buffer), Ok(Some(5)));
        assert_eq!(&buffer[..5], b"hello");
        assert_eq!(client.call(|id| at.write(id, b"k", b"later")).result(), 0);
        assert_eq!(reader.read(namespace, b"k", &mut buffer), Ok(Some(5)));
        assert_eq!(&buffer[..5], b"later");
    }
}

#[test]
fn what_is_not_there_is_refused_and_what_is_no_name_cut_off() {
    let node = node();
    let mut stream = connect(&node);
    for (app, shard) in [("nobody", 0), ("script", 2), ("..", 0)] {
        stream.write_all(&request(app, shard)).unwrap();
        let (code, file) = answer(&stream);
        assert_eq!((code, file.is_none()), (1, true), "{app} {shard}");
    }
    for bad in [request("../state", 0), request("", 0), b"XX\x01\x01\0\0a".to_vec(), b"XR\x02\x01\0\0a".to_vec()] {
        let mut stream = connect(&node);
        stream.write_all(&bad).unwrap();
        assert!(is_closed(&mut stream), "{bad:?} is answered with the end");
    }
    let mut half = connect(&node);
    half.write_all(b"XR\x01").unwrap();
    assert_eq!(half.read(&mut [0; 8]).unwrap(), 0, "nobody waits for the other half for ever");
    // Too many at once: the surplus is closed, and there is room again later.
    let many: Vec<UnixStream> = (0..70).map(|_| connect(&node)).collect();
    let closed = many.iter().filter(|stream| {
        stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        matches!((&mut &**stream).read(&mut [0]), Ok(0))
    });
    assert!(closed.count() >= 6);
    drop(many);
    eventually("there is room again", || {
        let mut stream = connect(&node);
        stream.write_all(&request("script", 0)).is_ok() && stream.read(&mut [9]).is_ok_and(|bytes| bytes == 1)
    });
}

#[test]
#[ignore = "needs CAP_SETUID: run `cargo xtask test` as root"]
fn another_user_is_cut_off_without_an_answer() {
    let node = node();
    let path = socket(&node);
    // The folder and the socket keep others out too: opened here, so that it is the primary that looks at who comes.
    std::fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
    for folder in path.ancestors().skip(1).take_while(|folder| folder.starts_with(node.directory.path())) {
        std::fs::set_permissions(folder, Permissions::from_mode(0o711)).unwrap();
    }
    // Of this thread alone: the kernel notes the user that connects.
    let stranger = std::thread::spawn(move || {
        let nobody = rustix::process::Uid::from_raw(65_534);
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        UnixStream::connect(path).unwrap()
    });
    let mut stranger = stranger.join().unwrap();
    stranger.set_read_timeout(Some(super::harness::PATIENCE)).unwrap();
    stranger.write_all(&request("script", 0)).ok();
    assert!(is_closed(&mut stranger), "no answer");
    eventually("it is in the log", || node.log().contains("a process of user 65534"));
    let mut ours = connect(&node);
    ours.write_all(&request("script", 0)).unwrap();
    assert_eq!(answer(&ours).0, 0);
}

#[test]
fn the_socket_goes_with_the_node_and_a_stale_one_is_replaced() {
    let mut node = node();
    let path = socket(&node);
    node.kill();
    assert!(path.exists(), "left by the killed process");
    node.start();
    let mut stream = connect(&node);
    stream.write_all(&request("script", 0)).unwrap();
    assert_eq!(answer(&stream).0, 0);
    node.stop();
    assert!(!path.exists());
}
