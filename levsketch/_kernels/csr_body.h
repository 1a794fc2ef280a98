/* The functions of csr.c that read rows, once per type STORED of numbers and INDEX of columns. */

/* Entry by entry the sum of the products in the order of the rows: each entry has at most n terms,
 * so its rounding is at most gamma_n |K|^T |K|, as that of any order is. */
static void LEV_CAT(gram, KIND)(const STORED *values, const INDEX *columns, const int64_t *start,
                                const double *scale, ptrdiff_t n, ptrdiff_t d, double *G)
{
    memset(G, 0, (size_t)(d * d) * sizeof(double));
    for (ptrdiff_t r = 0; r < n; r++) {
        int64_t last = start[r + 1];
        double weight = scale == NULL ? 1.0 : scale[r];
        for (int64_t a = start[r]; a < last; a++) {
            double left = weight * (double)values[a], *g = G + (ptrdiff_t)columns[a] * d;
            for (int64_t b = a; b < last; b++)
                g[columns[b]] += left * (weight * (double)values[b]);
        }
    }
    mirror(G, d);
}

/* Panel by panel of the whitener, which stays in cache while all rows meet it. Each entry of k W is
 * a sum in the order of the row's columns, of as many terms as it has. */
static void LEV_CAT(norms, KIND)(const STORED *values, const INDEX *columns, const int64_t *start,
                                 ptrdiff_t n, ptrdiff_t d, const double *packed, ptrdiff_t c, int triangular,
                                 ptrdiff_t most, double *out, double *scratch)
{
    for (ptrdiff_t i = 0; i < n * LANES; i++)
        scratch[i] = 0.0;
    for (ptrdiff_t p = 0; p < panels(c); p++) {
        ptrdiff_t depth = panel_depth(p, d, triangular);
        for (ptrdiff_t r = 0; r < n; r++) {
            int64_t a = start[r], last = start[r + 1];
            if (last - a > most || a == last || columns[a] >= depth)
                continue;
            vec z[VECTORS];
            for (int v = 0; v < VECTORS; v++)
                z[v] = (vec){0};
            for (; a < last && columns[a] < depth; a++) {
                const double *w = packed + (ptrdiff_t)columns[a] * PANEL;
                vec x = spread((double)values[a]);
                for (int v = 0; v < VECTORS; v++)
                    z[v] += x * *(const vec *)(w + v * LANES);
            }
            vec total = *(const vec *)(scratch + r * LANES);
            for (int v = 0; v < VECTORS; v++)
                total += z[v] * z[v];
            *(vec *)(scratch + r * LANES) = total;
        }
        packed += depth * PANEL;
    }
    for (ptrdiff_t r = 0; r < n; r++) {
        if (start[r + 1] - start[r] > most)
            continue;
        double s = 0.0;
        for (ptrdiff_t l = 0; l < LANES; l++)
            s += scratch[r * LANES + l];
        out[r] = s == s ? s : (double)INFINITY; /* inf - inf says nothing: it may be anything */
    }
}
