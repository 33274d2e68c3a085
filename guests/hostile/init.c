/* Fills memory in `init`; every call answers with "init INITS calls CALLS": how often `init` ran for this image (1), and how many
 * calls this instance has answered, with a check that the filled memory is there. Returns 1 if it is not. */
#include "../c/xfaas.h"

#define TABLE_BYTES 262144u

static uint8_t table[TABLE_BYTES];
static volatile uint32_t inits = 0;
static volatile uint32_t calls = 0;

static uint8_t pattern(uint32_t i) {
    return (uint8_t)(i * 31u + 7u);
}

XFAAS_EXPORT(init) void init(void) {
    inits += 1;
    for (uint32_t i = 0; i < TABLE_BYTES; i++) table[i] = pattern(i);
}

XFAAS_EXPORT(handle) int32_t handle(void) {
    calls += 1;
    for (uint32_t i = 0; i < TABLE_BYTES; i += 4093) {
        if (table[i] != pattern(i)) return 1;
    }
    char text[] = "init 0 calls 000000";
    text[5] = (char)('0' + inits % 10);
    uint32_t rest = calls;
    for (int32_t place = 18; place > 12; place--) {
        text[place] = (char)('0' + rest % 10);
        rest /= 10;
    }
    return xfaas_set_output(text, sizeof text - 1);
}
