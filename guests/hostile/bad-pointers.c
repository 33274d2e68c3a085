/* Calls every import with pointers, lengths, keys, modes and arguments that the host must refuse, and checks each answer against
 * CONTRACT section 3. Answers "refused" when all were right; else returns the number of the first wrong one, counted from 1. */
#include "../c/xfaas.h"

#define WASM_PAGE_BYTES 65536u

static int32_t checks = 0;
static int32_t first_wrong = 0;

static void expect(int32_t wanted, int32_t got) {
    checks += 1;
    if (first_wrong == 0 && wanted != got) first_wrong = checks;
}

/* Fills `length` bytes with 'k' and ends them with a NUL. */
static const char *fill_key(char *bytes, int32_t length) {
    for (volatile int32_t i = 0; i < length; i++) bytes[i] = 'k';
    bytes[length] = 0;
    return bytes;
}

static void check_buffers(char *end, char *far) {
    static char buffer[16];
    expect(XFAAS_BAD_ARGUMENT, xfaas_read_input(XFAAS_SESSION, end, 1));               /* 1: one byte past the end */
    expect(XFAAS_BAD_ARGUMENT, xfaas_read_input(XFAAS_SESSION, end - 1, 2));           /* 2: across the end */
    expect(XFAAS_BAD_ARGUMENT, xfaas_read_input(XFAAS_SESSION, far, 16));              /* 3: pointer + length wraps */
    expect(XFAAS_BAD_ARGUMENT, xfaas_read_input(XFAAS_SESSION, buffer, -1));           /* 4: negative length */
    expect(XFAAS_BAD_ARGUMENT, xfaas_read_input(XFAAS_SESSION, buffer, INT32_MIN));    /* 5 */
    expect(XFAAS_BAD_ARGUMENT, xfaas_read_input(5, buffer, 16));                       /* 6: unknown argument */
    expect(XFAAS_BAD_ARGUMENT, xfaas_read_input(-1, buffer, 16));                      /* 7 */
    expect(XFAAS_BAD_ARGUMENT, xfaas_set_output(end, 1));                              /* 8 */
    expect(XFAAS_BAD_ARGUMENT, xfaas_set_output(far, 16));                             /* 9 */
    expect(XFAAS_BAD_ARGUMENT, xfaas_set_output(buffer, -1));                          /* 10 */
    expect(XFAAS_BAD_ARGUMENT, xfaas_set_output(buffer, INT32_MAX));                   /* 11 */
}

static void check_state(char *end, char *far) {
    static char buffer[16];
    expect(XFAAS_BAD_ARGUMENT, xfaas_read_state(end, buffer, 16, XFAAS_WEAK));         /* 12: key outside */
    expect(XFAAS_BAD_ARGUMENT, xfaas_read_state(far, buffer, 16, XFAAS_WEAK));         /* 13 */
    expect(XFAAS_BAD_ARGUMENT, xfaas_read_state("", buffer, 16, XFAAS_WEAK));          /* 14: empty key */
    expect(XFAAS_BAD_ARGUMENT, xfaas_read_state("k", end - 1, 2, XFAAS_STRONG));       /* 15 */
    expect(XFAAS_BAD_ARGUMENT, xfaas_read_state("k", buffer, -1, XFAAS_STRONG));       /* 16 */
    expect(XFAAS_BAD_ARGUMENT, xfaas_read_state("k", buffer, 16, 2));                  /* 17: unknown mode */
    expect(XFAAS_BAD_ARGUMENT, xfaas_read_state("k", buffer, 16, -1));                 /* 18 */
    expect(XFAAS_BAD_ARGUMENT, xfaas_write_state(end, buffer, 16, XFAAS_WEAK));        /* 19 */
    expect(XFAAS_BAD_ARGUMENT, xfaas_write_state("", buffer, 16, XFAAS_WEAK));         /* 20 */
    expect(XFAAS_BAD_ARGUMENT, xfaas_write_state("k", end - 1, 2, XFAAS_STRONG));      /* 21 */
    expect(XFAAS_BAD_ARGUMENT, xfaas_write_state("k", far, 16, XFAAS_STRONG));         /* 22 */
    expect(XFAAS_BAD_ARGUMENT, xfaas_write_state("k", buffer, -1, XFAAS_STRONG));      /* 23 */
    expect(XFAAS_BAD_ARGUMENT, xfaas_write_state("k", buffer, 16, 7));                 /* 24 */
    expect(XFAAS_NOT_FOUND, xfaas_read_state("k", buffer, 16, XFAAS_WEAK));            /* 25: nothing was written */
}

static void check_limits(char *end) {
    static char buffer[16], key[512];
    end[-1] = 'k';
    end[-2] = 'k';
    expect(XFAAS_BAD_ARGUMENT, xfaas_read_state(end - 2, buffer, 16, XFAAS_WEAK));     /* 26: no NUL before the end of memory */
    fill_key(end - 256, 255);
    end[-1] = 'k';
    expect(XFAAS_OVER_LIMIT, xfaas_read_state(end - 256, buffer, 16, XFAAS_WEAK));     /* 27: 256 bytes without a NUL */
    expect(XFAAS_BAD_ARGUMENT, xfaas_read_state(end - 255, buffer, 16, XFAAS_WEAK));   /* 28: one fewer is the end of memory again */
    expect(XFAAS_NOT_FOUND, xfaas_read_state(fill_key(key, 255), buffer, 16, XFAAS_WEAK)); /* 29: the longest key */
    expect(XFAAS_OVER_LIMIT, xfaas_read_state(fill_key(key, 256), buffer, 16, XFAAS_WEAK)); /* 30: one over */
    expect(XFAAS_OVER_LIMIT, xfaas_write_state(fill_key(key, 300), buffer, 16, XFAAS_STRONG)); /* 31 */
}

static void check_sizes(void) {
    /* 8 MiB + 1 byte: one value and one output over their limits. Needs 9 MiB of memory. */
    uintptr_t pages = __builtin_wasm_memory_grow(0, 129);
    if (pages == (uintptr_t)-1) return;
    char *large = (char *)(pages * WASM_PAGE_BYTES);
    expect(XFAAS_OVER_LIMIT, xfaas_write_state("k", large, (1 << 20) + 1, XFAAS_WEAK)); /* 32 */
    expect(XFAAS_OVER_LIMIT, xfaas_set_output(large, (8 << 20) + 1));                  /* 33 */
    expect(0, xfaas_set_output(large, 0));                                             /* 34 */
}

XFAAS_EXPORT(handle) int32_t handle(void) {
    checks = first_wrong = 0;
    char *end = (char *)(__builtin_wasm_memory_size(0) * WASM_PAGE_BYTES);
    char *far = (char *)0xFFFFFFF8u;
    check_buffers(end, far);
    check_state(end, far);
    check_limits(end);
    check_sizes();
    return first_wrong != 0 ? first_wrong : xfaas_set_output("refused", 7);
}
