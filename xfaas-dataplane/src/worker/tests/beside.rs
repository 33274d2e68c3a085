//! Calls that run beside their session's owner: weak reads come from the neighbour's region, and what only the owner can do ends the run.

use super::script::{self, BUFFERS, Results, Script};
use super::{Guest, Progress, Shard};
use crate::worker::StateAt;
use allocation_counter::measure;
use xfaas_common::guest_abi::{BAD_ARGUMENT, NOT_FOUND, OK, OVER_LIMIT};

const OWNER: u16 = 6;

/// The session's owner, with value `v` at key `k`; a neighbour that reads its region; and a read-only function's worker there.
fn pair() -> (Shard, Shard, Guest) {
    let (mut owner, mut neighbour) = (Shard::new(), Shard::new());
    let mut script = Script::new();
    let (key, value) = (script.key("k"), script.data(b"owner's"));
    assert_eq!(script::result(&mut owner, script.write(key, value, 7, 0)), OK);
    let mut script = Script::new();
    let (key, value) = (script.key("k"), script.data(b"own"));
    assert_eq!(script::result(&mut neighbour, script.write(key, value, 3, 0)), OK);
    let reader = owner.state().region(super::APP).unwrap().reader();
    neighbour.state().readers.set(super::APP, OWNER, reader);
    let mut guest = Guest::fork(script::program(), 1);
    guest.manifest.read_only = true;
    (owner, neighbour, guest)
}

fn invoke(shard: &mut Shard, guest: &mut Guest, body: &[u8]) -> Progress {
    guest.begin(body);
    guest.call().state_at = StateAt::Shard(OWNER);
    shard.run(guest)
}

fn read_k(mode: i32) -> Script {
    let mut script = Script::new();
    let key = script.key("k");
    script.read(key, BUFFERS, 16, mode)
}

#[test]
fn a_weak_read_brings_what_the_owner_has_now() {
    let (mut owner, mut neighbour, mut guest) = pair();
    assert_eq!(invoke(&mut neighbour, &mut guest, &read_k(0).end(0)), Progress::Finished(0));
    let results = Results::of(&mut guest);
    assert_eq!((results.first(), results.buffer(BUFFERS, 7)), ([7], &b"owner's"[..]));

    let mut script = Script::new();
    let (key, value, long) = (script.key("k"), script.data(b"newer"), script.data(&[7; 100]));
    let key_other = script.key("other");
    script::run(&mut owner, script.write(key, value, 5, 1).write(key_other, long, 100, 0));
    let mut script = Script::new();
    let (key, other, missing) = (script.key("k"), script.key("other"), script.key("missing"));
    let script = script.read(key, BUFFERS, 16, 0).read(other, BUFFERS + 16, 4, 0).read(missing, BUFFERS, 0, 0).read(key, BUFFERS, -1, 0);
    assert_eq!(invoke(&mut neighbour, &mut guest, &script.end(0)), Progress::Finished(0));
    let results = Results::of(&mut guest);
    assert_eq!(results.first(), [5, 100, NOT_FOUND, BAD_ARGUMENT]);
    assert_eq!((results.buffer(BUFFERS, 5), results.buffer(BUFFERS + 16, 5)), (&b"newer"[..], &[7, 7, 7, 7, 0][..]));
}

#[test]
fn arguments_and_writes_are_refused_as_on_the_owner() {
    let (_owner, mut neighbour, mut guest) = pair();
    let mut script = Script::new();
    let (key, empty, long) = (script.key("k"), script.key(""), script.key(&"x".repeat(256)));
    let script = script.write(key, BUFFERS, 1, 0).write(key, BUFFERS, 1, 1).read(empty, BUFFERS, 1, 0).read(long, BUFFERS, 1, 1);
    let script = script.read(key, BUFFERS, 1, 2).read(key, -1, 1, 1);
    assert_eq!(invoke(&mut neighbour, &mut guest, &script.end(0)), Progress::Finished(0));
    let refused = [BAD_ARGUMENT, BAD_ARGUMENT, BAD_ARGUMENT, OVER_LIMIT, BAD_ARGUMENT, BAD_ARGUMENT];
    assert_eq!(Results::of(&mut guest).first(), refused);
}

