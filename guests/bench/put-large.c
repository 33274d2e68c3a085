/* `put-large`: keeps its body, up to 1 MiB, as the value of key `v`; without a body reads that value whole and answers its length as 4 bytes, the
   lowest first. Used by `bench sessions`, for a session whose state has to come from a checkpoint. */
#include "../c/xfaas.h"

#define VALUE_BYTES_MAX (1 << 20)

static uint8_t value[VALUE_BYTES_MAX];

XFAAS_EXPORT(handle) int32_t handle(void) {
    int32_t length = xfaas_read_input(XFAAS_BODY, value, VALUE_BYTES_MAX);
    if (length > 0) {
        return xfaas_write_state("v", value, length < VALUE_BYTES_MAX ? length : VALUE_BYTES_MAX, XFAAS_WEAK);
    }
    length = xfaas_read_state("v", value, VALUE_BYTES_MAX, XFAAS_WEAK);
    return length < 0 ? length : xfaas_set_output(&length, sizeof length);
}
