/* Vectors of the instruction set that a file is compiled for with -DLEV_ISA=<name>, as tiles.c, exps.c
 * and csr.c are, once for each: what they export is one table, LEV_CAT(name, LEV_ISA). All else in
 * them is static, so that no copy built for a newer processor can be linked into an older path. */
#ifndef LEVSKETCH_VECTORS_H
#define LEVSKETCH_VECTORS_H

#define LEV_CAT_(a, b) a##_##b
#define LEV_CAT(a, b) LEV_CAT_(a, b)
#define LEV_STR_(a) #a
#define LEV_STR(a) LEV_STR_(a)

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX2__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif

#define LANES (VECTOR_BYTES / 8)

typedef double vec __attribute__((vector_size(VECTOR_BYTES), aligned(8), may_alias));

#define INLINE static inline __attribute__((always_inline))

INLINE vec spread(double x)
{
    return x - (vec){0};
}

#endif
