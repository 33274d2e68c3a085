//! What one shard counts. Only the shard writes, so a count is a relaxed load and store; control reads at any time and never resets.

use super::rpc::RpcCounters;
use super::tail::TailView;
use crate::net::ErrorCode;
use crate::session::{Outcome, ProxyStats};
use crate::state::{Limit, fragmentation};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use xfaas_common::drop_reason::DropReason;
use xfaas_common::limits::FUNCTIONS_MAX;

/// One number that only its shard changes.
#[derive(Default)]
pub struct Count(AtomicU64);

impl Count {
    pub fn add(&self, amount: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
    }

    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper bounds of the duration histogram, seconds; one more bucket takes what is longer.
pub const DURATION_BOUNDS_S: [f64; 20] = [
    0.000_005, 0.000_010, 0.000_025, 0.000_050, 0.000_100, 0.000_250, 0.000_500, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0,
];
const BOUNDS_NS: [u64; DURATION_BOUNDS_S.len()] = {
    let mut bounds = [0; DURATION_BOUNDS_S.len()];
    let mut i = 0;
    while i < bounds.len() {
        bounds[i] = (DURATION_BOUNDS_S[i] * 1e9) as u64;
        i += 1;
    }
    bounds
};

/// The `outcome` labels; the position is the index in `FunctionCounters::outcomes`.
pub const OUTCOMES: [&str; 11] = [
    "ok",
    "guest_error",
    "guest_trapped",
    "deadline",
    "lock_wait",
    "no_primary",
    "overloaded",
    "draining",
    "no_function",
    "other",
    "cancelled",
];

/// Counts of one function on one shard.
#[derive(Default)]
pub struct FunctionCounters {
    /// `xfaas_requests_total{function,outcome}`.
    pub outcomes: [Count; OUTCOMES.len()],
    /// `xfaas_request_duration_seconds`: from the request's last byte read to its reply handed to the kernel; not cumulative here.
    pub duration_buckets: [Count; DURATION_BOUNDS_S.len() + 1],
    pub duration_ns: Count,
}

/// What `FunctionCounters` say at some moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FunctionCounts {
    pub outcomes: [u64; OUTCOMES.len()],
    pub duration_buckets: [u64; DURATION_BOUNDS_S.len() + 1],
    pub duration_ns: u64,
}

impl FunctionCounts {
    /// What came since an earlier moment.
    pub fn since(mut self, earlier: &FunctionCounts) -> FunctionCounts {
        let subtract = |counts: &mut [u64], earlier: &[u64]| {
            counts.iter_mut().zip(earlier).for_each(|(count, before)| *count = count.wrapping_sub(*before))
        };
        subtract(&mut self.outcomes, &earlier.outcomes);
        subtract(&mut self.duration_buckets, &earlier.duration_buckets);
        self.duration_ns = self.duration_ns.wrapping_sub(earlier.duration_ns);
        self
    }
}

impl FunctionCounters {
    pub fn read(&self) -> FunctionCounts {
        FunctionCounts {
            outcomes: self.outcomes.each_ref().map(Count::get),
            duration_buckets: self.duration_buckets.each_ref().map(Count::get),
            duration_ns: self.duration_ns.get(),
        }
    }

    pub fn record(&self, outcome: &Outcome, duration_ns: u64) {
        let index = match outcome {
            Outcome::Replied => 0,
            Outcome::Failed { code, .. } => match code {
                ErrorCode::GuestError => 1,
                ErrorCode::GuestTrapped => 2,
                ErrorCode::Deadline => 3,
                ErrorCode::LockWait => 4,
                ErrorCode::NoPrimary => 5,
                ErrorCode::Overloaded => 6,
                ErrorCode::Draining => 7,
                ErrorCode::NoFunction => 8,
                _ => 9,
            },
            Outcome::Cancelled => 10,
        };
        self.outcomes[index].add(1);
        let bucket = BOUNDS_NS.partition_point(|bound| *bound < duration_ns);
        self.duration_buckets[bucket].add(1);
        self.duration_ns.add(duration_ns);
    }
}

