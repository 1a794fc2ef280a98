/* Compiled once for each instruction set: vectors.h tells how. */
#include "tiles.h"
#include "vectors.h"

#include <math.h>

/* Registers: GRAM_ROWS x 2 and NORM_ROWS x 2 vector accumulators. */
#if defined(__AVX512F__)
#define GRAM_ROWS 8
#define NORM_ROWS 12
#elif defined(__AVX2__)
#define GRAM_ROWS 4
#define NORM_ROWS 6
#else
#define GRAM_ROWS 4
#define NORM_ROWS 4
#endif

#define PANEL (2 * LANES) /* columns in one packed panel */
#define TILE 128          /* rows packed at a time: the panels stay in cache */

#include "tiles_widen.h"

/* The sum of the lanes, in a tree: in order it took a quarter of the time of short rows. */
INLINE double lane_sum(vec v)
{
    typedef double two __attribute__((vector_size(16)));
#if LANES == 8
    typedef double four __attribute__((vector_size(32)));
    four h = __builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7);
    two q = __builtin_shufflevector(h, h, 0, 1) + __builtin_shufflevector(h, h, 2, 3);
#elif LANES == 4
    two q = __builtin_shufflevector(v, v, 0, 1) + __builtin_shufflevector(v, v, 2, 3);
#else
    two q = {v[0], v[1]};
#endif
    return q[0] + q[1];
}

static ptrdiff_t panels(ptrdiff_t d)
{
    return (d + PANEL - 1) / PANEL;
}

static ptrdiff_t gram_scratch(ptrdiff_t d)
{
    ptrdiff_t width = panels(d) * PANEL;
    return width * (TILE + width);
}

static ptrdiff_t norms_scratch(ptrdiff_t d)
{
    return NORM_ROWS * d;
}

static ptrdiff_t whitened_gram_scratch(ptrdiff_t d, ptrdiff_t c)
{
    return gram_scratch(c) + norms_scratch(d);
}

/* Where the rows that come next begin, `bytes` further on, for prefetching: it may lie beyond
 * the end of the array, hence no pointer arithmetic. */
INLINE const char *ahead_of(const void *rows, ptrdiff_t bytes)
{
    return (const char *)((uintptr_t)rows + (uintptr_t)bytes);
}

/* Rows of panel p of the whitener that can be nonzero. */
INLINE ptrdiff_t panel_depth(ptrdiff_t p, ptrdiff_t d, int triangular)
{
    ptrdiff_t depth = (p + 1) * PANEL;
    return triangular && depth < d ? depth : d;
}

static ptrdiff_t whitener_size(ptrdiff_t d, ptrdiff_t c)
{
    return panels(c) * PANEL * d;
}

static void pack_whitener(const double *W, ptrdiff_t d, ptrdiff_t c, int triangular, double *packed)
{
    for (ptrdiff_t p = 0; p < panels(c); p++) {
        ptrdiff_t first = p * PANEL, depth = panel_depth(p, d, triangular);
        for (ptrdiff_t i = 0; i < depth; i++)
            for (ptrdiff_t j = 0; j < PANEL; j++)
                *packed++ = first + j < c ? W[i * c + first + j] : 0.0;
    }
}

/* G (width, width) += A^T B for rows `m` to `m + GRAM_ROWS` of the product;
 * a and b point into packed panels. `skip` leaves out the first vector. While it
 * computes, it fetches `share` cache lines of the rows that are packed next: else
 * packing waits for memory, and that took a third of the time. */
#define GRAM_TILE(skip)                                                           \
    do {                                                                          \
        vec sum[GRAM_ROWS][2];                                                    \
        for (int m = 0; m < GRAM_ROWS; m++)                                       \
            for (int v = skip; v < 2; v++)                                        \
                sum[m][v] = (vec){0};                                             \
        for (ptrdiff_t r = 0; r < n; r++) {                                       \
            if (r < share)                                                        \
                __builtin_prefetch(ahead + 64 * r, 0, 2);                         \
            vec right[2];                                                         \
            for (int v = skip; v < 2; v++)                                        \
                right[v] = *(const vec *)(b + r * PANEL + v * LANES);             \
            for (int m = 0; m < GRAM_ROWS; m++) {                                 \
                vec left = spread(a[r * PANEL + m]);                              \
                for (int v = skip; v < 2; v++)                                    \
                    sum[m][v] += left * right[v];                                 \
            }                                                                     \
        }                                                                         \
        for (int m = 0; m < GRAM_ROWS; m++)                                       \
            for (int v = skip; v < 2; v++)                                        \
                *(vec *)(g + m * width + v * LANES) += sum[m][v];                 \
    } while (0)

static void gram_tile(const double *P, ptrdiff_t n, ptrdiff_t np, double *G, const char *ahead,
                      ptrdiff_t bytes)
{
    ptrdiff_t width = np * PANEL, products = np * (np + 1) / 2 * (PANEL / GRAM_ROWS);
    ptrdiff_t share = (bytes / 64 + products - 1) / products;
    for (ptrdiff_t q = 0; q < np; q++)
        for (ptrdiff_t p = 0; p <= q; p++)
            for (ptrdiff_t m0 = 0; m0 < PANEL; m0 += GRAM_ROWS) {
                const double *a = P + p * TILE * PANEL + m0, *b = P + q * TILE * PANEL;
                double *g = G + (p * PANEL + m0) * width + q * PANEL;
                if (p == q && m0 >= LANES)
                    GRAM_TILE(1); /* that vector lies below the diagonal */
                else
                    GRAM_TILE(0);
                ahead = ahead_of(ahead, 64 * share);
            }
}

#define STORED double
#define SUFFIX f64
#include "tiles_body.h"
#undef STORED
#undef SUFFIX
#define STORED float
#define SUFFIX f32
#include "tiles_body.h"
#undef STORED
#undef SUFFIX
#define STORED uint16_t
#define SUFFIX f16
#include "tiles_body.h"
#undef SUFFIX
#define SUFFIX bf16
#include "tiles_body.h"

extern const lev_tiles LEV_CAT(lev_tiles, LEV_ISA);
const lev_tiles LEV_CAT(lev_tiles, LEV_ISA) = {
    LEV_STR(LEV_ISA),
    gram_scratch,
    whitener_size,
    norms_scratch,
    whitened_gram_scratch,
    pack_whitener,
    {
        [LEV_F64] = {gram_f64, norms_f64, whitened_gram_f64, column_squares_f64, row_squares_f64},
        [LEV_F32] = {gram_f32, norms_f32, whitened_gram_f32, column_squares_f32, row_squares_f32},
        [LEV_F16] = {gram_f16, norms_f16, whitened_gram_f16, column_squares_f16, row_squares_f16},
        [LEV_BF16] = {gram_bf16, norms_bf16, whitened_gram_bf16, column_squares_bf16, row_squares_bf16},
    },
};
