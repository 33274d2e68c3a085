//! Sends of datagrams that the kernel cuts, and of those that it refuses to; long sends in pieces; receives into few buffers.

use super::{FixedFile, GroupOptions, Peer, Ring, RingOptions, Tag};
use socket2::SockRef;
use std::collections::VecDeque;
use std::io::Read;
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

const SENT: Tag = Tag(1);

const RECEIVED: Tag = Tag(2);

fn ring() -> Ring {
    ring_with(Vec::new())
}

fn ring_with(groups: Vec<GroupOptions>) -> Ring {
    Ring::new(&RingOptions { submission_entries: 64, completion_entries: 1_024, files: 1, groups, polls: false })
        .expect("io_uring, without which nothing here works")
}

/// Sends `bytes` in segments, by a connected socket or one that is told the peer. Output: the datagrams that came, and the sends that completed.
fn sent_as(bytes: &[u8], segment_bytes: usize, is_connected: bool) -> (Vec<Vec<u8>>, usize) {
    let socket = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("the kernel picks a free port");
    let (mut ring, receiver, sender) = (ring(), socket(), socket());
    let address = receiver.local_addr().expect("a bound socket has an address");
    receiver.set_read_timeout(Some(Duration::from_millis(200))).expect("the time is not zero");
    if is_connected {
        sender.connect(address).expect("a datagram socket asks nobody");
        ring.adopt(FixedFile(0), sender.as_fd()).expect("the ring has one place for it");
        ring.send_segments(SENT, FixedFile(0), bytes.to_vec(), segment_bytes);
    } else {
        ring.send_datagrams(SENT, sender.as_fd(), bytes.to_vec(), segment_bytes, Peer { address, local: None });
    }
    let (mut came, mut sends, mut buffer) = (Vec::new(), 0, vec![0; 65_536]);
    loop {
        ring.wait(1, Some(Duration::from_millis(10))).expect("a wait that is too long is no error");
        while let Some(completion) = ring.next_completion() {
            assert_eq!(completion.tag, SENT);
            sends += 1;
        }
        match receiver.recv(&mut buffer) {
            Ok(length) => came.push(buffer[..length].to_vec()),
            Err(_) => return (came, sends),
        }
    }
}

#[test]
fn a_buffer_is_cut_into_datagrams_by_the_kernel() {
    let bytes: Vec<u8> = (0..1_000).map(|i| (i % 251) as u8).collect();
    for is_connected in [false, true] {
        for segment_bytes in [100, 300, 999, 1_000, 5_000] {
            let (came, sends) = sent_as(&bytes, segment_bytes, is_connected);
            assert_eq!(came, bytes.chunks(segment_bytes).map(<[u8]>::to_vec).collect::<Vec<_>>());
            assert_eq!(sends, 1);
        }
    }
}

/// More segments than any kernel takes, and no more than a socket's buffer holds.
#[test]
fn what_is_refused_as_segments_leaves_one_by_one() {
    let bytes: Vec<u8> = (0..748).map(|i| (i % 251) as u8).collect();
    for is_connected in [false, true] {
        let (came, sends) = sent_as(&bytes, 5, is_connected);
        assert_eq!(came, bytes.chunks(5).map(<[u8]>::to_vec).collect::<Vec<_>>());
        assert_eq!(sends, 150);
    }
}

#[test]
fn what_is_held_stays_as_it_came_while_more_arrives_than_the_kernel_had_buffers_for() {
    const DATAGRAMS: usize = 200;
    const HELD: usize = 100;
    let mut ring = ring_with(vec![GroupOptions { buffers: 128, buffer_bytes: 2_048 }]);
    let socket = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("the kernel picks a free port");
    let (receiver, sender) = (socket(), socket());
    sender.connect(receiver.local_addr().expect("a bound socket has an address")).expect("a datagram socket asks nobody");
    for number in 0..DATAGRAMS {
        sender.send(format!("datagram {number}").as_bytes()).expect("its buffer has room for all");
    }
    ring.recvmsg_multi(RECEIVED, receiver.as_fd(), 0);
    let (mut came, mut exhausted, mut held) = (0, 0, VecDeque::new());
    while came < DATAGRAMS {
        ring.wait(1, Some(Duration::from_secs(5))).expect("a wait that is too long is no error");
        let mut is_armed = true;
        while let Some(completion) = ring.next_completion() {
            is_armed = completion.more;
            let Some(buffer) = completion.received else {
                assert_eq!(completion.result, -libc::ENOBUFS, "after {came} datagrams");
                exhausted += 1;
                continue;
            };
            held.push_back((came, buffer));
            came += 1;
            if held.len() > HELD {
                let (number, buffer) = held.pop_front().expect("more than none");
                assert_eq!(ring.datagram(&buffer).expect("whole").1, format!("datagram {number}").as_bytes());
                ring.recycle(buffer);
            }
        }
        if !is_armed {
            ring.recvmsg_multi(RECEIVED, receiver.as_fd(), 0);
        }
    }
    for (number, buffer) in held {
        assert_eq!(ring.datagram(&buffer).expect("whole").1, format!("datagram {number}").as_bytes());
    }
    assert!(exhausted > 0, "the kernel had all buffers at once");
}

#[test]
fn a_long_send_says_that_it_gets_on_and_comes_back_whole() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("the kernel picks a free port");
    let sender = TcpStream::connect(listener.local_addr().expect("it is bound")).expect("it listens");
    let (mut receiver, _) = listener.accept().expect("a client has come");
    for length in [1, 256 << 10, (256 << 10) + 1, 1_000_000] {
        let mut ring = ring();
        ring.adopt(FixedFile(0), sender.as_fd()).expect("the ring has one place for it");
        let bytes: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
        ring.send_in_pieces(SENT, FixedFile(0), bytes.clone());
        let mut came = vec![0; length];
        let (mut pieces, mut back) = (0, None);
        std::thread::scope(|scope| {
            let reading = scope.spawn(|| receiver.read_exact(&mut came));
            while back.is_none() {
                ring.wait(1, Some(Duration::from_secs(5))).expect("a wait that is too long is no error");
                while let Some(completion) = ring.next_completion() {
                    assert_eq!((completion.tag, completion.more), (SENT, completion.sent.is_none()));
                    pieces += 1;
                    back = completion.sent.map(|buffer| (buffer, completion.result));
                }
            }
            reading.join().expect("it does not panic").expect("all comes");
        });
        assert_eq!((pieces, back), (length.div_ceil(256 << 10), Some((bytes.clone(), length as i32))));
        assert!(came == bytes);
    }
}

#[test]
fn a_long_send_to_a_client_that_is_gone_ends_with_an_error() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("the kernel picks a free port");
    let sender = TcpStream::connect(listener.local_addr().expect("it is bound")).expect("it listens");
    let (receiver, _) = listener.accept().expect("a client has come");
    let mut ring = ring();
    ring.adopt(FixedFile(0), sender.as_fd()).expect("the ring has one place for it");
    ring.send_in_pieces(SENT, FixedFile(0), vec![1; 64 << 20]); // more than sockets hold
    ring.hand_over();
    SockRef::from(&receiver).set_linger(Some(Duration::ZERO)).expect("any time will do");
    drop(receiver);
    loop {
        ring.wait(1, Some(Duration::from_secs(5))).expect("a wait that is too long is no error");
        while let Some(completion) = ring.next_completion() {
            if let Some(buffer) = completion.sent {
                assert!(buffer.len() == 64 << 20 && completion.result < 64 << 20, "{}", completion.result);
                return;
            }
        }
    }
}
