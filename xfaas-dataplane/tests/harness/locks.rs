//! Two guests that take the same two locks in opposite order.

use super::{Client, request};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Whether two calls meet is up to the machine: it is tried until they do.
const ROUNDS_MAX: i32 = 300;

/// Has `lock-ab` and `lock-ba` run at once in the session `s`, one at each place, until one of them was refused for the other's sake. One always gets through,
/// and a cycle is found at once. Gives the number of calls that got through.
pub fn run_until_a_deadlock(places: [SocketAddr; 2]) -> i32 {
    let (mut replied, mut refused) = (0, 0);
    for round in 1..=ROUNDS_MAX {
        let begun = Instant::now();
        let mut clients = places.map(Client::connect);
        for (client, function) in clients.iter_mut().zip(["lock-ab", "lock-ba"]) {
            client.send(&request("POST", &format!("/f/{function}"), &[("x-session-id", "s")], b""));
        }
        for client in &mut clients {
            let reply = client.reply();
            if reply.status == 200 {
                replied += 1;
            } else {
                reply.assert_error(500, "guest_error");
                assert_eq!(reply.problem()["guest_code"], -4);
                refused += 1;
            }
        }
        assert!(begun.elapsed() < Duration::from_secs(4), "a cycle is found at once, not by lock_wait_ms");
        assert!(replied >= round, "one of two always gets through");
        if refused > 0 {
            return replied;
        }
    }
    panic!("in {ROUNDS_MAX} rounds no two calls met");
}
