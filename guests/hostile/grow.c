/* Grows its memory until the host says no, touching every page, then answers with the number of pages it has, as four bytes LE. */
#include "../c/xfaas.h"

#define WASM_PAGE_BYTES 65536u

XFAAS_EXPORT(handle) int32_t handle(void) {
    for (;;) {
        uintptr_t old_pages = __builtin_wasm_memory_grow(0, 1);
        if (old_pages == (uintptr_t)-1) break;
        *(volatile uint8_t *)(old_pages * WASM_PAGE_BYTES) = 1;
    }
    uint32_t pages = __builtin_wasm_memory_size(0);
    return xfaas_set_output(&pages, sizeof pages);
}
