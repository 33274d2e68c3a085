/* `state-size`: weak reads or writes of one value of a given size, many in one invocation, so that the cost of one can be told from the cost of the
 * invocation. Body: three little-endian numbers, what to do, how often, and the value's bytes. Used by `bench paper` for Fig. 1. */
#include "../c/xfaas.h"

enum { READ = 0, WRITE = 1 };

#define VALUE_BYTES_MAX (1 << 20)
/* The code of a body that is no such numbers, and of a host call that did not do what it should. */
#define BAD_BODY 1
#define BAD_RESULT 2

static uint8_t value[VALUE_BYTES_MAX];

XFAAS_EXPORT(handle) int32_t handle(void) {
    struct { uint32_t action, count, bytes; } todo;
    if (xfaas_read_input(XFAAS_BODY, &todo, sizeof todo) != sizeof todo) return BAD_BODY;
    if (todo.action > WRITE || todo.bytes == 0 || todo.bytes > VALUE_BYTES_MAX) return BAD_BODY;
    for (uint32_t i = 0; i < todo.count; i++) {
        if (todo.action == READ) {
            if (xfaas_read_state("v", value, (int32_t)todo.bytes, XFAAS_WEAK) != (int32_t)todo.bytes) return BAD_RESULT;
        } else {
            value[0] += 1;
            if (xfaas_write_state("v", value, (int32_t)todo.bytes, XFAAS_WEAK) != 0) return BAD_RESULT;
        }
    }
    return xfaas_set_output(value, 1);
}
