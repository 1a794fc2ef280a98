/* Compiled once for each instruction set: vectors.h tells how. */
#include "exps.h"
#include "vectors.h"

#include <stdint.h>
#include <string.h>

/* Registers: SEEN_ROWS x 4 vector accumulators. */
#if defined(__AVX512F__)
#define SEEN_ROWS 6
#else
#define SEEN_ROWS 2
#endif

typedef int64_t ivec __attribute__((vector_size(VECTOR_BYTES), aligned(8), may_alias));
typedef uint64_t uvec __attribute__((vector_size(VECTOR_BYTES), aligned(8), may_alias));

/* mask ? a : b, lane by lane (in C vectors have no ternary operator) */
INLINE vec choose(ivec mask, vec a, vec b)
{
    return (vec)((mask & (ivec)a) | (~mask & (ivec)b));
}

/* x = k log 2 + r: from the largest power of two that is subtracted, in two steps (Cody and Waite).
 * ROUNDER moves the integer k into the last bits of a sum; HIGH has 21 zeros at its end (fdlibm's
 * split), so that its products with |k| < 2**11 are exact. */
#define ROUNDER 0x1.8p52
#define LOG2_E 0x1.71547652b82fep+0
#define HIGH 0x1.62e42feep-1
#define LOW 0x1.a39ef35793c76p-33

typedef struct {
    vec k, r;
    uvec bits; /* k + the bits of ROUNDER */
} reduced;

INLINE reduced reduce(vec x)
{
    vec sum = x * LOG2_E + ROUNDER;
    vec k = sum - ROUNDER;
    return (reduced){k, (x - k * HIGH) - k * LOW, (uvec)sum};
}

/* (exp(r) - 1 - r) / r^2 for |r| <= 0.3467, a little more than log(2) / 2: interpolated in 11
 * Chebyshev nodes, with 60 digits; relative error 4.8e-18. */
INLINE vec tail(vec r)
{
    vec p = r * 0x1.1f7315649f2d7p-29 + 0x1.af4e092e1705bp-26;
    p = p * r + 0x1.27e4db5bb725ap-22;
    p = p * r + 0x1.71de02225a2f3p-19;
    p = p * r + 0x1.a01a01a6db488p-16;
    p = p * r + 0x1.a01a01abeccc3p-13;
    p = p * r + 0x1.6c16c16c162cfp-10;
    p = p * r + 0x1.11111111100d3p-7;
    p = p * r + 0x1.5555555555556p-5;
    p = p * r + 0x1.5555555555557p-3;
    return p * r + 0.5;
}

/* y 2^k in two steps: neither power leaves the range of normal numbers, and only the second product
 * rounds, where the result is denormal. |k| <= 1100. */
INLINE vec scaled(vec y, uvec bits)
{
    uvec k = bits - (uvec)spread(ROUNDER) + 2048; /* positive: shifts need no sign */
    uvec half = k >> 1;
    vec first = (vec)((half - (1024 - 1023)) << 52), second = (vec)((k - half - (1024 - 1023)) << 52);
    return y * first * second;
}

INLINE vec clamped(vec x)
{
    /* beyond these, exp is 0 or infinite; comparisons with NaN are false and keep it */
    x = choose(x > spread(710.0), spread(710.0), x);
    return choose(x < spread(-746.0), spread(-746.0), x);
}

INLINE vec exp_of(vec x)
{
    reduced at = reduce(clamped(x));
    vec y = at.r * at.r * tail(at.r) + at.r;
    return scaled(1.0 + y, at.bits);
}

/* A vector of which `count` lanes are there, the others `filling`. */
INLINE vec load_some(const double *A, ptrdiff_t count, double filling)
{
    vec x = spread(filling);
    memcpy(&x, A, (size_t)count * sizeof(double));
    return x;
}

INLINE void store_some(double *A, vec x, ptrdiff_t count)
{
    memcpy(A, &x, (size_t)count * sizeof(double));
}

static void exp_all(double *A, ptrdiff_t count)
{
    ptrdiff_t j = 0;
    for (; j + LANES <= count; j += LANES)
        *(vec *)(A + j) = exp_of(*(vec *)(A + j));
    if (j < count)
        store_some(A + j, exp_of(load_some(A + j, count - j, 0.0)), count - j);
}

