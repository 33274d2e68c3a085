/* Imports a function that the host does not have: the deploy must be refused. */
#include "../c/xfaas.h"

XFAAS_IMPORT(open_the_door) int32_t open_the_door(void);

XFAAS_EXPORT(handle) int32_t handle(void) {
    return open_the_door();
}
