/* What a C function on xfaas uses: the four host calls of the paper's Table 1, those beyond it, and their numbers (CONTRACT
 * section 3).
 *
 * A guest exports `handle`, perhaps `init`, which runs once before the image that workers are forked from is taken and may call
 * no import, and perhaps `hook`, an `int32_t hook(void)` whose output is the request's session ID, where the app's hint is `hook`.
 * Build with clang and wasm-ld, no C library needed:
 *
 *   clang --target=wasm32 -O2 -ffreestanding -nostdlib -Wl,--no-entry -Wl,--stack-first -Wl,-z,stack-size=18432 -o NAME.wasm NAME.c
 */
#ifndef XFAAS_H
#define XFAAS_H

#include <stdint.h>

/* Any import of the host. */
#define XFAAS_IMPORT(name) __attribute__((import_module("xfaas"), import_name(#name)))
/* Any function that the host calls: `XFAAS_EXPORT(handle) int32_t handle(void) { ... }`. */
#define XFAAS_EXPORT(name) __attribute__((export_name(#name)))

/* Arguments of `read_input`. */
enum {
    XFAAS_BODY = 0,
    XFAAS_SESSION = 1,
    XFAAS_METHOD = 2,
    XFAAS_PATH = 3, /* after the function's name, with its leading '/'; empty if nothing follows */
    XFAAS_QUERY = 4, /* without '?' */
    XFAAS_HEADERS = 5 /* in hook() only: the header lines as they came; XFAAS_SESSION is XFAAS_NOT_FOUND there */
};

/* Modes of `read_state` and `write_state`. */
enum {
    XFAAS_WEAK = 0,  /* atomic per key, no order promised, never waits */
    XFAAS_STRONG = 1 /* the read opens a critical section on the key, the write closes it; over 1,024 open ones are XFAAS_OVER_LIMIT */
};

/* Results below zero. */
enum {
    XFAAS_NOT_FOUND = -1,
    XFAAS_BAD_ARGUMENT = -2,
    XFAAS_OVER_LIMIT = -3,
    XFAAS_DEADLOCK = -4,
    XFAAS_UNREACHABLE = -5
};

/* Copies at most `buffer_bytes` of the argument. Returns its full length in bytes, or an error. */
XFAAS_IMPORT(read_input) int32_t xfaas_read_input(int32_t argument, void *buffer, int32_t buffer_bytes);

/* Makes the bytes the reply; the last call wins. Returns 0 or an error. At most 8 MiB. */
XFAAS_IMPORT(set_output) int32_t xfaas_set_output(const void *buffer, int32_t buffer_bytes);

/* Copies at most `buffer_bytes` of the key's value. `key`: 1-255 bytes and a NUL. Returns the value's full length, or an error;
 * XFAAS_NOT_FOUND for a missing key, and with XFAAS_STRONG the section is open all the same. */
XFAAS_IMPORT(read_state) int32_t xfaas_read_state(const char *key, void *buffer, int32_t buffer_bytes, int32_t mode);

/* Replaces the key's value, at most 1 MiB. Returns 0 or an error, and after an error nothing changed. */
XFAAS_IMPORT(write_state) int32_t xfaas_write_state(const char *key, const void *value, int32_t value_bytes, int32_t mode);

/* Length that stands for a missing key in the answer of `xfaas_snapshot_read`. */
#define XFAAS_SNAPSHOT_MISSING 0xFFFFFFFFu

/* Reads 1-64 keys as they are at one moment. `keys`: the keys one after another, each with its NUL ("a\0b" as a C string literal: its own
 * NUL is the last). The answer holds for each key a little-endian uint32 length, or XFAAS_SNAPSHOT_MISSING, and the value's bytes. Copies
 * at most `buffer_bytes` of it. Returns its full length, or an error. */
XFAAS_IMPORT(snapshot_read) int32_t xfaas_snapshot_read(const char *keys, int32_t keys_bytes, void *buffer, int32_t buffer_bytes);

/* Reads a value of another session of the app, weakly: as `xfaas_read_state` with XFAAS_WEAK. `session`: 1-64 bytes and a NUL. The function must have
 * been deployed with --read-sessions, else it returns XFAAS_BAD_ARGUMENT. */
XFAAS_IMPORT(read_session) int32_t xfaas_read_session(const char *session, const char *key, void *buffer, int32_t buffer_bytes);

/* Runs this function again, in this session and with the payload (at most 4,096 bytes) as its body, when `at_ms` has come (milliseconds since
 * 1970-01-01 UTC): at least once, until it returns 0. Takes the place of the session's timer of the same name. `name`: 1-64 bytes and a NUL.
 * Returns 0 or an error. */
XFAAS_IMPORT(set_timer) int32_t xfaas_set_timer(const char *name, int64_t at_ms, const void *payload, int32_t payload_bytes);

/* Takes the session's timer of that name away. Returns 0 or an error; XFAAS_NOT_FOUND when there is none. */
XFAAS_IMPORT(cancel_timer) int32_t xfaas_cancel_timer(const char *name);

#endif
