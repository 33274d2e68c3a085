//! A wire that can be made bad: each end's device leads into a namespace of its own, and threads carry the frames from one to the other, late or not at
//! all. `tc netem` would do the same, but kernels are built without it.

use std::fs::File;
use std::io::Read;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::{SockAddr, Socket};

use super::wire::listen;
use super::{CLIENT_MAC, Lab, NAMESPACES, PLAIN_V4, SERVER_MAC, until};

/// Frames on their way in one direction; more are lost, as on any wire.
const FRAMES_MAX: usize = 4_096;
const FRAME_BYTES_MAX: usize = 65_536;
/// How often a thread looks whether it is to end.
const LOOK: Duration = Duration::from_millis(20);

/// How bad the wire is.
#[derive(Default)]
struct Badness {
    delay_us: AtomicU64,
    loss_per_mille: AtomicU64,
    stop: AtomicBool,
}

pub struct Relay {
    badness: Arc<Badness>,
    threads: Vec<JoinHandle<()>>,
}

/// Where frames of one end come out.
struct End {
    socket: Arc<Socket>,
    device: SockAddr,
}

impl Relay {
    /// Carries frames between the devices in these two namespaces, the server's end first.
    pub fn start(lab: &Lab, namespaces: [&str; 2]) -> Relay {
        let [server, client] = namespaces.map(|namespace| Arc::new(listen_in(namespace)));
        // The kernel tells a device's address with the first frame that is seen there: each end asks for the other's.
        let speak = |to| drop(UdpSocket::bind(("0.0.0.0", 0)).unwrap().send_to(b"hello", to));
        let server = lab.on_server(|| End { device: device_of(&server, SERVER_MAC, || speak((PLAIN_V4.client, 9))), socket: server });
        let client = lab.on_client(|| End { device: device_of(&client, CLIENT_MAC, || speak((PLAIN_V4.server, 9))), socket: client });
        let badness = Arc::new(Badness::default());
        let mut threads = Vec::new();
        for (from, source, to, seed) in [(&server, SERVER_MAC, &client, 1), (&client, CLIENT_MAC, &server, 2)] {
            let (sender, receiver) = sync_channel(FRAMES_MAX);
            let (socket, here) = (Arc::clone(&from.socket), Arc::clone(&badness));
            threads.push(std::thread::spawn(move || take_frames(&socket, source, seed, &here, &sender)));
            let (socket, device) = (Arc::clone(&to.socket), to.device.clone());
            threads.push(std::thread::spawn(move || give_frames(&socket, &device, &receiver)));
        }
        Relay { badness, threads }
    }

    /// From now on each frame comes so much later, and so many of a thousand never.
    pub fn disturb(&self, delay: Duration, loss_per_mille: u64) {
        self.badness.delay_us.store(delay.as_micros() as u64, Ordering::Relaxed);
        self.badness.loss_per_mille.store(loss_per_mille, Ordering::Relaxed);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.badness.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A second panic while a test fails would hide the first.
            drop(thread.join());
        }
    }
}

fn listen_in(namespace: &str) -> Socket {
    let path = Path::new(NAMESPACES).join(namespace);
    let make = move || {
        move_into_link_name_space(File::open(path).unwrap().as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        let socket = listen();
        socket.set_read_timeout(Some(LOOK)).unwrap();
        socket
    };
    std::thread::spawn(make).join().unwrap()
}

fn device_of(socket: &Socket, source: [u8; 6], speak: impl Fn()) -> SockAddr {
    let mut device = None;
    until("a frame is seen", || {
        speak();
        let seen = socket.peek_sender().ok();
        device = seen.filter(|_| receive(socket, source).is_some());
        device.is_some()
    });
    device.expect("seen just above")
}

/// The next frame, if it comes from `source`: what this namespace's own kernel says is not meant.
fn receive(mut socket: &Socket, source: [u8; 6]) -> Option<Vec<u8>> {
    let mut frame = vec![0; FRAME_BYTES_MAX];
    let bytes = socket.read(&mut frame).ok()?;
    frame.truncate(bytes);
    (frame.get(6..12) == Some(&source)).then_some(frame)
}

fn take_frames(socket: &Socket, source: [u8; 6], seed: u64, badness: &Badness, sender: &SyncSender<(Instant, Vec<u8>)>) {
    let mut random = StdRng::seed_from_u64(seed);
    while !badness.stop.load(Ordering::Relaxed) {
        let Some(frame) = receive(socket, source) else { continue };
        if random.random_range(0..1_000) >= badness.loss_per_mille.load(Ordering::Relaxed) {
            let due = Instant::now() + Duration::from_micros(badness.delay_us.load(Ordering::Relaxed));
            drop(sender.try_send((due, frame))); // a full wire loses frames
        }
    }
}

fn give_frames(socket: &Socket, device: &SockAddr, receiver: &Receiver<(Instant, Vec<u8>)>) {
    while let Ok((due, frame)) = receiver.recv() {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        // A device that is down takes none: lost, as on any wire.
        drop(socket.send_to(&frame, device));
    }
}
