/* Traps in `init`: the deploy must be refused. */
#include "../c/xfaas.h"

XFAAS_EXPORT(init) void init(void) {
    __builtin_trap();
}

XFAAS_EXPORT(handle) int32_t handle(void) {
    return 0;
}
