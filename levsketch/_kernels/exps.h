/* Exponentials of many numbers, and the passes in which kernels of exponentials spend their time.
 *
 * Row-major matrices with a leading dimension, changed in place. Nothing is allocated. What becomes
 * of a number depends on itself, its row and its column only, never on where it lies in memory or
 * how the work is split: the rest of a row that fills no vector goes through a padded one.
 */
#ifndef LEVSKETCH_EXPS_H
#define LEVSKETCH_EXPS_H

#include <stddef.h>

/* Columns that `pursue` handles at a time, and rows that it takes in at most. */
#define LEV_PURSUE_COLUMNS 64
#define LEV_PURSUE_ROWS 16

typedef struct {
    const char *name;
    /* A = exp(A), of count numbers: within 1 ulp or so; 0 from -745.2 down, NaN stays */
    void (*exp)(double *A, ptrdiff_t count);
    /* rows of A (m, n): top[i] = max_j scale a_ij, then a_ij = exp(scale a_ij - top[i]); NaN for a
     * row with a NaN in it; the product is rounded before anything is subtracted */
    void (*softmax)(double *A, ptrdiff_t m, ptrdiff_t n, ptrdiff_t ld, double scale, double *top);
    /* a_ij = rows[i] columns[j] (exp(a_ij) - 1 - order a_ij), without cancellation; order 0 or 1 */
    void (*remainder)(double *A, ptrdiff_t m, ptrdiff_t n, ptrdiff_t ld, int order, const double *rows,
                      const double *columns);
    /* One step of a block Cholesky factorisation and its right-hand sides, for n columns. ROOT has k
     * finished rows (k, n) and below them b rows of the matrix, which become
     * F (b, n) = L^-1 (these - seen^T ROOT_k); then rest (c, n) -= known^T F,
     * left (n) = max(left - squares of F, 0), and gain (n) = squares of rest over left, 0 where
     * left <= floor. seen (k, b); L (b, b) lower triangular, its diagonal inverted; known (b, c);
     * b at most LEV_PURSUE_ROWS. */
    void (*pursue)(double *root, ptrdiff_t k, ptrdiff_t b, ptrdiff_t n, ptrdiff_t ld, const double *seen,
                   const double *L, const double *known, ptrdiff_t c, double *rest, ptrdiff_t ld_rest,
                   double *left, double floor, double *gain);
} lev_exps;

/* The table of a level that lev_tiles_select found to run here; NULL for unknown names. */
const lev_exps *lev_exps_named(const char *name);

#endif
