/* Exports a function, but not `handle`: the deploy must be refused. */
#include "../c/xfaas.h"

XFAAS_EXPORT(main) int32_t entry(void) {
    return 0;
}
