/* Calls itself without end, with little of its own stack, so that the host's stack is what runs out. */
#include "../c/xfaas.h"

static volatile int32_t never = 0;

/* Adding after the call keeps the compiler from making a loop of it. */
__attribute__((noinline)) static int32_t deeper(int32_t depth) {
    return never ? depth : deeper(depth + 1) + never + 1;
}

XFAAS_EXPORT(handle) int32_t handle(void) {
    return deeper(0);
}
