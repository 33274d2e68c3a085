//! Every maximum of xfaas, and the checks that tie them together. A limit that a manifest or `xfaas.toml` can lower has its
//! ceiling or default here.

/// Hash buckets of session IDs: the unit of ownership.
pub const SLOTS: usize = 16_384;
/// Bits of the 64-bit session hash that name the slot.
pub const SLOT_BITS: u32 = 14;
/// Shards of one process, and so the largest `CoreIndex` plus one.
pub const CORES_MAX: usize = 64;

/// Bytes of a session ID's text, 1..=64.
pub const SESSION_ID_BYTES_MAX: usize = 64;
/// Bytes of a function's or an app's name, 1..=64.
pub const NAME_BYTES_MAX: usize = 64;

/// Bytes of a state key without its NUL, 1..=255.
pub const KEY_BYTES_MAX: usize = 255;
/// Bytes of one state value.
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// Keys of one session.
pub const SESSION_KEYS_MAX: usize = 65_536;
/// Bytes of keys and values of one session.
pub const SESSION_STATE_BYTES_MAX: usize = 64 << 20;
/// Keys of one `snapshot_read`.
pub const SNAPSHOT_KEYS_MAX: usize = 64;
/// Bytes of a timer's name, 1..=64, and of its payload.
pub const TIMER_NAME_BYTES_MAX: usize = 64;
pub const TIMER_PAYLOAD_BYTES_MAX: usize = 4 << 10;
/// Timers of one session, and of all sessions of a shard.
pub const TIMERS_SESSION_MAX: usize = 64;
pub const TIMERS_SHARD_MAX: usize = 1 << 18;
/// Milliseconds after its time from which a timer that nobody has begun, or whose session sleeps still, is overdue.
pub const TIMER_OVERDUE_MS: u32 = 1_000;
/// Milliseconds to the first retry of a timer that failed, or of waking its session, and the most between two.
pub const TIMER_RETRY_MS_MIN: u32 = 1_000;
pub const TIMER_RETRY_MS_MAX: u32 = 60_000;
/// Timers of a shard that run at once.
pub const TIMERS_RUNNING_MAX: usize = 256;
/// Bytes of a module, with the hook that it brings: as deployed, as prepared by `init`, and as a container fetches it.
pub const MODULE_BYTES_MAX: usize = 64 << 20;
/// Functions that a module defines: some 6 KB of memory each while it is compiled.
pub const MODULE_FUNCTIONS_MAX: usize = 50_000;
/// Types of a module, and the parameters and results of all its function types: the compiler makes code for each.
pub const MODULE_TYPES_MAX: usize = 10_000;
pub const MODULE_TYPE_VALUES_MAX: usize = 65_536;
/// Element segments of a module and what they hold for its tables, of which one takes more than 2 KB while it is compiled.
pub const MODULE_ELEMENTS_MAX: usize = 100_000;
/// Imports of a module, each function as often as it is imported.
pub const MODULE_IMPORTS_MAX: usize = 1_024;
/// Bytes of one function's body: the compiler takes up to 700 bytes of memory for each.
pub const FUNCTION_BODY_BYTES_MAX: usize = 1 << 20;
/// Locals of one function, its parameters included: the engine's limit.
pub const FUNCTION_LOCALS_MAX: usize = 50_000;
/// What compiling a module may take where its time is not in proportion to the module's size, in steps of about 5 ns.
pub const COMPILE_STEPS_MAX: u64 = 1 << 32;
/// Bytes a guest may give as output.
pub const OUTPUT_BYTES_MAX: usize = 8 << 20;

/// Bytes of an HTTP head, from the request line to the final empty line.
pub const HEAD_BYTES_MAX: usize = 16 << 10;
/// Header fields of one HTTP head.
pub const HEADERS_MAX: usize = 100;
/// Bytes of an HTTP body, unless the configuration says less.
pub const BODY_BYTES_MAX_DEFAULT: usize = 8 << 20;
/// Bytes of a UDP payload: 65,535 less the IPv4 and UDP headers.
pub const DATAGRAM_BYTES_MAX: usize = 65_507;
/// Bytes of the first TCP segment in which the kernel looks for the session header.
pub const STEER_HEAD_SCAN_BYTES: usize = 512;

