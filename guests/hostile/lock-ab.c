/* Takes key `a`, then `b`: beside its twin in one app, which takes them the other way, one of two calls must be refused as a deadlock. */
#include "lock-order.h"

XFAAS_EXPORT(handle) int32_t handle(void) {
    return add_to_both("a", "b");
}