/// Counts of one shard; exported name and meaning beside each.
#[repr(align(128))] // the prefetcher fetches 64-byte lines in pairs
#[derive(Default)]
pub struct ShardCounters {
    /// `xfaas_connections_accepted_total`.
    pub accepted: Count,
    /// `xfaas_connections`, open now.
    pub connections: Count,
    /// `xfaas_connections_refused_total`: over the limit.
    pub connections_refused: Count,
    /// `xfaas_connections_crowded_out_total`: closed because all together held too much.
    pub crowded_out: Count,
    /// `xfaas_http_buffer_bytes`: memory taken for requests and replies.
    pub http_buffer_bytes: Count,
    /// `xfaas_connections_timed_out_total`: closed by a head, body, send or idle timeout.
    pub timed_out: Count,
    /// `xfaas_http_requests_total`: complete heads, good or refused.
    pub http_requests: Count,
    /// `xfaas_http_refused_total`: requests answered with an error before any function was chosen.
    pub http_refused: Count,
    /// `xfaas_datagrams_total`: received on the UDP port, well-formed or not.
    pub datagrams: Count,
    /// `xfaas_datagrams_dropped_total{reason}`, dropped in user space.
    pub drops: [Count; DropReason::ALL.len()],
    /// `xfaas_steered_total`: requests that arrived on the shard that owns their session.
    pub steered: Count,
    /// `xfaas_misrouted_total`: requests that arrived on another shard.
    pub misrouted: Count,
    /// `xfaas_forwarded_total`: calls sent to their owner through a mailbox.
    pub forwarded: Count,
    /// `xfaas_local_reads_total`: calls of read-only functions begun where they arrived, beside their session's owner.
    pub local_reads: Count,
    /// `xfaas_local_reads_given_up_total`: those of them that had to be run anew by the owner.
    pub local_reads_given_up: Count,
    /// `xfaas_session_reads_asked_total`: reads of another shard's session, by `read_session`, that its owner had to answer.
    pub session_reads_asked: Count,
    /// `xfaas_timers`, that wait or run; `xfaas_timers_overdue`: failed since their time, or a second late.
    pub timers: Count,
    pub timers_overdue: Count,
    /// `xfaas_timers_fired_total`: invocations of timers; `xfaas_timers_failed_total`: tries in vain, those without an invocation too.
    pub timers_fired: Count,
    pub timers_failed: Count,
    /// `xfaas_moved_total`: connections given to the shard that owns their session.
    pub moved: Count,
    /// `xfaas_shed_total`: requests answered 503 because a queue, mailbox or pool was full.
    pub shed: Count,
    /// `xfaas_replays_total`: idempotent datagrams answered from memory.
    pub replays: Count,
    /// `xfaas_replay_evictions_total`: remembered answers dropped before their time because the memory was full.
    pub replay_evictions: Count,
    /// `xfaas_forks_total`, `xfaas_fork_seconds_total`, and the other numbers of the proxy.
    pub forks: Count,
    pub fork_ns: Count,
    pub evictions: Count,
    pub workers: Count,
    pub workers_idle: Count,
    pub workers_parked: Count,
    pub namespaces: Count,
    pub queued: Count,
    /// `xfaas_calls_held_for_move`.
    pub held_for_move: Count,
    pub lock_waits: Count,
    pub slices: Count,
    /// `xfaas_container_*`: what a container asked its primary. Counts in the same order as in `EXPORTED`.
    pub primary_links: Count,
    pub primary_links_made: Count,
    pub primary_requests: Count,
    pub primary_answers: Count,
    pub primary_timeouts: Count,
    pub primary_reads: Count,
    pub mapped_reads: Count,
    /// `xfaas_regions_refused_total`: files of session state that could not be trusted at start and were set aside.
    pub regions_refused: Count,
    /// `xfaas_cancelled_total`: calls whose client was gone before they were over.
    pub cancelled: Count,
    /// `xfaas_tokens_refused_total`: requests answered `bad_token`.
    pub tokens_refused: Count,
    /// `xfaas_rate_limited_total`: requests over their namespace's `requests_per_s`.
    pub rate_limited: Count,
    /// `xfaas_secondaries`: secondary containers here of sessions that other shards own; `xfaas_copy_sessions_total`: those that were made.
    pub secondaries: Count,
    pub copy_sessions: Count,
    /// `xfaas_secondary_calls_total`: calls that they were given; `xfaas_secondary_wait_seconds_total`: from being given away to arriving here.
    pub secondary_calls: Count,
    pub secondary_wait_ns: Count,
    /// `xfaas_secondary_requests_total`: what their workers asked the primary's shard.
    pub secondary_requests: Count,
    /// `xfaas_sessions_asleep`: in a checkpoint and not in memory.
    pub sessions_asleep: Count,
    /// `xfaas_sessions_reclaimed_total`: dropped from memory once the store had them.
    pub sessions_reclaimed: Count,
    /// `xfaas_sessions_dropped_total{reason}`: of `sessions_reclaimed`, those that left for want of memory; the others were idle for long enough.
    pub dropped_for_room: Count,
    /// `xfaas_pre_warm_loads_total`: loaded ahead of a request; `xfaas_pre_warm_hits_total`: of them, those that a request then came for.
    pub pre_warm_loads: Count,
    pub pre_warm_hits: Count,
    /// `xfaas_sessions_asleep_with_timers`.
    pub asleep_with_timers: Count,
    /// `xfaas_cold_sessions_total`: loaded from a checkpoint; `xfaas_cold_sessions_refused_total`: requests whose session could not be.
    pub cold_sessions: Count,
    pub cold_refused: Count,
    /// `xfaas_sessions`, with state in the region.
    pub sessions: Count,
    /// `xfaas_state_bytes`: keys and values.
    pub state_bytes: Count,
    /// `xfaas_state_used_bytes`: shared memory taken; with what it holds it gives `xfaas_state_fragmentation_ratio`.
    pub state_pages_bytes: Count,
    pub state_held_bytes: Count,
    /// `xfaas_state_refused_total{reason}`: calls of guests that got -3.
    pub state_refused: [Count; Limit::ALL.len()],
    /// `xfaas_ring_enters_total`: system calls of the loop.
    pub ring_enters: Count,
    /// `xfaas_ring_submissions_total`, `xfaas_ring_completions_total`: what those calls hand over and bring.
    pub ring_submissions: Count,
    pub ring_completions: Count,
    /// `xfaas_log_writes_total`, `xfaas_log_bytes_total`: writes of the log, each with its sync.
    pub log_writes: Count,
    pub log_bytes: Count,
    /// `xfaas_log_failures_total`: of them, and of the files that the log needs.
    pub log_failures: Count,
    /// `xfaas_log_failing`: 1 while the log cannot be written.
    pub log_failing: Count,
    /// `xfaas_turns_total`.
    pub turns: Count,
    pub rest_ns: Count,
    /// `xfaas_buffers_exhausted_total`: receives that found no provided buffer and were armed again.
    pub buffers_exhausted: Count,
    /// What belongs to containers' connections.
    pub rpc: RpcCounters,
}