/// Connections one shard holds at once.
pub const CONNECTIONS_MAX: usize = 16_384;
/// Calls that wait for a worker in one namespace before a new one is refused with 503.
pub const NAMESPACE_QUEUE_CALLS_MAX: usize = 256;
/// Namespaces of one shard that are kept for what they used of their limits only; beyond it a namespace's limits begin anew.
pub const COOLING_NAMESPACES_MAX: usize = 65_536;
/// Calls one shard holds at once: running, parked and waiting.
pub const SHARD_CALLS_MAX: usize = 65_536;
/// Keys locked at once on one shard, by all its strong sections.
pub const LOCKS_MAX: usize = 65_536;
/// Keys one call holds locked at once.
pub const CALL_LOCKS_MAX: usize = 1_024;
/// Messages under way from one shard to another.
pub const MAILBOX_MESSAGES_MAX: usize = 4_096;
/// Aliases of sessions of one node.
pub const ALIASES_MAX: usize = 65_536;
/// Added to an app's index, names the namespace of its hook's workers.
pub const HOOK_APP: u16 = 1 << 15;
/// Functions of one node.
pub const FUNCTIONS_MAX: usize = 1_024;

/// Default of `workers_max`: workers that run at once in one namespace.
pub const WORKERS_MAX_DEFAULT: u16 = 10;
/// Default of `containers_max`, and its ceiling: containers of one namespace in a process, the primary included, at most one a shard.
pub const CONTAINERS_MAX_DEFAULT: u16 = 1;
pub const CONTAINERS_MAX: u16 = CORES_MAX as u16;
/// Default of `hook_deadline_ms`.
pub const HOOK_DEADLINE_MS_DEFAULT: u32 = 10;
/// Linear memory of a hook's worker.
pub const HOOK_MEMORY_MIB: u32 = 16;
/// Default of `deadline_ms`.
pub const DEADLINE_MS_DEFAULT: u32 = 1_000;
/// Default of `memory_mib`: linear memory of one worker.
pub const MEMORY_MIB_DEFAULT: u32 = 128;
/// Default of `state_mib`: keys and values of one session.
pub const STATE_MIB_DEFAULT: u32 = 64;
/// Default of `log_mib`: writes in a shard's log after which a snapshot takes the place of what is before it.
pub const LOG_MIB_DEFAULT: u32 = 256;
/// Bytes of writes that wait for a shard's log; over it further requests of its apps are refused.
pub const LOG_WAITING_BYTES_MAX: usize = 64 << 20;
/// How long answers wait for a log that cannot be written.
pub const LOG_HELD_MS_MAX: u64 = 5_000;
/// Default of `checkpoint_every_s`, and the ceiling of it and of `keep_alive_s`: a day.
pub const CHECKPOINT_EVERY_S_DEFAULT: u32 = 10;
pub const KEEP_ALIVE_S_MAX: u32 = 86_400;
/// Default of `keep_alive_s` with `keep_alive = "hybrid"`.
pub const KEEP_ALIVE_S_DEFAULT: u32 = 600;
/// Checkpoints of one shard that are on their way to the store or from it.
pub const CHECKPOINT_ORDERS_MAX: usize = 256;
/// Bytes of sessions on their way to the store, of one shard: over it no further one is copied.
pub const CHECKPOINT_ORDERS_BYTES_MAX: usize = 64 << 20;
/// Bytes of one checkpoint before compression: a session's keys and values, and a few bytes beside each.
pub const CHECKPOINT_BYTES_MAX: usize = SESSION_STATE_BYTES_MAX + 8 * SESSION_KEYS_MAX + (1 << 10);
/// Sessions of one shard of which it is known whether they have a checkpoint, some 100 bytes each; others stay in memory.
pub const KNOWN_SESSIONS_MAX: usize = 16 << 20;
/// Sessions of one shard that are loaded at once.
pub const COLD_SESSIONS_MAX: usize = 128;
/// How long a request waits for its session to be loaded.
pub const COLD_WAIT_MS_MAX: u64 = 5_000;
/// How long one operation of the store may take, beside the time for the bytes.
pub const STORE_MS_MAX: u64 = 10_000;
/// Operations on local files of the store under way at once, those included that nobody waits for any more.
pub const STORE_FILES_MAX: usize = 64;
/// How long an orderly stop waits for checkpoints.
pub const STOP_CHECKPOINTS_MS_MAX: u64 = 60_000;
/// Loads of one shard under way beyond which none is begun but for a request that waits: those for timers, and those ahead of requests.
pub const WAKING_LOADS_MAX: usize = 32;
/// Sessions of one app on one shard that sleep and are to be loaded ahead of their next request; others wait for it.
pub const PRE_WARMS_MAX: usize = 65_536;
/// Sessions that are compared with each other when memory is short.
pub const EVICTION_SAMPLE_MAX: usize = 16_384;
/// Default of `lock_wait_ms`.
pub const LOCK_WAIT_MS_DEFAULT: u32 = 5_000;

