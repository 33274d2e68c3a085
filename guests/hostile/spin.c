/* Never returns: the deadline must end it. */
#include "../c/xfaas.h"

XFAAS_EXPORT(handle) int32_t handle(void) {
    volatile uint32_t turns = 0;
    for (;;) turns += 1;
}
