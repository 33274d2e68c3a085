/* Calls an import in `init`: the deploy must be refused. */
#include "../c/xfaas.h"

XFAAS_EXPORT(init) void init(void) {
    xfaas_set_output("", 0);
}

XFAAS_EXPORT(handle) int32_t handle(void) {
    return 0;
}
