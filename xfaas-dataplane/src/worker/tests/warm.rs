//! A warm call allocates nothing on the heap: starting, polling, reading, writing, waiting, finishing.

use super::script::{self, BUFFERS, Script};
use super::{GATEKEEPER, Guest, Progress, Shard, gate};
use allocation_counter::measure;

fn read_and_write(mode: i32) -> Vec<u8> {
    let mut script = Script::new();
    let (key, value) = (script.key("k"), script.data(b"value"));
    script.read(key, BUFFERS, 16, mode).write(key, value, 5, mode).end(0)
}

#[test]
fn a_warm_call_allocates_nothing() {
    for (mode, atomic) in [(0, false), (1, false), (0, true), (1, true)] {
        let (mut shard, mut guest) = (Shard::new(), Guest::fork(script::program(), 1));
        guest.manifest.atomic = atomic;
        let body = read_and_write(mode);
        for _ in 0..3 {
            assert_eq!(shard.invoke(&mut guest, &body), Progress::Finished(0));
        }
        let counted = measure(|| {
            for _ in 0..100 {
                assert_eq!(shard.invoke(&mut guest, &body), Progress::Finished(0));
            }
        });
        assert_eq!(counted.count_total, 0, "mode {mode}, atomic {atomic}");
    }
}

#[test]
fn waiting_and_slices_allocate_nothing() {
    let mut shard = Shard::new();
    let (mut holder, mut waiter) = (Guest::fork(script::program(), 1), Guest::fork(script::program(), 2));
    let mut script = Script::new();
    let (key, value) = (script.key("k"), script.data(b"value"));
    let long = script.read(key, BUFFERS, 16, 1).pass("gate").spin(1_000_000).write(key, value, 5, 1).end(0);
    let short = read_and_write(1);
    let mut granted = Vec::new();
    let mut round = |shard: &mut Shard| {
        shard.close_gate("gate");
        assert_eq!(shard.invoke(&mut holder, &long), Progress::Waiting);
        assert_eq!(shard.invoke(&mut waiter, &short), Progress::Waiting);
        shard.state().locks.release(&gate("gate"), GATEKEEPER, &mut granted);
        granted.clear();
        assert_eq!(shard.run(&mut holder), Progress::Finished(0));
        assert_eq!(holder.call().granted.len(), 1);
        assert_eq!(shard.run(&mut waiter), Progress::Finished(0));
    };
    for _ in 0..3 {
        round(&mut shard);
    }
    let counted = measure(|| (0..10).for_each(|_| round(&mut shard)));
    assert_eq!(counted.count_total, 0);
}
