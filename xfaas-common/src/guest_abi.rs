//! What a guest module imports and exports, and the numbers that cross that line. CONTRACT.md section 3; paper, Table 1.

/// The import module of every host function.
pub const IMPORT_MODULE: &str = "xfaas";
/// `read_input(arg_index: i32, buf: i32, buf_len: i32) -> i32`
pub const READ_INPUT: &str = "read_input";
/// `set_output(buf: i32, buf_len: i32) -> i32`
pub const SET_OUTPUT: &str = "set_output";
/// `read_state(key: i32, buf: i32, buf_len: i32, mode: i32) -> i32`
pub const READ_STATE: &str = "read_state";
/// `write_state(key: i32, buf: i32, buf_len: i32, mode: i32) -> i32`
pub const WRITE_STATE: &str = "write_state";
/// `snapshot_read(keys: i32, keys_len: i32, buf: i32, buf_len: i32) -> i32`
pub const SNAPSHOT_READ: &str = "snapshot_read";
/// `read_session(session: i32, key: i32, buf: i32, buf_len: i32) -> i32`
pub const READ_SESSION: &str = "read_session";
/// `set_timer(name: i32, at_ms: i64, payload: i32, payload_len: i32) -> i32`
pub const SET_TIMER: &str = "set_timer";
/// `cancel_timer(name: i32) -> i32`
pub const CANCEL_TIMER: &str = "cancel_timer";
/// Stands for the length of a missing key in the answer of `snapshot_read`.
pub const SNAPSHOT_MISSING: u32 = u32::MAX;

/// What every module exports: its memory.
pub const EXPORT_MEMORY: &str = "memory";
/// `handle() -> i32`: one invocation. 0, or a code that makes it a failed one.
pub const EXPORT_HANDLE: &str = "handle";
/// Perhaps `init()`, which runs once, before the image that workers are forked from is taken.
pub const EXPORT_INIT: &str = "init";
/// `hook() -> i32`, of an app whose hint is a hook: sets the output to the request's session ID.
pub const EXPORT_HOOK: &str = "hook";
/// A guest may not export a name that starts so: these are ours.
pub const EXPORT_RESERVED_PREFIX: &str = "xfaas:";

/// Arguments of `read_input`. The body of an HTTP request, a datagram's or a timer's payload.
pub const ARG_BODY: i32 = 0;
/// The session ID; `NOT_FOUND` in `hook`, which is to find it.
pub const ARG_SESSION: i32 = 1;
/// The HTTP method; empty otherwise, as are path and query.
pub const ARG_METHOD: i32 = 2;
/// What follows the function's name in the path, raw, with its leading `/`.
pub const ARG_PATH: i32 = 3;
/// The query, raw, without `?`.
pub const ARG_QUERY: i32 = 4;
/// For `hook` only: the header lines as they came, each with its line end.
pub const ARG_HEADERS: i32 = 5;

/// Weak access: atomic per key, no order promised.
pub const MODE_WEAK: i32 = 0;
/// Strong access: `read_state` .. `write_state` on a key is a critical section.
pub const MODE_STRONG: i32 = 1;

/// Done, where a call has no length to tell.
pub const OK: i32 = 0;
/// There is no such key, timer or argument.
pub const NOT_FOUND: i32 = -1;
/// A pointer, length, mode or index that may not be, or a write from a read-only function or a hook.
pub const BAD_ARGUMENT: i32 = -2;
/// Over a limit; nothing changed.
pub const OVER_LIMIT: i32 = -3;
/// Waiting for this lock would close a circle; locks already held stay held.
pub const DEADLOCK: i32 = -4;
/// Where the session's state is did not answer in time.
pub const UNREACHABLE: i32 = -5;