/// One exported number of a shard.
pub struct Exported {
    pub name: &'static str,
    pub help: &'static str,
    /// Only grows.
    pub is_counter: bool,
    pub value: fn(&ShardCounters) -> f64,
}

pub(super) const fn counter(name: &'static str, help: &'static str, value: fn(&ShardCounters) -> f64) -> Exported {
    Exported { name, help, is_counter: true, value }
}

pub(super) const fn gauge(name: &'static str, help: &'static str, value: fn(&ShardCounters) -> f64) -> Exported {
    Exported { name, help, is_counter: false, value }
}

/// Everything a shard exports but drops and refusals by reason and what belongs to functions.
pub const EXPORTED: &[Exported] = &[
    counter("xfaas_connections_accepted_total", "Connections accepted.", |c| c.accepted.get() as f64),
    gauge("xfaas_connections", "Connections open now.", |c| c.connections.get() as f64),
    counter("xfaas_connections_refused_total", "Connections closed at once because the shard had connections_max.", |c| {
        c.connections_refused.get() as f64
    }),
    counter("xfaas_connections_crowded_out_total", "Connections closed because all together held more than http_memory_mib.", |c| {
        c.crowded_out.get() as f64
    }),
    gauge("xfaas_http_buffer_bytes", "Memory that HTTP connections hold for what they sent and what is to be sent.", |c| {
        c.http_buffer_bytes.get() as f64
    }),
    counter("xfaas_connections_timed_out_total", "Connections closed by a head, body, send or idle timeout.", |c| c.timed_out.get() as f64),
    counter("xfaas_http_requests_total", "HTTP requests, good or refused.", |c| c.http_requests.get() as f64),
    counter("xfaas_http_refused_total", "HTTP requests answered with an error before any function ran.", |c| c.http_refused.get() as f64),
    counter("xfaas_datagrams_total", "Datagrams received, well-formed or not.", |c| c.datagrams.get() as f64),
    counter("xfaas_steered_total", "Requests that arrived on the shard that owns their session.", |c| c.steered.get() as f64),
    counter("xfaas_misrouted_total", "Requests that arrived on another shard than their session's owner.", |c| c.misrouted.get() as f64),
    counter("xfaas_forwarded_total", "Calls sent to the owner's shard through a mailbox.", |c| c.forwarded.get() as f64),
    counter("xfaas_local_reads_total", "Calls of read-only functions run where they arrived, beside their session's owner.", |c| {
        c.local_reads.get() as f64
    }),
    counter("xfaas_local_reads_given_up_total", "Calls begun beside their session's owner and run anew by it.", |c| {
        c.local_reads_given_up.get() as f64
    }),
    counter("xfaas_session_reads_asked_total", "Reads of another shard's session that its owner had to answer.", |c| {
        c.session_reads_asked.get() as f64
    }),
    gauge("xfaas_timers", "Timers of sessions that wait or run.", |c| c.timers.get() as f64),
    gauge("xfaas_timers_overdue", "Timers that failed since their time, or are a second late.", |c| c.timers_overdue.get() as f64),
    counter("xfaas_timers_fired_total", "Invocations of timers.", |c| c.timers_fired.get() as f64),
    counter("xfaas_timers_failed_total", "Timers that were tried in vain.", |c| c.timers_failed.get() as f64),
    counter("xfaas_moved_total", "Connections moved to the shard that owns their session.", |c| c.moved.get() as f64),
    counter("xfaas_shed_total", "Requests answered 503 because a queue, mailbox or pool was full.", |c| c.shed.get() as f64),
    counter("xfaas_replays_total", "Duplicates of idempotent datagrams answered from memory.", |c| c.replays.get() as f64),
    counter("xfaas_replay_evictions_total", "Remembered answers dropped early because their memory was full.", |c| {
        c.replay_evictions.get() as f64
    }),
    counter("xfaas_forks_total", "Workers made.", |c| c.forks.get() as f64),
    counter("xfaas_fork_seconds_total", "Time spent making workers.", |c| c.fork_ns.get() as f64 / 1e9),
    counter("xfaas_evictions_total", "Idle workers dropped to make room.", |c| c.evictions.get() as f64),
    gauge("xfaas_workers", "Workers alive.", |c| c.workers.get() as f64),
    gauge("xfaas_workers_idle", "Workers that wait for a call.", |c| c.workers_idle.get() as f64),
    gauge("xfaas_workers_parked", "Workers that wait for a lock, or for an answer of another shard or of the primary.", |c| {
        c.workers_parked.get() as f64
    }),
    gauge("xfaas_namespaces_active", "Namespaces with a worker or a waiting call.", |c| c.namespaces.get() as f64),
    gauge("xfaas_calls_held_for_move", "Calls that wait until their session has moved to another core.", |c| c.held_for_move.get() as f64),
    gauge("xfaas_calls_queued", "Calls that wait for a worker.", |c| c.queued.get() as f64),
    counter("xfaas_lock_waits_total", "Times a call had to wait for a lock.", |c| c.lock_waits.get() as f64),
    counter("xfaas_slices_total", "Times a worker was given the core.", |c| c.slices.get() as f64),
    gauge("xfaas_container_links", "Connections to the primary's shards, of a container.", |c| c.primary_links.get() as f64),
    counter("xfaas_container_links_made_total", "Connections made to the primary's shards: more than there are means reconnects.", |c| {
        c.primary_links_made.get() as f64
    }),
    counter("xfaas_container_rpc_requests_total", "Requests that a container sent to its primary.", |c| c.primary_requests.get() as f64),
    counter("xfaas_container_rpc_answers_total", "Answers of the primary.", |c| c.primary_answers.get() as f64),
    counter("xfaas_container_rpc_timeouts_total", "Requests to the primary that were given up without an answer.", |c| {
        c.primary_timeouts.get() as f64
    }),
    counter("xfaas_container_rpc_reads_total", "Reads that a container asked of its primary.", |c| c.primary_reads.get() as f64),
    counter("xfaas_container_mapped_reads_total", "Reads that a container did in its primary's mapped regions.", |c| {
        c.mapped_reads.get() as f64
    }),
    counter("xfaas_regions_refused_total", "Files of session state that could not be trusted and were set aside.", |c| {
        c.regions_refused.get() as f64
    }),
    counter("xfaas_cancelled_total", "Calls ended because their client was gone.", |c| c.cancelled.get() as f64),
    counter("xfaas_tokens_refused_total", "Requests without a token that is good for their session.", |c| c.tokens_refused.get() as f64),
    counter("xfaas_rate_limited_total", "Requests over their namespace's requests_per_s.", |c| c.rate_limited.get() as f64),
    gauge("xfaas_secondaries", "Secondary containers of sessions that another shard owns.", |c| c.secondaries.get() as f64),
    counter("xfaas_copy_sessions_total", "Secondary containers made.", |c| c.copy_sessions.get() as f64),
    counter("xfaas_secondary_calls_total", "Calls given to secondary containers.", |c| c.secondary_calls.get() as f64),
    counter("xfaas_secondary_wait_seconds_total", "Time that those calls were on their way there.", |c| {
        c.secondary_wait_ns.get() as f64 / 1e9
    }),
    counter("xfaas_secondary_requests_total", "Requests of secondary containers to the shard of their primary.", |c| {
        c.secondary_requests.get() as f64
    }),
    gauge("xfaas_sessions", "Sessions with state.", |c| c.sessions.get() as f64),
    gauge("xfaas_sessions_asleep", "Sessions whose state is in a checkpoint and not in memory.", |c| c.sessions_asleep.get() as f64),
    counter("xfaas_sessions_reclaimed_total", "Idle sessions dropped from memory once the store had their checkpoint.", |c| {
        c.sessions_reclaimed.get() as f64
    }),
    counter("xfaas_pre_warm_loads_total", "Sessions loaded from a checkpoint ahead of the request that was expected.", |c| {
        c.pre_warm_loads.get() as f64
    }),
    counter("xfaas_pre_warm_hits_total", "Sessions loaded ahead of a request that then came.", |c| c.pre_warm_hits.get() as f64),
    gauge("xfaas_sessions_asleep_with_timers", "Sessions that sleep and are woken when their first timer is due.", |c| {
        c.asleep_with_timers.get() as f64
    }),
    counter("xfaas_cold_sessions_total", "Sessions loaded from a checkpoint.", |c| c.cold_sessions.get() as f64),
    counter("xfaas_cold_sessions_refused_total", "Requests answered 503 because their session's checkpoint could not be read.", |c| {
        c.cold_refused.get() as f64
    }),
    gauge("xfaas_state_bytes", "Bytes of keys and values of all sessions.", |c| c.state_bytes.get() as f64),
    gauge("xfaas_state_used_bytes", "Bytes of shared memory taken by sessions.", |c| c.state_pages_bytes.get() as f64),
    gauge("xfaas_state_fragmentation_ratio", "Part of that memory that holds neither values nor records.", |c| {
        fragmentation(c.state_held_bytes.get(), c.state_pages_bytes.get())
    }),
    counter("xfaas_log_writes_total", "Writes of the log, each with its sync.", |c| c.log_writes.get() as f64),
    counter("xfaas_log_bytes_total", "Bytes written to the log.", |c| c.log_bytes.get() as f64),
    counter("xfaas_log_failures_total", "Writes and files of the log that failed.", |c| c.log_failures.get() as f64),
    gauge("xfaas_log_failing", "1 while the log cannot be written.", |c| c.log_failing.get() as f64),
    counter("xfaas_ring_enters_total", "io_uring_enter calls of the loop.", |c| c.ring_enters.get() as f64),
    counter("xfaas_ring_submissions_total", "Operations that the loop handed to io_uring.", |c| c.ring_submissions.get() as f64),
    counter("xfaas_ring_completions_total", "Completions that the loop took from io_uring.", |c| c.ring_completions.get() as f64),
    counter("xfaas_turns_total", "Turns of the loop.", |c| c.turns.get() as f64),
    counter("xfaas_rest_seconds_total", "Time for which a busy shard in the real-time class left its CPU to other threads.", |c| {
        c.rest_ns.get() as f64 / 1e9
    }),
    counter("xfaas_buffers_exhausted_total", "Receives that found no buffer and were armed again.", |c| c.buffers_exhausted.get() as f64),
];

