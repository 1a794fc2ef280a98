/* Compiled once for each instruction set: vectors.h tells how. */
#include "csr.h"
#include "vectors.h"

#include <math.h>
#include <string.h>

#define VECTORS 8 /* sums in registers: as many as hide the latency of a multiply-add */
#define PANEL (VECTORS * LANES)
#define MIRROR 16 /* a square of so many rows and columns is mirrored at a time */

static ptrdiff_t panels(ptrdiff_t c)
{
    return (c + PANEL - 1) / PANEL;
}

static ptrdiff_t whitener_size(ptrdiff_t d, ptrdiff_t c)
{
    return panels(c) * PANEL * d;
}

static ptrdiff_t norms_scratch(void)
{
    return LEV_CSR_ROWS * LANES;
}

/* Rows of panel p of the whitener that can be nonzero. */
INLINE ptrdiff_t panel_depth(ptrdiff_t p, ptrdiff_t d, int triangular)
{
    ptrdiff_t depth = (p + 1) * PANEL;
    return triangular && depth < d ? depth : d;
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

/* Copy the upper triangle of G (d, d) below the diagonal, in squares that stay in cache. */
static void mirror(double *G, ptrdiff_t d)
{
    for (ptrdiff_t i0 = 0; i0 < d; i0 += MIRROR)
        for (ptrdiff_t j0 = i0; j0 < d; j0 += MIRROR) {
            ptrdiff_t rows = i0 + MIRROR < d ? i0 + MIRROR : d, last = j0 + MIRROR < d ? j0 + MIRROR : d;
            for (ptrdiff_t j = j0; j < last; j++)
                for (ptrdiff_t i = i0; i < rows && i < j; i++)
                    G[j * d + i] = G[i * d + j];
        }
}

#define STORED double
#define INDEX int32_t
#define KIND f64_i32
#include "csr_body.h"
#undef INDEX
#undef KIND
#define INDEX int64_t
#define KIND f64_i64
#include "csr_body.h"
#undef STORED
#undef INDEX
#undef KIND
#define STORED float
#define INDEX int32_t
#define KIND f32_i32
#include "csr_body.h"
#undef INDEX
#undef KIND
#define INDEX int64_t
#define KIND f32_i64
#include "csr_body.h"

extern const lev_csr LEV_CAT(lev_csr, LEV_ISA);
const lev_csr LEV_CAT(lev_csr, LEV_ISA) = {
    LEV_STR(LEV_ISA), whitener_size,  norms_scratch,  pack_whitener,  gram_f64_i32,  norms_f64_i32,
    gram_f64_i64,     norms_f64_i64,  gram_f32_i32,   norms_f32_i32,  gram_f32_i64,  norms_f32_i64,
};
