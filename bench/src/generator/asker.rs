//! One connection with plain blocking sockets on which counters are read, and how long that may take. Ends soon after an interrupt.

use super::spec::GeneratorError;
use crate::load::{FetchError, Interrupt, LoadError};
use std::io::{Error, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How often it looks at the interrupt while it waits.
pub(super) const STEP: Duration = Duration::from_millis(100);
/// Steps without a byte after which there is no answer. Not a time: a process that was stopped and goes on has waited for nothing.
const STEPS_MAX: u32 = 100;
const TIMEOUT: Duration = Duration::from_secs(10);

/// How long reading goes on.
pub(super) struct Patience<'a> {
    interrupt: &'a Interrupt,
    /// After the interrupt.
    grace: Duration,
    interrupted: OnceLock<Instant>,
}

impl<'a> Patience<'a> {
    /// To the end, or for `grace` after `interrupt` is seen.
    pub(super) fn new(interrupt: &'a Interrupt, grace: Duration) -> Patience<'a> {
        Patience { interrupt, grace, interrupted: OnceLock::new() }
    }

    /// Errors: `LoadError::Interrupted` when it is over.
    pub(super) fn check(&self) -> Result<(), GeneratorError> {
        let is_over = self.interrupt.is_set() && self.interrupted.get_or_init(Instant::now).elapsed() >= self.grace;
        if is_over { Err(LoadError::Interrupted.into()) } else { Ok(()) }
    }

    /// Errors: it is over before `time` is.
    pub(super) fn sleep(&self, time: Duration) -> Result<(), GeneratorError> {
        let until = Instant::now() + time;
        loop {
            self.check()?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(STEP));
        }
    }
}

/// Whole requests in, replies out, in order.
pub(super) struct Asker<'a> {
    target: SocketAddr,
    patience: &'a Patience<'a>,
    stream: TcpStream,
    received: Vec<u8>,
}

impl<'a> Asker<'a> {
    /// Every step waits at most 10 s.
    pub(super) fn connect(target: SocketAddr, patience: &'a Patience<'a>) -> Result<Asker<'a>, GeneratorError> {
        let io = |operation| move |source| FetchError::Io { operation, target, source };
        let stream = TcpStream::connect_timeout(&target, TIMEOUT).map_err(io("connect to"))?;
        stream.set_nodelay(true).map_err(io("set TCP_NODELAY on a connection to"))?;
        stream.set_read_timeout(Some(STEP)).map_err(io("set a timeout on a connection to"))?;
        stream.set_write_timeout(Some(TIMEOUT)).map_err(io("set a timeout on a connection to"))?;
        Ok(Asker { target, patience, stream, received: Vec::with_capacity(64 << 10) })
    }

    /// Sends one or more whole requests.
    pub(super) fn send(&mut self, requests: &[u8]) -> Result<(), GeneratorError> {
        self.patience.check()?;
        let target = self.target;
        Ok(self.stream.write_all(requests).map_err(|source| FetchError::Io { operation: "write to", target, source })?)
    }

    /// What `parse` makes of the next reply. `parse` is given the bytes so far and answers also how many of them the reply has, `None` when more must
    /// come. Output: `None` when the server has closed the connection.
    pub(super) fn receive<T>(
        &mut self,
        parse: impl Fn(&[u8]) -> Result<Option<(T, usize)>, GeneratorError>,
    ) -> Result<Option<T>, GeneratorError> {
        let (mut chunk, mut steps) = ([0; 16 << 10], 0);
        loop {
            if let Some((reply, bytes)) = parse(&self.received)? {
                self.received.drain(..bytes);
                return Ok(Some(reply));
            }
            match self.stream.read(&mut chunk) {
                Ok(0) => return Ok(None),
                Ok(bytes) => self.received.extend_from_slice(&chunk[..bytes]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => self.patience.check()?,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    self.patience.check()?;
                    steps += 1;
                    if steps == STEPS_MAX {
                        return Err(no_answer(self.target, STEP * STEPS_MAX));
                    }
                }
                Err(source) => return Err(FetchError::Io { operation: "read from", target: self.target, source }.into()),
            }
        }
    }

    /// The server closed the connection before a reply.
    pub(super) fn cut(&self) -> GeneratorError {
        FetchError::Cut { target: self.target, bytes: self.received.len() }.into()
    }
}

/// None came for `time`.
pub(super) fn no_answer(target: SocketAddr, time: Duration) -> GeneratorError {
    let source = Error::new(ErrorKind::TimedOut, format!("no answer in {} s", time.as_secs()));
    FetchError::Io { operation: "get an answer from", target, source }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_ends_so_long_after_the_interrupt() {
        let interrupt = Interrupt::default();
        let (none, some) = (Patience::new(&interrupt, Duration::ZERO), Patience::new(&interrupt, Duration::from_millis(300)));
        assert!(none.check().is_ok() && some.sleep(Duration::from_millis(1)).is_ok());
        interrupt.set();
        let interrupted = Instant::now();
        assert!(none.check().is_err() && some.check().is_ok());
        assert!(matches!(some.sleep(Duration::from_secs(60)), Err(GeneratorError::Load(LoadError::Interrupted))));
        assert!((Duration::from_millis(299)..Duration::from_secs(30)).contains(&interrupted.elapsed()));
    }
}
