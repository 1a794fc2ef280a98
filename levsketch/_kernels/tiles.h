/* Row-tile kernels: the two O(n d^2) passes of a leverage computation.
 *
 * All functions read row-major rows with a leading dimension and work in
 * float64, whatever the storage type. They allocate nothing: the caller hands
 * in scratch of the size that the *_scratch functions name. Every output
 * depends on its own rows only, in a fixed order of additions, so results do
 * not depend on how rows are split between calls or threads.
 */
#ifndef LEVSKETCH_TILES_H
#define LEVSKETCH_TILES_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

/* How numbers of rows are stored; 16-bit ones as the bits in a uint16_t. */
enum { LEV_F64, LEV_F32, LEV_F16, LEV_BF16, LEV_STORED };

/* The passes over rows K that are stored in one way. */
typedef struct {
    /* G (d, d), row-major, = K^T K of n rows, row j first multiplied by scale[j] unless scale is
     * NULL; both triangles are written */
    void (*gram)(const void *K, const double *scale, ptrdiff_t n, ptrdiff_t d, ptrdiff_t ld, double *G,
                 double *scratch);
    /* out[j] = ||k_j W||^2, infinite where infinities cancel */
    void (*norms)(const void *K, ptrdiff_t n, ptrdiff_t d, ptrdiff_t ld, const double *packed, ptrdiff_t c,
                  int triangular, double *out, double *scratch);
    /* G (c, c) = Gram matrix of the rows k_j W, row j times scale[j] unless scale is NULL */
    void (*whitened_gram)(const void *K, const double *scale, ptrdiff_t n, ptrdiff_t d, ptrdiff_t ld,
                          const double *packed, ptrdiff_t c, int triangular, double *G, double *scratch);
    /* out (d,) = the diagonal of gram, with scratch as for gram */
    void (*column_squares)(const void *K, const double *scale, ptrdiff_t n, ptrdiff_t d, ptrdiff_t ld,
                           double *out, double *scratch);
    /* out[j] += the sum of (weight_i k_ji)^2, infinite where that is no number */
    void (*row_squares)(const void *K, ptrdiff_t n, ptrdiff_t d, ptrdiff_t ld, const double *weight,
                        double *out);
} lev_passes;

typedef struct {
    const char *name;
    /* doubles of scratch for gram, of what pack_whitener writes, of scratch for norms and for
     * whitened_gram */
    ptrdiff_t (*gram_scratch)(ptrdiff_t d);
    ptrdiff_t (*whitener_size)(ptrdiff_t d, ptrdiff_t c);
    ptrdiff_t (*norms_scratch)(ptrdiff_t d);
    ptrdiff_t (*whitened_gram_scratch)(ptrdiff_t d, ptrdiff_t c);
    /* lay W (d, c), row-major, out in the order in which passes read it */
    void (*pack_whitener)(const double *W, ptrdiff_t d, ptrdiff_t c, int triangular, double *packed);
    lev_passes passes[LEV_STORED];
} lev_tiles;

/* The table in use; NULL name lookups return NULL. */
const lev_tiles *lev_tiles_select(const char *forced);

/* Scratch on a 64-byte boundary, so that results cannot depend on where an
 * allocation lands. */
static inline double *lev_alloc(ptrdiff_t count)
{
    size_t bytes = ((size_t)count * sizeof(double) / 64 + 1) * 64;
#ifdef _WIN32
    return (double *)_aligned_malloc(bytes, 64);
#else
    return (double *)aligned_alloc(64, bytes);
#endif
}

static inline void lev_free(double *p)
{
#ifdef _WIN32
    _aligned_free(p);
#else
    free(p);
#endif
}

#endif