/// Sessions that are elsewhere than their slot says: a quarter of the kernel's pins, whose others are for aliases.
pub const PINNED_SESSIONS_MAX: usize = 1_024;
/// Bytes of keys and values that a moving session copies in one turn, besides one value.
pub const MOVE_PIECE_BYTES: usize = 1 << 20;
/// Keys that it copies in one turn.
pub const MOVE_PIECE_KEYS_MAX: usize = 4_096;

/// How long the first answer to an idempotent datagram is remembered.
pub const IDEMPOTENT_WINDOW_S: u64 = 60;

/// Bytes of one RPC frame's payload: two values of 1 MiB with their keys fit into one commit.
pub const RPC_PAYLOAD_BYTES_MAX: usize = (2 << 20) + (4 << 10);
/// Bytes of one RPC frame: header, session ID, payload.
pub const RPC_FRAME_BYTES_MAX: usize = 32 + SESSION_ID_BYTES_MAX + RPC_PAYLOAD_BYTES_MAX;
/// Bytes of a module in one frame of kind 22.
pub const RPC_MODULE_CHUNK_BYTES: usize = 256 << 10;
/// RPC connections of one shard.
pub const RPC_CONNECTIONS_MAX: usize = 256;
/// Bytes of answers that wait to be sent on one RPC connection; over it no further request of the connection is read.
pub const RPC_UNSENT_BYTES_MAX: usize = 1 << 20;
/// Invocations of one RPC connection that hold or wait for a lock.
pub const RPC_INVOCATIONS_MAX: usize = 4_096;
/// The same of all RPC connections of one shard: local calls keep most of `SHARD_CALLS_MAX`.
pub const RPC_SHARD_INVOCATIONS_MAX: usize = 16_384;
/// Bytes of keys and values that wait for their locks on one shard, of all RPC connections.
pub const RPC_WAITING_BYTES_MAX: usize = 64 << 20;
/// Modules on their way to one RPC connection.
pub const RPC_MODULES_MAX: usize = 64;
/// Connections that ask for descriptors of regions, at once.
pub const REGION_CONNECTIONS_MAX: usize = 64;
/// Requests of a container under way on one connection.
pub const RPC_REQUESTS_MAX: usize = 16_384;
/// Bytes of a container's requests that wait to be sent on one connection; over it requests wait with their calls.
pub const RPC_ASKED_BYTES_MAX: usize = 1 << 20;
/// How often a container pings.
pub const RPC_PING_MS: u64 = 500;
/// Who hears nothing on an RPC connection for so long closes it.
pub const RPC_SILENCE_MS_MAX: u64 = 2_000;

