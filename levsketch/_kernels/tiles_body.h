/* The functions of tiles.c that read rows, once per storage type STORED. */

static void LEV_CAT(gram, SUFFIX)(const STORED *K, const double *scale, ptrdiff_t n, ptrdiff_t d, ptrdiff_t ld,
                                  double *G, double *scratch)
{
    ptrdiff_t np = panels(d), width = np * PANEL;
    double *P = scratch, *wide = scratch + TILE * width;
    for (ptrdiff_t i = 0; i < width * width; i++)
        wide[i] = 0.0;
    for (ptrdiff_t r0 = 0; r0 < n; r0 += TILE) {
        ptrdiff_t rows = n - r0 < TILE ? n - r0 : TILE;
        for (ptrdiff_t p = 0; p < np; p++) {
            ptrdiff_t first = p * PANEL, w = d - first < PANEL ? d - first : PANEL;
            double *to = P + p * TILE * PANEL;
            const STORED *from = K + r0 * ld + first;
            if (scale != NULL)
                for (ptrdiff_t r = 0; r < rows; r++, to += PANEL, from += ld)
                    for (ptrdiff_t j = 0; j < PANEL; j++)
                        to[j] = j < w ? scale[r0 + r] * (double)from[j] : 0.0;
            else if (w == PANEL)
                for (ptrdiff_t r = 0; r < rows; r++, to += PANEL, from += ld)
                    for (int j = 0; j < PANEL; j++)
                        to[j] = (double)from[j];
            else
                for (ptrdiff_t r = 0; r < rows; r++, to += PANEL, from += ld)
                    for (ptrdiff_t j = 0; j < PANEL; j++)
                        to[j] = j < w ? (double)from[j] : 0.0;
        }
        ptrdiff_t bytes = rows * ld * (ptrdiff_t)sizeof(STORED);
        gram_tile(P, rows, np, wide, ahead_of(K + r0 * ld, bytes), bytes);
    }
    for (ptrdiff_t i = 0; i < d; i++)
        for (ptrdiff_t j = i; j < d; j++)
            G[i * d + j] = G[j * d + i] = wide[i * width + j];
}

/* NORM_ROWS whitened rows z = k W at once: their squared norms, or, with `z_out`, themselves,
 * row m times scale[m], as rows of a packed tile (norms are then not written). Meanwhile
 * `lines` cache lines of later rows are fetched: rows are too far apart for the processor
 * to guess them, and two thirds of the time went by in waiting. */
INLINE void LEV_CAT(whiten_rows, SUFFIX)(const double *k, ptrdiff_t ld, const double *w, ptrdiff_t d,
                                       ptrdiff_t c, int triangular, const char *ahead,
                                       ptrdiff_t lines, double *out, double *z_out, const double *scale)
{
    vec total[NORM_ROWS];
    for (int m = 0; m < NORM_ROWS; m++)
        total[m] = (vec){0};
    for (ptrdiff_t p = 0; p < panels(c); p++) {
        ptrdiff_t depth = panel_depth(p, d, triangular), i = 0;
        /* in the last half of a triangular panel the first vector is zero */
        ptrdiff_t full = triangular && depth == (p + 1) * PANEL ? depth - LANES : depth;
        vec z[NORM_ROWS][2];
        for (int m = 0; m < NORM_ROWS; m++)
            z[m][0] = z[m][1] = (vec){0};
        for (; i < full; i++, w += PANEL) {
            if (lines > 0) {
                __builtin_prefetch(ahead, 0, 3);
                ahead = ahead_of(ahead, 64);
                lines--;
            }
            vec w0 = *(const vec *)w, w1 = *(const vec *)(w + LANES);
            for (int m = 0; m < NORM_ROWS; m++) {
                vec x = spread(k[m * ld + i]);
                z[m][0] += x * w0;
                z[m][1] += x * w1;
            }
        }
        for (; i < depth; i++, w += PANEL) {
            vec w1 = *(const vec *)(w + LANES);
            for (int m = 0; m < NORM_ROWS; m++)
                z[m][1] += spread(k[m * ld + i]) * w1;
        }
        if (z_out == NULL)
            for (int m = 0; m < NORM_ROWS; m++)
                total[m] += z[m][0] * z[m][0] + z[m][1] * z[m][1];
        else
            for (int m = 0; m < NORM_ROWS; m++)
                for (int v = 0; v < 2; v++)
                    *(vec *)(z_out + p * TILE * PANEL + m * PANEL + v * LANES) = spread(scale[m]) * z[m][v];
    }
    if (z_out != NULL)
        return;
    for (int m = 0; m < NORM_ROWS; m++) {
        double s = 0.0;
        for (int l = 0; l < LANES; l++)
            s += total[m][l];
        out[m] = s == s ? s : (double)INFINITY; /* inf - inf says nothing: it may be anything */
    }
}

