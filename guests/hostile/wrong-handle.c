/* Exports a `handle` that takes an argument: the deploy must be refused. */
#include "../c/xfaas.h"

XFAAS_EXPORT(handle) int32_t handle(int32_t argument) {
    return argument;
}