/* The largest of n > 0 numbers times scale, which are written back; NaN if there is one. */
static double scale_and_top(double *A, ptrdiff_t n, double scale)
{
    const double least = -__builtin_inf();
    vec largest[4];
    ivec missing = {0};
    for (int v = 0; v < 4; v++)
        largest[v] = spread(least);
    ptrdiff_t j = 0;
    for (; j + 4 * LANES <= n; j += 4 * LANES)
        for (int v = 0; v < 4; v++) {
            vec x = *(vec *)(A + j + v * LANES) * scale;
            *(vec *)(A + j + v * LANES) = x;
            largest[v] = choose(x > largest[v], x, largest[v]);
            missing |= x != x;
        }
    for (; j < n; j += LANES) {
        ptrdiff_t count = n - j < LANES ? n - j : LANES;
        vec x = load_some(A + j, count, 0.0) * scale;
        store_some(A + j, x, count);
        x = load_some(A + j, count, least);
        largest[0] = choose(x > largest[0], x, largest[0]);
        missing |= x != x;
    }
    double top = least;
    for (int v = 0; v < 4; v++)
        for (int i = 0; i < LANES; i++)
            top = largest[v][i] > top ? largest[v][i] : top;
    for (int i = 0; i < LANES; i++)
        top = missing[i] ? __builtin_nan("") : top;
    return top;
}

static void softmax(double *A, ptrdiff_t m, ptrdiff_t n, ptrdiff_t ld, double scale, double *top)
{
    for (ptrdiff_t i = 0; i < m; i++, A += ld) {
        top[i] = scale_and_top(A, n, scale);
        vec shift = spread(top[i]);
        ptrdiff_t j = 0;
        for (; j + LANES <= n; j += LANES)
            *(vec *)(A + j) = exp_of(*(vec *)(A + j) - shift);
        if (j < n)
            store_some(A + j, exp_of(load_some(A + j, n - j, 0.0) - shift), n - j);
    }
}

INLINE vec remainder_of(vec x, int order)
{
    reduced at = reduce(clamped(x));
    vec square = at.r * at.r * tail(at.r);
    vec near = square + at.r, far = scaled(1.0 + near, at.bits) - 1.0;
    if (order) {
        near = square;
        far -= x;
    }
    /* where k = 0, r is x, and 1 (and x) need not be added to be taken off again */
    return choose(at.k == spread(0.0), near, far);
}

INLINE void remainder_rows(double *A, ptrdiff_t m, ptrdiff_t n, ptrdiff_t ld, int order, const double *rows,
                           const double *columns)
{
    for (ptrdiff_t i = 0; i < m; i++, A += ld) {
        ptrdiff_t j = 0;
        /* one after the other: the product of both may underflow where that of all does not */
        for (; j + LANES <= n; j += LANES)
            *(vec *)(A + j) = remainder_of(*(vec *)(A + j), order) * rows[i] * *(const vec *)(columns + j);
        if (j < n) {
            vec x = remainder_of(load_some(A + j, n - j, 0.0), order) * rows[i];
            store_some(A + j, x * load_some(columns + j, n - j, 0.0), n - j);
        }
    }
}

static void remainder_all(double *A, ptrdiff_t m, ptrdiff_t n, ptrdiff_t ld, int order, const double *rows,
                          const double *columns)
{
    if (order)
        remainder_rows(A, m, n, ld, 1, rows, columns);
    else
        remainder_rows(A, m, n, ld, 0, rows, columns);
}

/* `pursue` for LEV_PURSUE_COLUMNS columns in `now` (b, LEV_PURSUE_COLUMNS), of which `width` exist. */
static void pursue_columns(double (*restrict now)[LEV_PURSUE_COLUMNS], ptrdiff_t b, ptrdiff_t width,
                           const double *L, const double *known, ptrdiff_t c, double *rest,
                           ptrdiff_t ld_rest, double *left, double floor, double *gain)
{
    enum { W = LEV_PURSUE_COLUMNS, VECTORS = W / LANES };
    double squares[W] = {0}, before[W];
    for (ptrdiff_t i = 0; i < b; i++)
        for (int j = 0; j < W; j += LANES) {
            vec x = *(vec *)(now[i] + j);
            for (ptrdiff_t l = 0; l < i; l++)
                x -= L[i * b + l] * *(vec *)(now[l] + j);
            x *= L[i * b + i];
            *(vec *)(now[i] + j) = x;
            *(vec *)(squares + j) += x * x;
        }
    double sums[W] = {0};
    for (ptrdiff_t q = 0; q < c; q++) {
        double *row = rest + q * ld_rest, *at = row;
        if (width < W) {
            memset(before, 0, sizeof before);
            memcpy(before, row, (size_t)width * sizeof(double));
            at = before;
        }
        vec x[VECTORS];
        for (int v = 0; v < VECTORS; v++)
            x[v] = *(vec *)(at + v * LANES);
        for (ptrdiff_t l = 0; l < b; l++) {
            vec factor = spread(known[l * c + q]);
            for (int v = 0; v < VECTORS; v++)
                x[v] -= factor * *(vec *)(now[l] + v * LANES);
        }
        for (int v = 0; v < VECTORS; v++) {
            *(vec *)(at + v * LANES) = x[v];
            *(vec *)(sums + v * LANES) += x[v] * x[v];
        }
        if (width < W)
            memcpy(row, before, (size_t)width * sizeof(double));
    }
    for (ptrdiff_t j = 0; j < width; j++) {
        double remains = left[j] - squares[j];
        left[j] = remains > 0.0 ? remains : 0.0;
        gain[j] = left[j] > floor ? sums[j] / left[j] : 0.0;
    }
}