/// Files of compiled code that no function uses any more, and of modules after their `init`: some stay, the ones used last, for a function that comes back.
pub const KEPT_UNUSED_FILES_MAX: usize = 64;
/// Bytes of those files.
pub const KEPT_UNUSED_BYTES_MAX: u64 = 256 << 20;
/// So many stay whatever they have: each of two deployments at a time may have code and a hook's that is not in use yet.
pub const KEPT_UNUSED_FILES_MIN: usize = 4;

pub const HTTP_PORT_DEFAULT: u16 = 8_080;
pub const ADMIN_PORT_DEFAULT: u16 = 9_070;
pub const RPC_PORT_DEFAULT: u16 = 9_071;

const _: () = assert!(1 << SLOT_BITS == SLOTS);
const _: () = assert!(CORES_MAX <= SLOTS, "every core must be able to own a slot");
const _: () = assert!(SESSION_ID_BYTES_MAX.is_multiple_of(8), "the hash reads whole words");
const _: () = assert!(KEY_BYTES_MAX == u8::MAX as usize, "a key's length travels in one byte");
const _: () = assert!(TIMER_NAME_BYTES_MAX + 2 <= KEY_BYTES_MAX, "a timer is kept under a key of its session");
const _: () = assert!(TIMERS_SESSION_MAX < SESSION_KEYS_MAX && TIMERS_RUNNING_MAX <= NAMESPACE_QUEUE_CALLS_MAX);
const _: () = assert!(SNAPSHOT_KEYS_MAX * (VALUE_BYTES_MAX + 4) <= i32::MAX as usize, "a snapshot's length is an i32");
const _: () = assert!(FUNCTIONS_MAX <= HOOK_APP as usize, "no app has the index of a hook's namespace");
const _: () = assert!(VALUE_BYTES_MAX <= SESSION_STATE_BYTES_MAX);
const _: () = assert!(CHECKPOINT_BYTES_MAX <= u32::MAX as usize, "a checkpoint's length is a u32");
const _: () = assert!(WAKING_LOADS_MAX < COLD_SESSIONS_MAX, "requests find room when sessions wake by themselves");
const _: () = assert!(KEEP_ALIVE_S_DEFAULT <= KEEP_ALIVE_S_MAX);
const _: () = assert!(COLD_SESSIONS_MAX < CHECKPOINT_ORDERS_MAX, "loads leave room for writes");
const _: () = assert!(SESSION_STATE_BYTES_MAX == (STATE_MIB_DEFAULT as usize) << 20);
const _: () = assert!(STEER_HEAD_SCAN_BYTES <= HEAD_BYTES_MAX);
const _: () = assert!(CALL_LOCKS_MAX < LOCKS_MAX, "one call cannot take all locks of a shard");
const _: () = assert!(RPC_PAYLOAD_BYTES_MAX >= 2 * (VALUE_BYTES_MAX + KEY_BYTES_MAX + 64), "a commit of two largest values fits");
const _: () = assert!(RPC_SHARD_INVOCATIONS_MAX < SHARD_CALLS_MAX / 2);
const _: () = assert!((FUNCTIONS_MAX + 8) << 10 <= RPC_PAYLOAD_BYTES_MAX, "a welcome has room for a KiB about each function");
const _: () = assert!(RPC_MODULE_CHUNK_BYTES + 16 <= RPC_PAYLOAD_BYTES_MAX);
const _: () = assert!(SNAPSHOT_KEYS_MAX * (KEY_BYTES_MAX + 1) <= u16::MAX as usize, "a list of keys has a 16-bit length");
const _: () = assert!(KEPT_UNUSED_FILES_MIN < KEPT_UNUSED_FILES_MAX);
const _: () = assert!(RPC_PING_MS * 3 < RPC_SILENCE_MS_MAX, "three lost pings are no silence yet");

/// Milliseconds to wait after so many failures before: twice as long each time, within those bounds.
pub fn timer_retry_ms(failures: u32) -> u32 {
    TIMER_RETRY_MS_MIN.saturating_mul(1 << failures.min(16)).min(TIMER_RETRY_MS_MAX)
}
