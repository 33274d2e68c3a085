//! Timed work of a shard: connections that stall or rest for too long, lock waits, idle workers. CONTRACT.md section 1, "Limits".

use super::connection::{Closing, Connection};
use super::start::Timeouts;
use super::turn::Shard;
use crate::net::Phase;
use crate::state::Limit;
use crate::sys::clock::{self, SECOND_NS};

/// The client takes nothing of what is sent to it: of a long reply, not the next piece of 256 KiB.
const SEND_NS_MAX: u64 = 120 * SECOND_NS;
/// How long a client may take to read our last reply and close its half.
const LINGER_NS_MAX: u64 = 2 * SECOND_NS;

/// What is due of a connection.
#[derive(Debug, PartialEq, Eq)]
enum Due {
    Nothing,
    Refuse(&'static str),
    Shut,
}

fn due(connection: &Connection, timeouts: &Timeouts, now_ns: u64) -> Due {
    let since = |at_ns: u64| now_ns.saturating_sub(at_ns);
    if connection.sending && since(connection.send_since_ns) > SEND_NS_MAX {
        return Due::Shut;
    }
    match connection.closing {
        Closing::Lingering { since_ns } if since(since_ns) > LINGER_NS_MAX => return Due::Shut,
        Closing::No => {}
        _ => return Due::Nothing,
    }
    if connection.busy || connection.sending || connection.moving_to.is_some() {
        return Due::Nothing;
    }
    match connection.phase {
        Phase::BetweenRequests if since(connection.phase_since_ns) > timeouts.idle_ns => Due::Shut,
        Phase::Head if since(connection.phase_since_ns) > timeouts.head_ns => Due::Refuse("the request's head was not complete in time"),
        Phase::Body if since(connection.phase_since_ns) > timeouts.body_ns => Due::Refuse("the request's body was not complete in time"),
        Phase::Body if since(connection.progress_ns) > timeouts.body_stall_ns => Due::Refuse("the request's body came to a halt"),
        _ => Due::Nothing,
    }
}

impl Shard {
    pub(super) fn sweep(&mut self) {
        self.swept_ns = self.now_ns;
        let mut finished = std::mem::take(&mut self.finished);
        self.proxy.sweep(self.now_ns, &mut finished);
        for call in finished.drain(..) {
            self.deliver(call);
        }
        self.finished = finished;
        let from_ns = clock::quick_ns();
        self.sweep_lifecycle();
        self.tail.work.checkpoints_ns += clock::quick_ns().saturating_sub(from_ns);
        self.sweep_primary();
        self.sweep_connections();
        self.bound_buffers();
        self.sweep_rpc();
        self.publish_timers();
        let stats = self.proxy.state().stats();
        self.view.counters.sessions.set(stats.total.sessions);
        self.view.counters.state_bytes.set(stats.total.bytes_live);
        self.view.counters.state_pages_bytes.set(stats.total.bytes_used);
        self.view.counters.state_held_bytes.set(stats.total.bytes_held);
        let refused = &self.proxy.state().refused;
        Limit::ALL.iter().zip(&self.view.counters.state_refused).for_each(|(limit, count)| count.set(refused.of(*limit)));
    }

    fn sweep_connections(&mut self) {
        let (now_ns, timeouts) = (self.now_ns, self.options.timeouts);
        let late = |(id, connection): (usize, &Connection)| match due(connection, &timeouts, now_ns) {
            Due::Nothing => None,
            what => Some((id as u32, what)),
        };
        let late: Vec<(u32, Due)> = self.connections.iter().filter_map(late).collect();
        for (id, what) in late {
            self.view.counters.timed_out.add(1);
            match what {
                Due::Refuse(detail) => {
                    let generation = self.connections[id as usize].generation;
                    self.refuse_late(id, detail);
                    self.flush(id);
                    self.settle(id, generation);
                }
                _ => self.shut(id),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::FixedFile;

    const TIMEOUTS: Timeouts =
        Timeouts { head_ns: 10 * SECOND_NS, body_stall_ns: 30 * SECOND_NS, body_ns: 300 * SECOND_NS, idle_ns: 60 * SECOND_NS };

    #[test]
    fn a_stalled_head_is_refused_and_an_idle_connection_closed_without_a_word() {
        let mut connection = Connection::new(FixedFile(0), 0, 0);
        assert_eq!(due(&connection, &TIMEOUTS, TIMEOUTS.idle_ns), Due::Nothing);
        assert_eq!(due(&connection, &TIMEOUTS, TIMEOUTS.idle_ns + 1), Due::Shut);
        connection.phase = Phase::Head;
        assert_eq!(due(&connection, &TIMEOUTS, TIMEOUTS.head_ns), Due::Nothing);
        assert!(matches!(due(&connection, &TIMEOUTS, TIMEOUTS.head_ns + 1), Due::Refuse(_)));
        connection.busy = true;
        assert_eq!(due(&connection, &TIMEOUTS, TIMEOUTS.head_ns + 1), Due::Nothing);
    }

    #[test]
    fn a_body_may_take_long_while_it_grows() {
        let mut connection = Connection::new(FixedFile(0), 0, 0);
        connection.phase = Phase::Body;
        connection.progress_ns = 250 * SECOND_NS;
        assert_eq!(due(&connection, &TIMEOUTS, 270 * SECOND_NS), Due::Nothing);
        assert!(matches!(due(&connection, &TIMEOUTS, 281 * SECOND_NS), Due::Refuse(_)));
        connection.progress_ns = 300 * SECOND_NS;
        assert!(matches!(due(&connection, &TIMEOUTS, 301 * SECOND_NS), Due::Refuse(_)));
    }
}
