/* Rows of which only the nonzero numbers are stored (compressed sparse rows).
 *
 * Row r has the numbers values[a] in the columns[a], start[r] <= a < start[r + 1], ascending and
 * none twice; matrices are row-major. Nothing is allocated. What becomes of a row, or of a block of
 * rows, depends on its own numbers only.
 */
#ifndef LEVSKETCH_CSR_H
#define LEVSKETCH_CSR_H

#include <stddef.h>
#include <stdint.h>

/* Rows that `norms` takes at a time at most: its scratch holds their sums. */
#define LEV_CSR_ROWS 256

/* f64 or f32 numbers, i32 or i64 column numbers:
 * gram: G (d, d) = Gram matrix of n rows, each multiplied by its scale first unless that is NULL.
 * norms: out[r] = ||k_r W||^2 for n <= LEV_CSR_ROWS rows, by the packed whitener (d, c); rows of
 * more than `most` numbers are left out. Infinity in place of NaN. */
#define LEV_CSR_FUNCTIONS(STORED, INDEX, KIND)                                                         \
    void (*gram_##KIND)(const STORED *values, const INDEX *columns, const int64_t *start,              \
                        const double *scale, ptrdiff_t n, ptrdiff_t d, double *G);                     \
    void (*norms_##KIND)(const STORED *values, const INDEX *columns, const int64_t *start,             \
                         ptrdiff_t n, ptrdiff_t d, const double *packed, ptrdiff_t c, int triangular,  \
                         ptrdiff_t most, double *out, double *scratch);

typedef struct {
    const char *name;
    ptrdiff_t (*whitener_size)(ptrdiff_t d, ptrdiff_t c); /* doubles */
    ptrdiff_t (*norms_scratch)(void);
    void (*pack_whitener)(const double *W, ptrdiff_t d, ptrdiff_t c, int triangular, double *packed);
    LEV_CSR_FUNCTIONS(double, int32_t, f64_i32)
    LEV_CSR_FUNCTIONS(double, int64_t, f64_i64)
    LEV_CSR_FUNCTIONS(float, int32_t, f32_i32)
    LEV_CSR_FUNCTIONS(float, int64_t, f32_i64)
} lev_csr;

/* The table of a level that lev_tiles_select found to run here; NULL for unknown names. */
const lev_csr *lev_csr_named(const char *name);

#endif
