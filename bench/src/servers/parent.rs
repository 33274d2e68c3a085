//! Processes that end with us, also where we are killed and can end nothing. The kernel's signal for that (prctl(2), `PR_SET_PDEATHSIG`) comes when the
//! thread ends that made the process.

use super::process::{ServerError, start_hint};
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, SyncSender, channel, sync_channel};

/// Sets the signal and becomes the program. Of util-linux, as `taskset` and `unshare` are.
const WRAPPER: &str = "setpriv";

/// What the kernel sends a process when the thread that started it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DeathSignal {
    /// Lets it end its own children, as nginx must.
    Term,
    /// For what does not listen to SIGTERM, as `unshare` while its child runs.
    Kill,
}

/// The same program, arguments and environment, as a process that ends with the thread that spawns it. Its process ID is the program's.
/// What `command` says of input and output is not taken over. Errors: there is no such program.
pub(super) fn dying_with_us(command: &Command, signal: DeathSignal) -> Result<Command, ServerError> {
    let program = command.get_program();
    // The wrapper would start, and what it says of a program that is not there is only in a log.
    if find(program).is_none() {
        let source = io::Error::from(io::ErrorKind::NotFound);
        return Err(ServerError::Start { program: program.to_string_lossy().into_owned(), hint: start_hint(&source), source });
    }
    let mut copy = if find(OsStr::new(WRAPPER)).is_some() {
        let name = match signal {
            DeathSignal::Term => "TERM",
            DeathSignal::Kill => "KILL",
        };
        let mut wrapped = Command::new(WRAPPER);
        wrapped.args(["--pdeathsig", name, "--"]).arg(program);
        wrapped
    } else {
        Command::new(program)
    };
    copy.args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => copy.env(name, value),
            None => copy.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        copy.current_dir(folder);
    }
    Ok(copy)
}

/// As a shell finds a program: by its path, or in the folders of `PATH`.
fn find(program: &OsStr) -> Option<PathBuf> {
    if program.as_encoded_bytes().contains(&b'/') {
        return Path::new(program).is_file().then(|| program.into());
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders).map(|folder| folder.join(program)).find(|path| path.is_file())
}

type Spawned = io::Result<Child>;

/// Spawns `command` from a thread that lasts as long as we do: for what outlives the thread that asks for it. It begins where that thread may
/// run, or another that asked before.
pub(super) fn spawn_lasting(command: &mut Command) -> Spawned {
    static SPAWNER: OnceLock<Sender<(Command, SyncSender<Spawned>)>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (asks, asked) = channel::<(Command, SyncSender<Spawned>)>();
        std::thread::spawn(move || {
            for (mut command, answer) in asked {
                // Who asked waits for it.
                answer.send(command.spawn()).unwrap_or_default();
            }
        });
        asks
    });
    let gone = || io::Error::other("the thread that starts processes has ended");
    let (answer, answered) = sync_channel(1);
    let command = std::mem::replace(command, Command::new(""));
    spawner.send((command, answer)).map_err(|_| gone())?;
    answered.recv().map_err(|_| gone())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Stdio;

    /// Spawned by a thread that has ended since, but not before the program ran.
    fn from_a_thread_that_ends(signal: DeathSignal, spawn: fn(&mut Command) -> Spawned) -> Child {
        let start = move || {
            let mut command = Command::new("sh");
            command.args(["-c", "test \"$WORD\" = said && echo up && exec sleep 60"]).env("WORD", "said");
            let mut child = spawn(dying_with_us(&command, signal).unwrap().stdout(Stdio::piped())).unwrap();
            let mut said = [0; 3];
            std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut said).unwrap();
            assert_eq!(&said, b"up\n");
            child
        };
        std::thread::spawn(start).join().unwrap()
    }

    #[test]
    fn a_process_ends_with_the_thread_that_started_it() {
        for (signal, number) in [(DeathSignal::Term, 15), (DeathSignal::Kill, 9)] {
            let mut child = from_a_thread_that_ends(signal, Command::spawn);
            assert_eq!(child.wait().unwrap().signal(), Some(number));
        }
    }

    #[test]
    fn one_of_the_lasting_thread_stays() {
        let mut child = from_a_thread_that_ends(DeathSignal::Kill, spawn_lasting);
        // The signal of the other would have come with the thread's end.
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert_eq!(child.try_wait().unwrap(), None);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        for program in ["no-such-program", "/nonexistent/program"] {
            let error = dying_with_us(&Command::new(program), DeathSignal::Term).unwrap_err();
            assert!(error.is_missing() && error.to_string().contains(program), "{error}");
        }
    }
}
