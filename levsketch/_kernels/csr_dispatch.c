#include "csr.h"

#include <string.h>

extern const lev_csr lev_csr_baseline;
#if defined(__x86_64__)
extern const lev_csr lev_csr_avx2;
extern const lev_csr lev_csr_avx512;
#endif

const lev_csr *lev_csr_named(const char *name)
{
    if (!strcmp(name, "baseline"))
        return &lev_csr_baseline;
#if defined(__x86_64__)
    if (!strcmp(name, "avx2"))
        return &lev_csr_avx2;
    if (!strcmp(name, "avx512"))
        return &lev_csr_avx512;
#endif
    return NULL;
}
