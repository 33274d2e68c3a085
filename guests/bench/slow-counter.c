/* `slow-counter`: adds 1 to the number of key `n`, and between reading and writing it works for a while. Answers with the new number.
 * Body: two little-endian numbers, the mode and how many turns of work. Used by `bench bursts`. */
#include "../c/xfaas.h"

/* The code of a body that is no such pair, and of a number that is none. */
#define BAD_BODY 1
#define BAD_NUMBER 2

XFAAS_EXPORT(handle) int32_t handle(void) {
    struct { uint32_t mode, turns; } todo;
    uint64_t count = 0;
    if (xfaas_read_input(XFAAS_BODY, &todo, sizeof todo) != sizeof todo || todo.mode > XFAAS_STRONG) return BAD_BODY;
    int32_t length = xfaas_read_state("n", &count, sizeof count, (int32_t)todo.mode);
    if (length != sizeof count && length != XFAAS_NOT_FOUND) return length < 0 ? length : BAD_NUMBER;
    volatile uint32_t work = 0;
    for (uint32_t i = 0; i < todo.turns; i++) work += i;
    count += 1;
    int32_t written = xfaas_write_state("n", &count, sizeof count, (int32_t)todo.mode);
    return written != 0 ? written : xfaas_set_output(&count, sizeof count);
}
