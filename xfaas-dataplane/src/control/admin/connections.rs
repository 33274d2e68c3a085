//! Connections of the admin API, bounded in number and in how long they may say nothing: each takes a descriptor that a log's segment, a checkpoint or
//! a deployment may need.

use axum::serve::Listener;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};

/// Connections at once; more wait until one of these ends.
const CONNECTIONS_MAX: usize = 128;
/// Longer than any request takes: nothing is heard of a client that waits for its answer.
const SILENCE_MAX: Duration = Duration::from_secs(330);
/// A client that said something so shortly before the end may be sending still, a body that is refused: closing at once would reset the connection and
/// could take the answer with it. What it sends is dropped until it is silent for so long, and for `LINGER_MAX` at most.
const LINGER_SILENCE: Duration = Duration::from_millis(200);
const LINGER_MAX: Duration = Duration::from_secs(2);
/// Bytes dropped at a time.
const DROPPED_BYTES: usize = 16 << 10;

pub(super) struct Bounded {
    listener: TcpListener,
    places: Arc<Semaphore>,
    silence_max: Duration,
}

impl Bounded {
    pub fn new(listener: TcpListener) -> Bounded {
        Bounded { listener, places: Arc::new(Semaphore::new(CONNECTIONS_MAX)), silence_max: SILENCE_MAX }
    }
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let place = Arc::clone(&self.places).acquire_owned().await.expect("the semaphore is never closed");
        let (stream, peer) = Listener::accept(&mut self.listener).await;
        let (silence, silence_max) = (Box::pin(sleep(self.silence_max)), self.silence_max);
        (Connection { stream, silence, silence_max, heard: Instant::now(), lingers_until: None, _place: place }, peer)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A stream that fails once nothing was read or written for too long.
pub(super) struct Connection {
    stream: TcpStream,
    silence: Pin<Box<Sleep>>,
    silence_max: Duration,
    /// When the client said something last.
    heard: Instant,
    /// Our side is closed.
    lingers_until: Option<Instant>,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    /// Begins the time anew if something happened. Errors: it is over.
    fn watch<T>(&mut self, done: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if done.is_ready() {
            self.silence.as_mut().reset(Instant::now() + self.silence_max);
            return done;
        }
        self.silence.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Drops what still comes until the client closes, is silent, or it is `until`.
    fn linger(&mut self, until: Instant, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut dropped = [0; DROPPED_BYTES];
            let mut dropped = ReadBuf::new(&mut dropped);
            match Pin::new(&mut self.stream).poll_read(context, &mut dropped) {
                Poll::Pending => return self.silence.as_mut().poll(context).map(Ok),
                Poll::Ready(Ok(())) if !dropped.filled().is_empty() && Instant::now() < until => {
                    self.silence.as_mut().reset(until.min(Instant::now() + LINGER_SILENCE));
                }
                Poll::Ready(_) => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let done = Pin::new(&mut self.stream).poll_read(context, buf);
        if buf.filled().len() > before {
            self.heard = Instant::now();
        }
        self.watch(done, context)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(done, context)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(until) = self.lingers_until {
            return self.linger(until, context);
        }
        ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
        let now = Instant::now();
        if now > self.heard + LINGER_SILENCE {
            return Poll::Ready(Ok(()));
        }
        let until = now + LINGER_MAX;
        self.lingers_until = Some(until);
        self.silence.as_mut().reset(now + LINGER_SILENCE);
        self.linger(until, context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::TcpStream as Client;

    #[test]
    fn silent_connections_end_and_those_over_the_limit_wait_for_that() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build().unwrap();
        let (address, listening) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                address.send(listener.local_addr().unwrap()).unwrap();
                let places = Arc::new(Semaphore::new(1));
                let bounded = Bounded { listener, places, silence_max: Duration::from_millis(100) };
                let app = axum::Router::new().route("/", axum::routing::get(|| async { "here" }));
                let serving = axum::serve(bounded, app).into_future();
                tokio::time::timeout(Duration::from_secs(2), serving).await.ok();
            });
        });
        let address = listening.recv().unwrap();
        let mut silent = Client::connect(address).unwrap();
        let mut second = Client::connect(address).unwrap();
        std::io::Write::write_all(&mut second, b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let (mut nothing, mut reply) = (Vec::new(), String::new());
        silent.read_to_end(&mut nothing).unwrap();
        second.read_to_string(&mut reply).unwrap();
        assert!(nothing.is_empty() && reply.ends_with("here"), "{reply}");
        drop((silent, second));
        thread.join().unwrap();
    }
}
