/* Opens the section of key `n`, then spins: at its deadline it must lose the lock, and the value must be the old one. */
#include "../c/xfaas.h"

XFAAS_EXPORT(handle) int32_t handle(void) {
    uint8_t value[32];
    volatile uint32_t turns = 0;
    xfaas_read_state("n", value, sizeof value, XFAAS_STRONG);
    for (;;) turns += 1;
}