#[test]
fn a_strong_read_ends_the_run_and_takes_no_lock() {
    let (_owner, mut neighbour, mut guest) = pair();
    let progress = invoke(&mut neighbour, &mut guest, &read_k(0).set_output(BUFFERS, 5).read(BUFFERS, BUFFERS, 1, 1).end(0));
    assert_eq!(progress, Progress::NeedsOwner { for_lock: true });
    assert_eq!(neighbour.state().locks.locks_held(), 0);
    // A fresh worker of the neighbour goes on with other calls.
    let mut other = Guest::fork(script::program(), 2);
    assert_eq!(invoke(&mut neighbour, &mut other, &read_k(0).end(0)), Progress::Finished(0));
}

#[test]
fn a_snapshot_is_of_the_owners_keys() {
    let (_owner, mut neighbour, mut guest) = pair();
    let mut script = Script::new();
    let keys = script.data(b"none\0k\0");
    let body = script.snapshot(keys, 7, BUFFERS, 16).end(0);
    assert_eq!(invoke(&mut neighbour, &mut guest, &body), Progress::Finished(0));
    let results = Results::of(&mut guest);
    assert_eq!((results.first(), results.buffer(BUFFERS, 15)), ([15], &b"\xFF\xFF\xFF\xFF\x07\0\0\0owner's"[..]));
    neighbour.state().readers.clear_app(super::APP);
    assert_eq!(invoke(&mut neighbour, &mut guest, &body), Progress::NeedsOwner { for_lock: false });
}

#[test]
fn a_missing_reader_ends_the_run() {
    let (_owner, mut neighbour, mut guest) = pair();
    neighbour.state().readers.clear_app(super::APP);
    assert_eq!(invoke(&mut neighbour, &mut guest, &read_k(0).end(0)), Progress::NeedsOwner { for_lock: false });
}

#[test]
fn a_call_that_is_given_up_keeps_its_request_and_the_time_it_took() {
    let (mut owner, mut neighbour, mut guest) = pair();
    let body = read_k(0).set_output(BUFFERS, 5).read(BUFFERS, BUFFERS, 1, 1).end(0);
    assert_eq!(invoke(&mut neighbour, &mut guest, &body), Progress::NeedsOwner { for_lock: true });
    assert_eq!(guest.output(), b"owner");
    let (started_ns, deadline_ns) = (guest.call().started_ns, guest.call().deadline_ns);
    let call = guest.call();
    call.waited_ns = 3;
    call.give_up(started_ns + 10);
    assert_eq!((call.spent_ns, call.waited_ns, call.output.len()), (7, 0, 0));
    assert_eq!(call.request.body(), body);
    call.started_ns = 1_000;
    assert!(!call.is_over_deadline(1_000 + deadline_ns - 7) && call.is_over_deadline(1_001 + deadline_ns - 7));

    call.state_at = StateAt::Here;
    guest.worker = Some(super::Worker::fork(script::program()).unwrap());
    guest.worker.as_mut().unwrap().start();
    guest.call().started_ns = super::monotonic_ns();
    assert_eq!(owner.run(&mut guest), Progress::Finished(0));
    assert_eq!(Results::of(&mut guest).first(), [7, OK, NOT_FOUND]);
}

#[test]
fn a_warm_call_beside_the_owner_allocates_nothing() {
    let (_owner, mut neighbour, mut guest) = pair();
    let body = read_k(0).end(0);
    for _ in 0..3 {
        assert_eq!(invoke(&mut neighbour, &mut guest, &body), Progress::Finished(0));
    }
    let counted = measure(|| {
        for _ in 0..100 {
            assert_eq!(invoke(&mut neighbour, &mut guest, &body), Progress::Finished(0));
        }
    });
    assert_eq!(counted.count_total, 0);
}
