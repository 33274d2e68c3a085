//! The server process of a demo: started so that it dies with us, watched until it is ready, and ended.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::config::ADMIN_ADDRESS;
use super::lab::Lab;
use crate::paths;
use crate::process::{say, shown};

/// How long the server may take to compile the samples the first time and be ready.
const READY_WAIT_S: u64 = 60;
/// How long it may take to finish what runs once told to end.
const END_WAIT: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(50);
/// Of the admin port's answer, read whole so that the server is not cut off while it writes.
const ANSWER_BYTES_MAX: u64 = 4_096;
/// One question to the admin port.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

/// The wish to end: Ctrl-C, SIGTERM or a closed terminal.
pub struct Stop(Receiver<()>);

impl Stop {
    /// From now on those signals no longer end this process by themselves.
    pub fn listen() -> Result<Self> {
        let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP]).context("listen for signals")?;
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            for _ in signals.forever() {
                if sender.send(()).is_err() {
                    return;
                }
            }
        });
        Ok(Stop(receiver))
    }

    /// Waits a moment. Output: whether the end is wished.
    pub fn wait(&self, moment: Duration) -> bool {
        !matches!(self.0.recv_timeout(moment), Err(RecvTimeoutError::Timeout))
    }
}

/// The running server. Killed when dropped, if `stop` was not called.
pub struct Server {
    child: Child,
}

impl Server {
    /// Starts `xfaas run`, in the lab's server namespace if there is a lab. Its output is ours.
    pub fn start(binary: &Path, config: &Path, lab: Option<&Lab>) -> Result<Self> {
        let mut command = dying_with_us(lab.map_or_else(|| Command::new(binary), |lab| lab.in_server(binary)));
        command.args(["run", "--config"]).arg(config);
        // A group of its own: Ctrl-C reaches us alone, and we end the server in order.
        command.process_group(0);
        let child = command.spawn().with_context(|| format!("start `{}`", shown(&command)))?;
        Ok(Server { child })
    }

    /// Output: false if the end is wished before. Errors: the server ended, or is not ready in time.
    pub fn wait_until_ready(&mut self, lab: Option<&Lab>, stop: &Stop) -> Result<bool> {
        let ourselves = std::env::current_exe().context("find our own program")?;
        let mut command = lab.map_or_else(|| Command::new(&ourselves), |lab| lab.in_server(&ourselves));
        command.args(["await-ready", "--address", ADMIN_ADDRESS, "--timeout-s", &READY_WAIT_S.to_string()]);
        let mut waiter = command.spawn().context("start the wait for readiness")?;
        let outcome = self.watch(&mut waiter, stop);
        if !matches!(outcome, Ok(true)) {
            // Its answer is no longer wanted; it may have ended by itself.
            waiter.kill().ok();
            waiter.wait().context("wait for the readiness check to end")?;
        }
        outcome
    }

    fn watch(&mut self, waiter: &mut Child, stop: &Stop) -> Result<bool> {
        loop {
            if let Some(status) = self.ended()? {
                bail!("xfaas ended with {status} before it was ready; what it said is above");
            }
            if let Some(status) = waiter.try_wait().context("look at the readiness check")? {
                return if status.success() { Ok(true) } else { bail!("xfaas was not ready within {READY_WAIT_S} s") };
            }
            if stop.wait(POLL) {
                return Ok(false);
            }
        }
    }

    /// Returns when the end is wished. Errors: the server ended by itself.
    pub fn wait_until_stopped(&mut self, stop: &Stop) -> Result<()> {
        loop {
            if stop.wait(POLL) {
                return Ok(());
            }
            if let Some(status) = self.ended()? {
                bail!("xfaas ended by itself with {status}");
            }
        }
    }

    /// Lets the server finish what runs, for a bounded time. Errors: it had to be killed, or failed.
    pub fn stop(mut self) -> Result<()> {
        self.signal(Signal::TERM)?;
        let started = Instant::now();
        while started.elapsed() < END_WAIT {
            if let Some(status) = self.ended()? {
                return if status.success() { Ok(()) } else { bail!("xfaas ended with {status} when told to stop") };
            }
            std::thread::sleep(POLL);
        }
        bail!("xfaas did not end within {} s of SIGTERM and was killed", END_WAIT.as_secs())
    }

    fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().context("look at the server")
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let process = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("the server has no process number")?;
        kill_process(process, signal).context("signal the server")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        if self.child.kill().and_then(|()| self.child.wait()).is_err() {
            say("the server could not be killed");
        }
    }
}

/// The same command, ended by the kernel with SIGTERM when we die without a word. `ip netns exec` keeps that, as it becomes the program.
fn dying_with_us(command: Command) -> Command {
    if paths::find_program("setpriv").is_none() {
        return command;
    }
    let mut wrapped = Command::new("setpriv");
    wrapped.args(["--pdeathsig", "TERM"]).arg(command.get_program()).args(command.get_args());
    wrapped
}

/// Waits until the admin port answers that xfaas is ready.
#[derive(clap::Args)]
pub struct AwaitReadyArguments {
    #[arg(long)]
    address: SocketAddr,
    #[arg(long)]
    timeout_s: u64,
}

/// Exit code 0: ready; 1: not in time.
pub fn await_ready(arguments: &AwaitReadyArguments) -> Result<ExitCode> {
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(arguments.timeout_s) {
        if is_ready(arguments.address) {
            return Ok(ExitCode::SUCCESS);
        }
        std::thread::sleep(POLL);
    }
    Ok(ExitCode::FAILURE)
}

/// Whether `GET /readyz` is answered with 200. Any error is a no: the server may not listen yet.
fn is_ready(address: SocketAddr) -> bool {
    let ask = || -> std::io::Result<Vec<u8>> {
        let mut connection = TcpStream::connect_timeout(&address, ASK_TIMEOUT)?;
        connection.set_read_timeout(Some(ASK_TIMEOUT))?;
        write!(connection, "GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        connection.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with(b"HTTP/1.1 200 ") || answer.starts_with(b"HTTP/1.0 200 "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;

    fn answering(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        std::thread::spawn(move || {
            let (mut connection, _) = listener.accept().expect("a connection");
            let question = BufReader::new(connection.try_clone().expect("a second handle"));
            // To its empty line: closing with unread bytes would reset the connection under the answer.
            assert!(question.lines().map_while(Result::ok).any(|line| line.is_empty()));
            connection.write_all(answer.as_bytes()).expect("the answer");
        });
        address
    }

    #[test]
    fn readiness_is_a_200_and_nothing_else() {
        assert!(is_ready(answering("HTTP/1.1 200 OK\r\n\r\n")));
        assert!(!is_ready(answering("HTTP/1.1 503 Service Unavailable\r\n\r\n")));
        assert!(!is_ready(answering("")));
    }

    #[test]
    fn a_server_that_fails_to_start_is_an_error_and_not_a_wait() {
        let stop = Stop(channel().1);
        let mut server = Server { child: Command::new("false").spawn().expect("false runs") };
        server.child.wait().expect("it ends");
        let mut waiter = Command::new("sleep").arg("30").spawn().expect("sleep runs");
        assert!(server.watch(&mut waiter, &stop).expect_err("it ended").to_string().contains("ended"));
        waiter.kill().expect("killed");
        waiter.wait().expect("it ends");
    }

    #[test]
    fn a_command_dies_with_us_where_the_system_can_do_that() {
        let wrapped = dying_with_us(Command::new("xfaas"));
        let expected = if paths::find_program("setpriv").is_some() { "setpriv --pdeathsig TERM xfaas" } else { "xfaas" };
        assert_eq!(shown(&wrapped), expected);
    }
}
