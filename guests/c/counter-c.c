/* `counter-c`: counter-rmw-linear in C. Adds 1 to the decimal text of key `n` in a critical section and answers with the new text. */
#include "xfaas.h"

/* Bytes of the longest 64-bit number. */
#define DIGITS_MAX 20
/* The code a client sees when `n` holds something else than a number that 1 can be added to. */
#define NOT_A_COUNTER 1

static int32_t parse(const uint8_t *digits, int32_t length, uint64_t *number) {
    uint64_t sum = 0;
    if (length == 0 || length > DIGITS_MAX) return 0;
    for (int32_t i = 0; i < length; i++) {
        uint8_t digit = digits[i] - '0';
        if (digit > 9 || sum > (UINT64_MAX - digit) / 10) return 0;
        sum = sum * 10 + digit;
    }
    *number = sum;
    return 1;
}

XFAAS_EXPORT(handle) int32_t handle(void) {
    uint8_t text[DIGITS_MAX];
    uint64_t count = 0;
    int32_t length = xfaas_read_state("n", text, sizeof text, XFAAS_STRONG);
    if (length < 0 && length != XFAAS_NOT_FOUND) return length;
    if (length >= 0 && (!parse(text, length, &count) || count == UINT64_MAX)) return NOT_A_COUNTER;
    count += 1;

    int32_t start = DIGITS_MAX;
    do {
        text[--start] = (uint8_t)('0' + count % 10);
        count /= 10;
    } while (count > 0);

    int32_t result = xfaas_write_state("n", text + start, DIGITS_MAX - start, XFAAS_STRONG);
    return result < 0 ? result : xfaas_set_output(text + start, DIGITS_MAX - start);
}