impl ShardCounters {
    pub fn publish_proxy(&self, stats: &ProxyStats) {
        self.forks.set(stats.forks);
        self.fork_ns.set(stats.fork_ns);
        self.evictions.set(stats.evictions);
        self.workers.set(stats.workers);
        self.workers_idle.set(stats.workers_idle);
        self.workers_parked.set(stats.workers_parked);
        self.namespaces.set(stats.namespaces);
        self.queued.set(stats.queued);
        self.lock_waits.set(stats.lock_waits);
        self.slices.set(stats.slices);
        self.mapped_reads.set(stats.mapped_reads);
        self.cancelled.set(stats.cancelled);
        self.rate_limited.set(stats.rate_limited);
        self.secondaries.set(stats.secondaries);
        self.copy_sessions.set(stats.copy_sessions);
        self.secondary_calls.set(stats.secondary_calls);
        self.secondary_wait_ns.set(stats.secondary_wait_ns);
        self.regions_refused.set(stats.regions_refused);
    }
}

/// What a shard shows to control: counters read from outside, nothing else.
pub struct ShardView {
    pub counters: ShardCounters,
    /// Entry `i`: the function with index `i`.
    pub functions: Box<[FunctionCounters]>,
    /// Where the kernel says how long the shard's thread was on a CPU.
    pub schedstat: OnceLock<PathBuf>,
    pub tail: TailView,
}

impl ShardView {
    pub fn new() -> ShardView {
        let functions = (0..FUNCTIONS_MAX).map(|_| FunctionCounters::default()).collect();
        ShardView { counters: ShardCounters::default(), functions, schedstat: OnceLock::new(), tail: TailView::default() }
    }
}

impl Default for ShardView {
    fn default() -> ShardView {
        ShardView::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_on_a_bound_belongs_to_that_bucket() {
        let counters = FunctionCounters::default();
        counters.record(&Outcome::Replied, 5_000);
        counters.record(&Outcome::Replied, 5_001);
        counters.record(&Outcome::failed(ErrorCode::Deadline, ""), 60_000_000_000);
        assert_eq!(counters.duration_buckets[0].get(), 1);
        assert_eq!(counters.duration_buckets[1].get(), 1);
        assert_eq!(counters.duration_buckets[DURATION_BOUNDS_S.len()].get(), 1);
        assert_eq!((counters.outcomes[0].get(), counters.outcomes[3].get()), (2, 1));
    }
}
