/* Sets an output and fails all the same: the client must get the error, not the output. The body, if it has four bytes, is the code. */
#include "../c/xfaas.h"

XFAAS_EXPORT(handle) int32_t handle(void) {
    int32_t code = -559038737; /* 0xDEADBEEF */
    xfaas_read_input(XFAAS_BODY, &code, sizeof code);
    xfaas_set_output("must not be seen", 16);
    return code;
}