/* now[i] -= sum over l of seen[l, i] root[l] for `rows` rows, LEV_PURSUE_COLUMNS columns. */
#define SUBTRACT(rows)                                                            \
    for (int j = 0; j < LEV_PURSUE_COLUMNS; j += 4 * LANES) {                     \
        vec sum[rows][4];                                                         \
        for (int m = 0; m < rows; m++)                                            \
            for (int v = 0; v < 4; v++)                                           \
                sum[m][v] = (vec){0};                                             \
        for (ptrdiff_t l = 0; l < k; l++) {                                       \
            const double *row = root + l * ld + j;                                \
            vec at[4];                                                            \
            for (int v = 0; v < 4; v++)                                           \
                at[v] = *(const vec *)(row + v * LANES);                          \
            for (int m = 0; m < rows; m++) {                                      \
                vec factor = spread(seen[l * b + i + m]);                         \
                for (int v = 0; v < 4; v++)                                       \
                    sum[m][v] += factor * at[v];                                  \
            }                                                                     \
        }                                                                         \
        for (int m = 0; m < rows; m++)                                            \
            for (int v = 0; v < 4; v++)                                           \
                *(vec *)(now[i + m] + j + v * LANES) -= sum[m][v];                \
    }

static void subtract_seen(double (*now)[LEV_PURSUE_COLUMNS], ptrdiff_t b, const double *root, ptrdiff_t k,
                          ptrdiff_t ld, const double *seen)
{
    ptrdiff_t i = 0;
    for (; i + SEEN_ROWS <= b; i += SEEN_ROWS)
        SUBTRACT(SEEN_ROWS)
    for (; i < b; i++)
        SUBTRACT(1)
}

/* The last columns, fewer than a vector register tile, of finished rows: one by one. */
static void subtract_some(double (*now)[LEV_PURSUE_COLUMNS], ptrdiff_t b, ptrdiff_t width, const double *root,
                          ptrdiff_t k, ptrdiff_t ld, const double *seen)
{
    for (ptrdiff_t i = 0; i < b; i++) {
        double sums[LEV_PURSUE_COLUMNS] = {0};
        for (ptrdiff_t l = 0; l < k; l++)
            for (ptrdiff_t j = 0; j < width; j++)
                sums[j] += seen[l * b + i] * root[l * ld + j];
        for (ptrdiff_t j = 0; j < width; j++)
            now[i][j] -= sums[j];
    }
}

static void pursue(double *root, ptrdiff_t k, ptrdiff_t b, ptrdiff_t n, ptrdiff_t ld, const double *seen,
                   const double *L, const double *known, ptrdiff_t c, double *rest, ptrdiff_t ld_rest,
                   double *left, double floor, double *gain)
{
    double now[LEV_PURSUE_ROWS][LEV_PURSUE_COLUMNS] __attribute__((aligned(64)));
    for (ptrdiff_t j = 0; j < n; j += LEV_PURSUE_COLUMNS) {
        ptrdiff_t width = n - j < LEV_PURSUE_COLUMNS ? n - j : LEV_PURSUE_COLUMNS;
        size_t bytes = (size_t)width * sizeof(double);
        if (width < LEV_PURSUE_COLUMNS)
            memset(now, 0, sizeof now);
        for (ptrdiff_t i = 0; i < b; i++)
            memcpy(now[i], root + (k + i) * ld + j, bytes);
        if (k && width == LEV_PURSUE_COLUMNS)
            subtract_seen(now, b, root + j, k, ld, seen);
        else if (k)
            subtract_some(now, b, width, root + j, k, ld, seen);
        pursue_columns(now, b, width, L, known, c, rest + j, ld_rest, left + j, floor, gain + j);
        for (ptrdiff_t i = 0; i < b; i++)
            memcpy(root + (k + i) * ld + j, now[i], bytes);
    }
}

extern const lev_exps LEV_CAT(lev_exps, LEV_ISA);
const lev_exps LEV_CAT(lev_exps, LEV_ISA) = {
    LEV_STR(LEV_ISA), exp_all, softmax, remainder_all, pursue,
};
