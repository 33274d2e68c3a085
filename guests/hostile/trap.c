/* Traps at once. The write before it is finished, so it stays (unless the function was deployed --atomic). */
#include "../c/xfaas.h"

XFAAS_EXPORT(handle) int32_t handle(void) {
    xfaas_write_state("before-trap", "done", 4, XFAAS_WEAK);
    __builtin_trap();
}
