//! What the clients of a history do: each asks one thing after another, chosen by chance among all that a guest can do to a key, and
//! notes when it asked, when it was told, and what.

use super::client::{Answer, Caller, Endpoint};
use super::examine::{Histories, Key};
use super::operation::{Action, Operation, Outcome};
use super::value::{bytes_of, value_of};
use crate::harness::{Function, NodeBuilder, RESULTS, Script, eventually};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// A key without a value.
pub const INITIAL: u64 = 0;
/// Keys of each session and the bytes of their values: inline, in a block, and in a longer one.
const REGISTERS: [(&str, usize); 3] = [("word", 8), ("page", 1_024), ("block", 16_384)];
/// The key of the counter functions.
const COUNTER: &str = "n";
/// Bytes of a reply before the values read: the results of the host calls.
const VALUES_AT: usize = 64;
const NOT_FOUND: i32 = -1;
const DEADLOCK: i32 = -4;
const UNREACHABLE: i32 = -5;

/// The functions that the clients call, all of one app.
pub fn functions(builder: NodeBuilder) -> NodeBuilder {
    functions_with(builder, &[])
}

/// The same, each with these lines in its configuration too.
pub fn functions_with(builder: NodeBuilder, lines: &[&str]) -> NodeBuilder {
    let with_lines = |function: Function| lines.iter().fold(function.app("history"), |function, line| function.with(line));
    // Long enough for any machine: a function over its deadline would leave a history with holes.
    let script = |name: &str| with_lines(Script::function(name)).with("deadline_ms = 20000");
    builder
        .function(script("script"))
        .function(script("script-atomic").with("atomic = true"))
        .function(script("script-read-only").with("read_only = true"))
        .function(with_lines(Function::guest("counter-rmw-linear")))
        .function(with_lines(Function::guest("counter-read")).with("read_only = true"))
}

/// Who asks what, and how much.
pub struct Plan {
    /// Client `i` uses endpoint `i` modulo their number.
    pub endpoints: Vec<Endpoint>,
    pub clients: usize,
    pub requests_a_client: usize,
    pub sessions: usize,
    /// How long some sections are held by a guest that computes, in rounds of about a nanosecond; chosen up to this.
    pub hold_rounds_max: i32,
    /// One section in so many is held.
    pub held_one_in: u32,
    /// Other seeds, other choices.
    pub seed: u64,
    /// An endpoint that is killed and does not come back: its clients end with it.
    pub killed: Option<SocketAddr>,
}

impl Plan {
    pub fn requests(&self) -> usize {
        self.clients * self.requests_a_client
    }

    /// Runs all clients to their end. `meanwhile` runs beside them and sees how many requests are done.
    pub fn run(&self, meanwhile: impl FnOnce(&AtomicUsize)) -> Histories {
        let (started, done) = (Instant::now(), AtomicUsize::new(0));
        let mut histories = Histories::default();
        std::thread::scope(|scope| {
            let done = &done;
            let clients: Vec<_> = (0..self.clients).map(|number| scope.spawn(move || self.client(number, started, done))).collect();
            meanwhile(done);
            for client in clients {
                histories.add(client.join().unwrap());
            }
        });
        histories
    }

    fn client(&self, number: usize, started: Instant, done: &AtomicUsize) -> Histories {
        let endpoint = self.endpoints[number % self.endpoints.len()];
        let mut client = RequestMaker {
            plan: self,
            caller: Caller::new(endpoint),
            may_be_lost: false,
            random: StdRng::seed_from_u64(self.seed << 8 | number as u64),
            started,
            last_value: (number as u64 + 1) << 32,
            histories: Histories::default(),
        };
        for _ in 0..self.requests_a_client {
            if client.may_be_lost && self.killed == Some(endpoint.address()) && !endpoint.listens() {
                break;
            }
            if client.may_be_lost {
                eventually("the node listens again", || endpoint.listens());
            }
            client.ask();
            done.fetch_add(1, Ordering::Relaxed);
        }
        client.histories
    }
}

struct RequestMaker<'a> {
    plan: &'a Plan,
    caller: Caller,
    /// The last request was not answered.
    may_be_lost: bool,
    random: StdRng,
    started: Instant,
    /// Every value is written once.
    last_value: u64,
    histories: Histories,
}

