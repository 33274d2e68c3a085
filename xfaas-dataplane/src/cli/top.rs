//! `xfaas top`: what a running node does, interval by interval, as rates. Called by `cli.rs`.
//!
//! One thread asks, one waits for signals, and this one shows: a node that takes long to answer keeps nobody from ending the view.

mod layout;
mod rates;
mod screen;
#[cfg(test)]
mod tests;

use self::layout::{Line, lines};
use self::rates::{Frame, Sample};
use self::screen::Screen;
use super::args::TopArguments;
use super::{CliError, EXIT_DONE, Terminal};
use crate::control::{AdminClient, ClientError, describe};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGTSTP, SIGWINCH};
use signal_hook::iterator::Signals;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// How long past an interval an answer may take before the view says that it is waited for.
const SILENCE: Duration = Duration::from_secs(2);
/// How often it is looked whether that is so.
const LOOK_EVERY: Duration = Duration::from_secs(1);

enum Event {
    Answer(Result<Sample, ClientError>),
    Signal(i32),
}

pub(super) fn run(client: AdminClient, arguments: &TopArguments, terminal: &mut Terminal<'_>) -> Result<u8, CliError> {
    let address = client.address().to_owned();
    let interval = Duration::from_millis(arguments.interval_ms.into());
    let (sender, events) = sync_channel(1);
    let answers = sender.clone();
    std::thread::Builder::new().name("ask".to_owned()).spawn(move || ask(&client, interval, &answers)).map_err(CliError::Watch)?;
    // Where nobody is there at all the terminal stays as it is.
    let Ok(Event::Answer(first)) = events.recv() else { unreachable!("the thread that asks sends what it got, and no other sends yet") };
    let count = arguments.count.or((!terminal.is_terminal).then_some(1));
    let view = View::new(address, interval, first?);
    if terminal.is_terminal && !terminal.is_json {
        watch_signals(sender).map_err(CliError::Watch)?;
        live(view, &events, count, terminal)
    } else {
        listing(view, &events, count, terminal)
    }
}

/// Asks every `interval` until nobody listens. Answers that come late delay those after them.
fn ask(client: &AdminClient, interval: Duration, events: &SyncSender<Event>) {
    let mut due_at = Instant::now();
    loop {
        let asked_at = Instant::now();
        let answer = client.stats().map(|reply| Sample { reply, asked_at, answered_at: Instant::now() });
        if events.send(Event::Answer(answer)).is_err() {
            return;
        }
        due_at = (due_at + interval).max(Instant::now());
        std::thread::sleep(due_at.saturating_duration_since(Instant::now()));
    }
}

fn watch_signals(events: SyncSender<Event>) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGTSTP, SIGWINCH])?;
    let watch = move || {
        for signal in signals.forever() {
            if events.send(Event::Signal(signal)).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(watch)?;
    Ok(())
}

/// What is known of the node.
struct View {
    address: String,
    interval: Duration,
    last: Sample,
    frame: Frame,
    /// Why there is no newer frame.
    fault: Option<ClientError>,
    /// How many intervals are over, those without an answer too.
    intervals: u32,
}

impl View {
    fn new(address: String, interval: Duration, first: Sample) -> View {
        let frame = Frame::new(&address, None, &first);
        View { address, interval, last: first, frame, fault: None, intervals: 0 }
    }

    fn take(&mut self, answer: Result<Sample, ClientError>) {
        self.intervals += 1;
        match answer {
            Ok(sample) => {
                self.frame = Frame::new(&self.address, Some(&self.last), &sample);
                self.last = sample;
                self.fault = None;
            }
            Err(error) => self.fault = Some(error),
        }
    }

    fn is_over(&self, count: Option<u32>) -> bool {
        count.is_some_and(|count| self.intervals >= count)
    }

    /// Why the frame is an old one, if it is.
    fn alarm(&self) -> Option<String> {
        let silent = self.last.answered_at.elapsed();
        let said = match &self.fault {
            Some(error) => describe(error),
            None if silent > self.interval + SILENCE => "still waiting".to_owned(),
            None => return None,
        };
        Some(format!("NO ANSWER for {} s, trying on; what follows is from before. {said}", silent.as_secs()))
    }

    fn lines(&self, screen: &Screen<'_>) -> Vec<Line> {
        lines(&self.frame, self.alarm().as_deref(), Some(screen.size()))
    }
}

/// Draws in place until a signal or the last interval; a node that goes away is waited for.
fn live(mut view: View, events: &Receiver<Event>, count: Option<u32>, terminal: &mut Terminal<'_>) -> Result<u8, CliError> {
    let mut screen = Screen::enter(terminal.out)?;
    while !view.is_over(count) {
        screen.draw(&view.lines(&screen))?;
        match events.recv_timeout(LOOK_EVERY) {
            Ok(Event::Answer(answer)) => view.take(answer),
            Ok(Event::Signal(SIGTSTP)) => {
                screen.leave()?;
                signal_hook::low_level::emulate_default_handler(SIGTSTP)?;
                screen.resume()?;
            }
            // The next drawing asks for the size.
            Ok(Event::Signal(SIGWINCH)) | Err(RecvTimeoutError::Timeout) => {}
            Ok(Event::Signal(_)) => break,
            Err(RecvTimeoutError::Disconnected) => unreachable!("the thread that asks ends after this one"),
        }
    }
    // The last figures stay readable when the other screen is gone.
    let last = view.lines(&screen);
    screen.leave()?;
    screen.print(&last)?;
    match view.fault {
        Some(error) if count.is_some_and(|count| view.intervals >= count) => Err(error.into()),
        _ => Ok(EXIT_DONE),
    }
}

/// One table or document an interval. Where it goes to a terminal a node that goes away is waited for, elsewhere it ends the command.
fn listing(mut view: View, events: &Receiver<Event>, count: Option<u32>, terminal: &mut Terminal<'_>) -> Result<u8, CliError> {
    while !view.is_over(count) {
        let Ok(Event::Answer(answer)) = events.recv() else {
            unreachable!("the thread that asks is the only sender, and ends after this one")
        };
        let was_away = view.fault.is_some();
        view.take(answer);
        match &view.fault {
            None if terminal.is_json => {
                let document = serde_json::to_string(&view.frame).expect("maps with text keys become JSON");
                writeln!(terminal.out, "{document}")?;
            }
            None => {
                let blank = if view.intervals > 1 { "\n" } else { "" };
                let text: String = lines(&view.frame, None, None).iter().map(|line| format!("{}\n", line.text)).collect();
                terminal.out.write_all(format!("{blank}{text}").as_bytes())?;
            }
            Some(_) if !terminal.is_terminal || view.is_over(count) => break,
            Some(_) if was_away => {}
            Some(error) => terminal.complain(&format!("{}; trying on", describe(error))),
        }
        terminal.out.flush()?;
    }
    view.fault.map_or(Ok(EXIT_DONE), |error| Err(error.into()))
}
