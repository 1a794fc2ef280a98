/* The functions of tiles.c that read rows, once per storage type: numbers of type STORED, which
 * widen_SUFFIX makes float64. */

/* w columns of rows, row r times scale[r] unless scale is NULL, as one packed panel. */
INLINE void LEV_CAT(pack, SUFFIX)(const STORED *from, ptrdiff_t ld, ptrdiff_t rows, ptrdiff_t w,
                                  const double *scale, double *to)
{
    for (ptrdiff_t r = 0; r < rows; r++, to += PANEL, from += ld) {
        if (scale == NULL)
            LEV_CAT(widen, SUFFIX)(from, w, to);
        else {
            double wide[PANEL], factor = scale[r];
            LEV_CAT(widen, SUFFIX)(from, w, wide);
            for (ptrdiff_t j = 0; j < w; j++)
                to[j] = factor * wide[j];
        }
        for (ptrdiff_t j = w; j < PANEL; j++)
            to[j] = 0.0;
    }
}

static void LEV_CAT(gram, SUFFIX)(const void *stored, const double *scale, ptrdiff_t n, ptrdiff_t d,
                                  ptrdiff_t ld, double *G, double *scratch)
{
    const STORED *K = stored;
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
            /* with w a constant no loop over columns is left */
            if (w == PANEL && scale == NULL)
                LEV_CAT(pack, SUFFIX)(from, ld, rows, PANEL, NULL, to);
            else if (w == PANEL)
                LEV_CAT(pack, SUFFIX)(from, ld, rows, PANEL, scale + r0, to);
            else
                LEV_CAT(pack, SUFFIX)(from, ld, rows, w, scale == NULL ? NULL : scale + r0, to);
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
        double s = lane_sum(total[m]);
        out[m] = s == s ? s : (double)INFINITY; /* inf - inf says nothing: it may be anything */
    }
}

/* Rows one after another, zeros after the first `here`, ready to be whitened together. */
INLINE void LEV_CAT(gather, SUFFIX)(const STORED *k, ptrdiff_t ld, ptrdiff_t d, ptrdiff_t here, double *to)
{
    for (ptrdiff_t m = 0; m < here; m++)
        LEV_CAT(widen, SUFFIX)(k + m * ld, d, to + m * d);
    for (ptrdiff_t i = here * d; i < NORM_ROWS * d; i++)
        to[i] = 0.0;
}

static void LEV_CAT(norms, SUFFIX)(const void *stored, ptrdiff_t n, ptrdiff_t d, ptrdiff_t ld,
                                   const double *packed, ptrdiff_t c, int triangular, double *out,
                                   double *scratch)
{
    const STORED *K = stored;
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
        LEV_CAT(gather, SUFFIX)(K + r0 * ld, ld, d, rows, scratch);
        LEV_CAT(whiten_rows, SUFFIX)(scratch, d, packed, d, c, triangular, ahead, lines, s, NULL, NULL);
        for (ptrdiff_t m = 0; m < rows; m++)
            out[r0 + m] = s[m];
    }
}

/* The Gram matrix (c, c) of whitened rows, which exist one tile at a time. */
static void LEV_CAT(whitened_gram, SUFFIX)(const void *stored, const double *scale, ptrdiff_t n, ptrdiff_t d,
                                           ptrdiff_t ld, const double *packed, ptrdiff_t c, int triangular,
                                           double *G, double *scratch)
{
    const STORED *K = stored;
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
            LEV_CAT(gather, SUFFIX)(k, ld, d, here, rows_wide);
            LEV_CAT(whiten_rows, SUFFIX)(rows_wide, d, packed, d, c, triangular, ahead_of(k, 2 * group),
                                         lines, NULL, P + r0 * PANEL, factors);
        }
        gram_tile(P, rows, np, wide, (const char *)packed, 0);
    }
    for (ptrdiff_t i = 0; i < c; i++)
        for (ptrdiff_t j = i; j < c; j++)
            G[i * c + j] = G[j * c + i] = wide[i * width + j];
}

/* The diagonal of gram, to the bit. */
static void LEV_CAT(column_squares, SUFFIX)(const void *stored, const double *scale, ptrdiff_t n,
                                            ptrdiff_t d, ptrdiff_t ld, double *out, double *scratch)
{
    const STORED *K = stored;
    ptrdiff_t np = panels(d);
    double wide[PANEL];
    for (ptrdiff_t j = 0; j < np * PANEL; j++)
        scratch[j] = 0.0;
    for (ptrdiff_t r0 = 0; r0 < n; r0 += TILE) {
        ptrdiff_t rows = n - r0 < TILE ? n - r0 : TILE;
        double *tile = scratch + np * PANEL;
        for (ptrdiff_t j = 0; j < np * PANEL; j++)
            tile[j] = 0.0;
        for (ptrdiff_t r = r0; r < r0 + rows; r++)
            for (ptrdiff_t p = 0; p < np; p++) {
                ptrdiff_t first = p * PANEL, w = d - first < PANEL ? d - first : PANEL;
                const double *factor = scale == NULL ? NULL : scale + r;
                if (w == PANEL && factor == NULL)
                    LEV_CAT(pack, SUFFIX)(K + r * ld + first, ld, 1, PANEL, NULL, wide);
                else
                    LEV_CAT(pack, SUFFIX)(K + r * ld + first, ld, 1, w, factor, wide);
                for (int v = 0; v < PANEL; v += LANES)
                    *(vec *)(tile + first + v) += *(vec *)(wide + v) * *(vec *)(wide + v);
            }
        for (ptrdiff_t j = 0; j < np * PANEL; j++)
            scratch[j] += tile[j];
    }
    for (ptrdiff_t j = 0; j < d; j++)
        out[j] = scratch[j];
}

/* out[j] += sum of (weight_i k_ji)^2, infinite where that is no number. */
static void LEV_CAT(row_squares, SUFFIX)(const void *stored, ptrdiff_t n, ptrdiff_t d, ptrdiff_t ld,
                                         const double *weight, double *out)
{
    const STORED *K = stored;
    ptrdiff_t full = d / PANEL * PANEL;
    for (ptrdiff_t r = 0; r < n; r++) {
        const STORED *k = K + r * ld;
        vec sum[2] = {{0}, {0}};
        double wide[PANEL], last = 0.0;
        __builtin_prefetch(ahead_of(k, 16 * ld * (ptrdiff_t)sizeof(STORED)), 0, 3);
        for (ptrdiff_t i = 0; i < full; i += PANEL) {
            LEV_CAT(widen, SUFFIX)(k + i, PANEL, wide);
            for (int v = 0; v < 2; v++) {
                vec x = *(const vec *)(wide + v * LANES) * *(const vec *)(weight + i + v * LANES);
                sum[v] += x * x;
            }
        }
        LEV_CAT(widen, SUFFIX)(k + full, d - full, wide);
        for (ptrdiff_t i = 0; i < d - full; i++) {
            double x = wide[i] * weight[full + i];
            last += x * x;
        }
        double s = out[r] + (lane_sum(sum[0] + sum[1]) + last);
        out[r] = s == s ? s : (double)INFINITY;
    }
}
