/* Sets as many bytes as the body says (four bytes LE; none: the 8 MiB limit), and returns the host's refusal if there is one. */
#include "../c/xfaas.h"

#define WASM_PAGE_BYTES 65536u

XFAAS_EXPORT(handle) int32_t handle(void) {
    uint32_t output_bytes = 8u << 20;
    xfaas_read_input(XFAAS_BODY, &output_bytes, sizeof output_bytes);
    uintptr_t memory_bytes = __builtin_wasm_memory_size(0) * WASM_PAGE_BYTES;
    if (output_bytes > memory_bytes) {
        uintptr_t missing = output_bytes - memory_bytes;
        uintptr_t missing_pages = missing / WASM_PAGE_BYTES + (missing % WASM_PAGE_BYTES != 0);
        if (__builtin_wasm_memory_grow(0, missing_pages) == (uintptr_t)-1) return XFAAS_OVER_LIMIT;
    }
    return xfaas_set_output((const void *)0, (int32_t)output_bytes);
}
