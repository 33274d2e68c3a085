/* Two sections, one inside the other, with some work in between, so that calls that take them in opposite orders meet.
 * A call that is refused with XFAAS_DEADLOCK returns that code; its locks end with it. */
#include "../c/xfaas.h"

/* Turns between the two locks: some milliseconds, which is longer than one time slice. */
#define TURNS_BETWEEN 3000000u

static int32_t add_one(const char *key, uint32_t *value) {
    *value += 1;
    return xfaas_write_state(key, value, sizeof *value, XFAAS_STRONG);
}

/* Adds 1 to both keys (four bytes LE) in one section over both, and answers with the second. */
static int32_t add_to_both(const char *first, const char *second) {
    uint32_t first_value = 0, second_value = 0;
    int32_t result = xfaas_read_state(first, &first_value, sizeof first_value, XFAAS_STRONG);
    if (result < 0 && result != XFAAS_NOT_FOUND) return result;
    for (volatile uint32_t turns = 0; turns < TURNS_BETWEEN; turns++) {
    }
    result = xfaas_read_state(second, &second_value, sizeof second_value, XFAAS_STRONG);
    if (result < 0 && result != XFAAS_NOT_FOUND) return result;
    result = add_one(second, &second_value);
    if (result == 0) result = add_one(first, &first_value);
    return result != 0 ? result : xfaas_set_output(&second_value, sizeof second_value);
}
