//! `snapshot_read`, CONTRACT.md section 3: its arguments, its answer, and an invocation's own writes in it.

use super::script::{self, BUFFERS, MEMORY, Results, Script, result, run};
use super::{Guest, Progress, Shard};
use xfaas_common::guest_abi::{BAD_ARGUMENT, OK, OVER_LIMIT};

/// The result of a snapshot of `keys`, NULs included, into a buffer of 16 bytes.
fn of_keys(shard: &mut Shard, keys: &[u8]) -> i32 {
    let mut script = Script::new();
    let at = script.data(keys);
    result(shard, script.snapshot(at, keys.len() as i32, BUFFERS, 16))
}

#[test]
fn keys_come_back_in_their_order_with_lengths_and_missing_ones_marked() {
    let mut shard = Shard::new();
    let mut script = Script::new();
    let (a, empty, value) = (script.key("a"), script.key("empty"), script.data(b"value of a"));
    let keys = script.data(b"none\0a\0empty\0a\0");
    let script = script.snapshot(keys, 2, BUFFERS, 8).write(a, value, 10, 0).write(empty, value, 0, 0);
    let results = run(&mut shard, script.snapshot(keys, 15, BUFFERS + 16, 100).snapshot(keys, 15, BUFFERS + 200, 9));
    assert_eq!(results.first(), [BAD_ARGUMENT, OK, OK, 36, 36]);
    let expected = b"\xFF\xFF\xFF\xFF\x0A\0\0\0value of a\0\0\0\0\x0A\0\0\0value of a\0";
    assert_eq!(results.buffer(BUFFERS + 16, 37), expected);
    assert_eq!(results.buffer(BUFFERS + 200, 10), b"\xFF\xFF\xFF\xFF\x0A\0\0\0v\0", "no more than the buffer holds");
}

#[test]
fn a_session_without_state_has_none_of_the_keys() {
    let mut shard = Shard::new();
    assert_eq!(of_keys(&mut shard, b"a\0b\0c\0"), 12);
    assert_eq!(shard.value("alice", "a"), None);
}

#[test]
fn bad_lists_are_bad_arguments_and_long_ones_over_the_limit() {
    let mut shard = Shard::new();
    for bad in [&b""[..], b"a", b"\0", b"a\0\0", b"a\0b"] {
        assert_eq!(of_keys(&mut shard, bad), BAD_ARGUMENT, "{bad:?}");
    }
    assert_eq!(of_keys(&mut shard, &b"k\0".repeat(64)), 256);
    assert_eq!(of_keys(&mut shard, &b"k\0".repeat(65)), OVER_LIMIT);
    assert_eq!(of_keys(&mut shard, &[&[b'k'; 255][..], b"\0"].concat()), 4);
    assert_eq!(of_keys(&mut shard, &[&[b'k'; 256][..], b"\0"].concat()), OVER_LIMIT);
    assert_eq!(of_keys(&mut shard, &[&[b'k'; 256][..], b"\0\0"].concat()), BAD_ARGUMENT, "-2 wins");
    let snapshot = |shard: &mut Shard, keys, keys_length, buf, length| {
        let mut script = Script::new();
        script.data(b"k\0");
        result(shard, script.snapshot(keys, keys_length, buf, length))
    };
    let keys = Script::new().data(b"");
    assert_eq!(snapshot(&mut shard, keys, 2, BUFFERS, 0), 4);
    assert_eq!(snapshot(&mut shard, keys, 2, MEMORY, 0), 4);
    assert_eq!(snapshot(&mut shard, keys, 2, MEMORY - 3, 4), BAD_ARGUMENT);
    assert_eq!(snapshot(&mut shard, keys, 2, BUFFERS, -1), BAD_ARGUMENT);
    assert_eq!(snapshot(&mut shard, keys, -2, BUFFERS, 4), BAD_ARGUMENT);
    assert_eq!(snapshot(&mut shard, MEMORY - 1, 2, BUFFERS, 4), BAD_ARGUMENT);
    assert_eq!(snapshot(&mut shard, -1, 2, BUFFERS, 4), BAD_ARGUMENT);
    assert_eq!(snapshot(&mut shard, 0, 16_385, BUFFERS, 4), OVER_LIMIT, "unseen: the list is longer than one can be");
    assert_eq!(snapshot(&mut shard, 0, 16_385, MEMORY, 4), BAD_ARGUMENT);
}

#[test]
fn the_answer_may_be_written_over_the_keys() {
    let mut shard = Shard::new();
    let mut script = Script::new();
    let (a, b, value) = (script.key("a"), script.key("b"), script.data(b"xyz"));
    let script = script.write(a, value, 3, 0).write(b, value, 1, 0);
    let fill = |script: Script, at, byte: u8| script.fill(at, byte, 1);
    let script = fill(fill(fill(fill(script, BUFFERS, b'b'), BUFFERS + 1, 0), BUFFERS + 2, b'a'), BUFFERS + 3, 0);
    let results = run(&mut shard, script.snapshot(BUFFERS, 4, BUFFERS + 1, 100));
    assert_eq!(results.first(), [OK, OK, 12]);
    assert_eq!(results.buffer(BUFFERS, 13), b"b\x01\0\0\0x\x03\0\0\0xyz");
}

#[test]
fn an_atomic_call_finds_its_own_writes_among_the_others() {
    let mut shard = Shard::new();
    let mut script = Script::new();
    let (a, b, old) = (script.key("a"), script.key("b"), script.data(b"old"));
    assert_eq!(run(&mut shard, script.write(a, old, 3, 0).write(b, old, 3, 0)).first(), [OK, OK]);
    let mut guest = Guest::fork(script::program(), 1);
    guest.manifest.atomic = true;
    let mut script = Script::new();
    let (b, c, new) = (script.key("b"), script.key("c"), script.data(b"newer"));
    let keys = script.data(b"c\0b\0a\0none\0");
    let script = script.write(b, new, 5, 0).write(c, new, 1, 1).snapshot(keys, 11, BUFFERS, 64);
    assert_eq!(shard.invoke(&mut guest, &script.end(7)), Progress::Finished(7));
    let results = Results::of(&mut guest);
    assert_eq!(results.first(), [OK, OK, 25]);
    assert_eq!(results.buffer(BUFFERS, 25), b"\x01\0\0\0n\x05\0\0\0newer\x03\0\0\0old\xFF\xFF\xFF\xFF");
    assert_eq!(shard.value("alice", "b"), Some(b"old".to_vec()), "the call failed");
    assert_eq!(shard.value("alice", "c"), None);
}

#[test]
fn a_snapshot_neither_waits_for_a_lock_nor_takes_one() {
    let mut shard = Shard::new();
    shard.close_gate("k");
    assert_eq!(of_keys(&mut shard, b"k\0"), 4);
    assert_eq!(shard.open_gate("k"), None);
    assert_eq!(shard.state().locks.locks_held(), 0);
}
