#include "exps.h"

#include <string.h>

extern const lev_exps lev_exps_baseline;
#if defined(__x86_64__)
extern const lev_exps lev_exps_avx2;
extern const lev_exps lev_exps_avx512;
#endif

const lev_exps *lev_exps_named(const char *name)
{
    if (!strcmp(name, "baseline"))
        return &lev_exps_baseline;
#if defined(__x86_64__)
    if (!strcmp(name, "avx2"))
        return &lev_exps_avx2;
    if (!strcmp(name, "avx512"))
        return &lev_exps_avx512;
#endif
    return NULL;
}
