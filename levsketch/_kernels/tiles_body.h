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

/* Squared norms of NORM_ROWS whitened rows at once; z = k W is never stored. Meanwhile
 * `lines` cache lines of later rows are fetched: rows are too far apart for the processor
 * to guess them, and two thirds of the time went by in waiting. */
INLINE void LEV_CAT(norm_rows, SUFFIX)(const double *k, ptrdiff_t ld, const double *w, ptrdiff_t d,
                                       ptrdiff_t c, int triangular, const char *ahead,
                                       ptrdiff_t lines, double *out)
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
        for (int m = 0; m < NORM_ROWS; m++)
            total[m] += z[m][0] * z[m][0] + z[m][1] * z[m][1];
    }
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
            LEV_CAT(norm_rows, SUFFIX)((const double *)(const void *)(K + r0 * ld), ld, packed, d, c,
                                       triangular, ahead, lines, out + r0);
            continue;
        }
        for (ptrdiff_t m = 0; m < NORM_ROWS; m++)
            for (ptrdiff_t i = 0; i < d; i++)
                scratch[m * d + i] = m < rows ? (double)K[(r0 + m) * ld + i] : 0.0;
        LEV_CAT(norm_rows, SUFFIX)(scratch, d, packed, d, c, triangular, ahead, lines, s);
        for (ptrdiff_t m = 0; m < rows; m++)
            out[r0 + m] = s[m];
    }
}
