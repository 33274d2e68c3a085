/* `table-64mib`: fills 64 MiB in `init`, less a page of wasm, since a module after `init` may have 64 MiB in all; a call reads one byte in each MiB and writes to one page. Used by `bench sessions`: a worker shares
 * with all others what it does not write. Returns 1 if the table is not there. */
#include "../c/xfaas.h"

#define TABLE_BYTES ((64u << 20) - (64u << 10))
#define STEP_BYTES (1u << 20)

static uint8_t table[TABLE_BYTES];

static uint8_t pattern(uint32_t i) {
    return (uint8_t)(i * 31u + 7u) | 1u;
}

XFAAS_EXPORT(init) void init(void) {
    for (uint32_t i = 0; i < TABLE_BYTES; i++) table[i] = pattern(i);
}

XFAAS_EXPORT(handle) int32_t handle(void) {
    for (uint32_t i = 1; i < TABLE_BYTES; i += STEP_BYTES) {
        if (table[i] != pattern(i)) return 1;
    }
    *(volatile uint8_t *)table += 1;
    return xfaas_set_output(table + 1, 1);
}
