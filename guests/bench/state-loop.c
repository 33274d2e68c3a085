/* `state-loop`: many state accesses in one invocation, so that the cost of one can be told from the cost of the invocation.
 * Body: two little-endian numbers, what to do and how often. Used by `bench state`. */
#include "../c/xfaas.h"

enum { READ_WEAK = 0, RMW_STRONG = 1, WRITE_WEAK = 2 };

#define VALUE_BYTES 16
/* The code of a body that is no such pair, and of a host call that did not do what it should. */
#define BAD_BODY 1
#define BAD_RESULT 2

XFAAS_EXPORT(handle) int32_t handle(void) {
    struct { uint32_t action, count; } todo;
    uint64_t value[VALUE_BYTES / sizeof(uint64_t)] = {0};
    if (xfaas_read_input(XFAAS_BODY, &todo, sizeof todo) != sizeof todo || todo.action > WRITE_WEAK) return BAD_BODY;
    for (uint32_t i = 0; i < todo.count; i++) {
        int32_t mode = todo.action == RMW_STRONG ? XFAAS_STRONG : XFAAS_WEAK;
        if (todo.action != WRITE_WEAK && xfaas_read_state("n", value, VALUE_BYTES, mode) != VALUE_BYTES) return BAD_RESULT;
        if (todo.action == READ_WEAK) continue;
        value[0] += 1;
        if (xfaas_write_state("n", value, VALUE_BYTES, mode) != 0) return BAD_RESULT;
    }
    return xfaas_set_output(value, VALUE_BYTES);
}
