#include "tiles.h"

#include <string.h>

extern const lev_tiles lev_tiles_baseline;
#if defined(__x86_64__)
#include <cpuid.h>

extern const lev_tiles lev_tiles_avx2;
extern const lev_tiles lev_tiles_avx512;

/* Asked of the processor itself: __builtin_cpu_supports knows this one in newer compilers only.
 * That the system saves its registers is what asking for AVX2 tells. */
static int has_f16c(void)
{
    unsigned int a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

/* The fastest table that this processor runs, or the one named; NULL when the
 * name is unknown or the processor lacks that instruction set. */
const lev_tiles *lev_tiles_select(const char *forced)
{
    const lev_tiles *able[3];
    int count = 0;
    able[count++] = &lev_tiles_baseline;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c()) {
        able[count++] = &lev_tiles_avx2;
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl")
            && __builtin_cpu_supports("avx512dq"))
            able[count++] = &lev_tiles_avx512;
    }
#endif
    if (!forced || !*forced)
        return able[count - 1];
    for (int i = 0; i < count; i++)
        if (!strcmp(able[i]->name, forced))
            return able[i];
    return NULL;
}