static void LEV_CAT(norms, SUFFIX)(const STORED *K, ptrdiff_t n, ptrdiff_t d, ptrdiff_t ld,
                                   const double *packed, ptrdiff_t c, int triangular, double *out,
                                   double *scratch)
{
    double s[NORM_ROWS];
    ptrdiff_t group = NORM_ROWS * ld * (ptrdiff_t)sizeof(STORED), lines = (group + 63) / 64;
    for (ptrdiff_t r0 = 0; r0 < n; r0 += NORM_ROWS) {
        ptrdiff_t rows = n - r0 < NORM_ROWS ? n - r0 : NORM_ROWS;
        const char *ahead = ahead_of(K + r0 * ld, 2 * group);
        if (rows == NORM_ROWS && sizeof(STORED) == sizeof(double)) {
            LEV_CAT(whiten_rows, SUFFIX)((const double *)(const void *)(K + r0 * ld), ld, packed, d, c,
                                       triangular, ahead, lines, out + r0, NULL, NULL);
            continue;
        }
        for (ptrdiff_t m = 0; m < NORM_ROWS; m++)
            for (ptrdiff_t i = 0; i < d; i++)
                scratch[m * d + i] = m < rows ? (double)K[(r0 + m) * ld + i] : 0.0;
        LEV_CAT(whiten_rows, SUFFIX)(scratch, d, packed, d, c, triangular, ahead, lines, s, NULL, NULL);
        for (ptrdiff_t m = 0; m < rows; m++)
            out[r0 + m] = s[m];
    }
}

/* The Gram matrix (c, c) of whitened rows, which exist one tile at a time. */
static void LEV_CAT(whitened_gram, SUFFIX)(const STORED *K, const double *scale, ptrdiff_t n, ptrdiff_t d,
                                           ptrdiff_t ld, const double *packed, ptrdiff_t c, int triangular,
                                           double *G, double *scratch)
{
    ptrdiff_t np = panels(c), width = np * PANEL, step = TILE / NORM_ROWS * NORM_ROWS;
    ptrdiff_t group = NORM_ROWS * ld * (ptrdiff_t)sizeof(STORED), lines = (group + 63) / 64;
    double *P = scratch, *wide = P + TILE * width, *rows_wide = wide + width * width;
    for (ptrdiff_t i = 0; i < width * width; i++)
        wide[i] = 0.0;
    for (ptrdiff_t t0 = 0; t0 < n; t0 += step) {
        ptrdiff_t rows = n - t0 < step ? n - t0 : step;
        for (ptrdiff_t r0 = 0; r0 < rows; r0 += NORM_ROWS) {
            ptrdiff_t here = rows - r0 < NORM_ROWS ? rows - r0 : NORM_ROWS;
            const STORED *k = K + (t0 + r0) * ld;
            double factors[NORM_ROWS];
            for (ptrdiff_t m = 0; m < NORM_ROWS; m++)
                factors[m] = m >= here ? 0.0 : scale == NULL ? 1.0 : scale[t0 + r0 + m];
            for (ptrdiff_t m = 0; m < NORM_ROWS; m++)
                for (ptrdiff_t i = 0; i < d; i++)
                    rows_wide[m * d + i] = m < here ? (double)k[m * ld + i] : 0.0;
            LEV_CAT(whiten_rows, SUFFIX)(rows_wide, d, packed, d, c, triangular, ahead_of(k, 2 * group),
                                         lines, NULL, P + r0 * PANEL, factors);
        }
        gram_tile(P, rows, np, wide, (const char *)packed, 0);
    }
    for (ptrdiff_t i = 0; i < c; i++)
        for (ptrdiff_t j = i; j < c; j++)
            G[i * c + j] = G[j * c + i] = wide[i * width + j];
}