/// What a script did to one key: where in the reply its value lies, and which of the results are its own.
struct Section {
    key: usize,
    value: u64,
    read_step: usize,
    write_step: usize,
    value_at: usize,
}

impl RequestMaker<'_> {
    fn ask(&mut self) {
        let session = self.random.random_range(0..self.plan.sessions);
        let key = self.random.random_range(0..REGISTERS.len());
        let mode = self.random.random_range(0..=1);
        if self.random.random_ratio(1, 16) {
            self.caller.hang_up();
        }
        match self.random.random_range(0..100) {
            0..20 => self.read(session, key, mode, "script"),
            20..28 => self.read(session, key, 0, "script-read-only"),
            28..46 => self.write(session, key, mode),
            46..64 => self.swap(session, &[key]),
            64..74 => self.swap(session, &[key, (key + 1 + mode as usize) % REGISTERS.len()]),
            74..78 => self.trap(session, key),
            78..92 => self.count(session, "counter-rmw-linear", Action::Increment),
            _ => self.count(session, "counter-read", Action::ReadWeak),
        }
    }

    fn call(&mut self, session: usize, function: &str, body: &[u8]) -> (u64, u64, Answer) {
        let called_ns = self.started.elapsed().as_nanos() as u64;
        let answer = self.caller.call(function, &format!("session-{session}"), body);
        self.may_be_lost = matches!(answer, Answer::Unknown | Answer::NotRun);
        (called_ns, self.started.elapsed().as_nanos() as u64, answer)
    }

    fn note(&mut self, session: usize, key: &'static str, action: Action, called_ns: u64, outcome: Outcome) {
        self.histories.note(Key { session, key }, Operation { action, called_ns, outcome });
    }

    fn next_value(&mut self) -> u64 {
        self.last_value += 1;
        self.last_value
    }

    fn read(&mut self, session: usize, key: usize, mode: i32, function: &str) {
        let (name, bytes) = REGISTERS[key];
        let script = Script::new().read_to(RESULTS + VALUES_AT as i32, bytes, name, mode);
        let (called_ns, at_ns, answer) = self.call(session, function, &script.output_from(RESULTS, VALUES_AT + bytes).end_with(0));
        let action = if mode == 0 { Action::ReadWeak } else { Action::ReadStrong };
        match answer {
            Answer::Output(output) => match self.value_read(session, key, &output, 0, VALUES_AT) {
                Ok(value) => self.note(session, name, action, called_ns, Outcome::Answered { at_ns, value }),
                Err(code) => assert_eq!(code, UNREACHABLE, "a single read"),
            },
            Answer::Unknown => self.note(session, name, action, called_ns, Outcome::Unknown),
            Answer::NotRun => {}
            Answer::Trapped => panic!("a read trapped"),
        }
    }

    fn write(&mut self, session: usize, key: usize, mode: i32) {
        let ((name, bytes), value) = (REGISTERS[key], self.next_value());
        let script = Script::new().write(name, &bytes_of(value, bytes), mode);
        let (called_ns, at_ns, answer) = self.call(session, "script", &script.end());
        let action = if mode == 0 { Action::WriteWeak(value) } else { Action::WriteStrong(value) };
        match answer {
            Answer::Output(output) => match result(&output, 0) {
                0 => self.note(session, name, action, called_ns, Outcome::Answered { at_ns, value: 0 }),
                code => {
                    assert_eq!(code, UNREACHABLE, "a single write");
                    self.note(session, name, action, called_ns, Outcome::Unknown);
                }
            },
            Answer::Unknown => self.note(session, name, action, called_ns, Outcome::Unknown),
            Answer::NotRun => {}
            Answer::Trapped => panic!("a write trapped"),
        }
    }

    /// Strong reads of all keys, a while, strong writes of all. Two keys in any order: some of these meet and one gets -4.
    fn swap(&mut self, session: usize, keys: &[usize]) {
        let function = if self.random.random_ratio(1, 3) { "script-atomic" } else { "script" };
        let is_held = self.random.random_ratio(1, self.plan.held_one_in);
        let (mut script, mut at) = (Script::new(), VALUES_AT);
        let mut sections = Vec::new();
        for (step, key) in keys.iter().enumerate() {
            let (name, bytes) = REGISTERS[*key];
            script = script.read_to(RESULTS + at as i32, bytes, name, 1);
            sections.push(Section { key: *key, value: self.next_value(), read_step: step, write_step: keys.len() + step, value_at: at });
            at += bytes;
        }
        if is_held {
            script = script.spin(self.random.random_range(1..=self.plan.hold_rounds_max));
        }
        for section in &sections {
            let (name, bytes) = REGISTERS[section.key];
            script = script.write(name, &bytes_of(section.value, bytes), 1);
        }
        let (called_ns, at_ns, answer) = self.call(session, function, &script.output_from(RESULTS, at).end_with(0));
        for section in sections {
            let name = REGISTERS[section.key].0;
            match &answer {
                Answer::Output(output) => {
                    if let Some((action, outcome)) = self.section(session, &section, output, at_ns) {
                        self.note(session, name, action, called_ns, outcome);
                    }
                }
                Answer::Unknown => self.note(session, name, Action::Swap(section.value), called_ns, Outcome::Unknown),
                Answer::NotRun => {}
                Answer::Trapped => panic!("a swap trapped"),
            }
        }
    }

    /// What the results say that became of one key's section; `None` when nothing did.
    fn section(&mut self, session: usize, section: &Section, output: &[u8], at_ns: u64) -> Option<(Action, Outcome)> {
        let read = self.value_read(session, section.key, output, section.read_step, section.value_at);
        let value = section.value;
        match (read, result(output, section.write_step)) {
            (Ok(old), 0) => Some((Action::Swap(value), Outcome::Answered { at_ns, value: old })),
            (Ok(_), UNREACHABLE) => Some((Action::Swap(value), Outcome::Unknown)),
            // The section was refused; the write then was one of its own.
            (Err(DEADLOCK | UNREACHABLE), 0) => Some((Action::WriteStrong(value), Outcome::Answered { at_ns, value: 0 })),
            (Err(DEADLOCK | UNREACHABLE), UNREACHABLE) => Some((Action::WriteStrong(value), Outcome::Unknown)),
            (Err(DEADLOCK | UNREACHABLE), DEADLOCK) => None,
            other => panic!("a section ended with {other:?}"),
        }
    }

    /// A section that ends in a trap: nothing may change, so there is nothing to note. Were its value ever read, nobody wrote it.
    fn trap(&mut self, session: usize, key: usize) {
        let ((name, bytes), value) = (REGISTERS[key], self.next_value());
        let script = Script::new().read_to(RESULTS + VALUES_AT as i32, bytes, name, 1);
        let (function, script) = match self.random.random() {
            true => ("script-atomic", script.write(name, &bytes_of(value, bytes), 1)),
            false => ("script", script),
        };
        let (_, _, answer) = self.call(session, function, &script.trap());
        assert!(!matches!(answer, Answer::Output(_)), "a trap answered {answer:?}");
    }

    fn count(&mut self, session: usize, function: &str, action: Action) {
        let (called_ns, at_ns, answer) = self.call(session, function, b"");
        match answer {
            Answer::Output(output) => {
                let value = std::str::from_utf8(&output).unwrap().parse().unwrap();
                self.note(session, COUNTER, action, called_ns, Outcome::Answered { at_ns, value });
            }
            Answer::Unknown => self.note(session, COUNTER, action, called_ns, Outcome::Unknown),
            Answer::NotRun => {}
            Answer::Trapped => panic!("{function} trapped"),
        }
    }

    /// The value that a read step returned. Errors: its code.
    fn value_read(&mut self, session: usize, key: usize, output: &[u8], step: usize, at: usize) -> Result<u64, i32> {
        let (name, bytes) = REGISTERS[key];
        match result(output, step) {
            NOT_FOUND => Ok(INITIAL),
            length if length < 0 => Err(length),
            length => {
                let value = value_of(&output[at..at + bytes]).filter(|_| length as usize == bytes);
                if value.is_none() {
                    self.histories.note_torn(Key { session, key: name }, length as usize);
                }
                // A torn value is noted already, so what stands for it is never looked at.
                Ok(value.unwrap_or(u64::MAX))
            }
        }
    }
}

fn result(output: &[u8], step: usize) -> i32 {
    i32::from_le_bytes(output[4 * step..][..4].try_into().unwrap())
}
