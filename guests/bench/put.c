/* `put`: keeps its body, at most 1 KiB of it, as the value of key `v`. Used by `bench sessions`, for what a session at rest costs. */
#include "../c/xfaas.h"

#define VALUE_BYTES_MAX 1024

XFAAS_EXPORT(handle) int32_t handle(void) {
    uint8_t value[VALUE_BYTES_MAX];
    int32_t length = xfaas_read_input(XFAAS_BODY, value, VALUE_BYTES_MAX);
    return length < 0 ? length : xfaas_write_state("v", value, length < VALUE_BYTES_MAX ? length : VALUE_BYTES_MAX, XFAAS_WEAK);
}
