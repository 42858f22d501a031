/* few.inc.h -- scores and values for a few rows (decoding): one query, or a group of heads, would leave most lanes empty.
 *
 * Keys are in the lanes of the scores, dimensions in those of the outputs; both are turned into the panels that the
 * other passes know. Every sum is the same chain as in tile.inc.h, so the bits are the same, and a key or value is read
 * once, row by row, as memory likes it. */

enum { FEW_ROWS = 8 };

/* Fetches row i of what the next pass will read, into the second cache: memory never waits for arithmetic. */
INLINE void fetch_row(const struct ahead *ahead, ptrdiff_t i)
{
    for (ptrdiff_t at = 0; at < ahead->bytes; at += 64)
        __builtin_prefetch(ahead->data + i * ahead->row + at, 0, 2);
}

/* LANES keys' scores of `count` rows: sums[row] has a key in each lane. query: dim x width, as in the panel. */
INLINE void few_scores_tile(const int count, const struct operand keys, ptrdiff_t key, ptrdiff_t n, ptrdiff_t dim,
                            const real *query, ptrdiff_t width, struct ahead ahead, vreal sums[FEW_ROWS])
{
    vreal chain[FEW_ROWS];
    ptrdiff_t fetched = 0;
#pragma GCC unroll 8
    for (int r = 0; r < count; ++r)
        chain[r] = sums[r] = vsplat(0.0f);
    for (ptrdiff_t d = 0; d < dim; d += LANES) {
        vreal tile[LANES];
        ptrdiff_t dims = smaller(LANES, dim - d);
        for (int i = 0; i < LANES; ++i) {
            const char *row = keys.data + smaller(i, n - 1) * keys.row + d * (ptrdiff_t)sizeof(real);
            tile[i] = dims == LANES ? vload((const real *)row) : vload_first((const real *)row, dims);
        }
        vtranspose(tile);
        for (; fetched < n && fetched * dim < LANES * (d + LANES); ++fetched)
            fetch_row(&ahead, key + fetched);
        for (ptrdiff_t j = 0; j < dims; ++j) {
#pragma GCC unroll 8
            for (int r = 0; r < count; ++r)
                chain[r] = vfma(tile[j], vsplat(query[(d + j) * width + r]), chain[r]);
        }
        if ((d + LANES) % SCORE_CHAIN == 0 || d + LANES >= dim) {
#pragma GCC unroll 8
            for (int r = 0; r < count; ++r) {
                if (d < SCORE_CHAIN)
                    sums[r] = chain[r];
                else
                    sums[r] += chain[r];
                chain[r] = vsplat(0.0f);
            }
        }
    }
}

INLINE void few_scores_of(const int count, struct operand keys, ptrdiff_t n, ptrdiff_t dim, const real *query,
                          struct panel scores, struct ahead ahead)
{
    for (ptrdiff_t k = 0; k < n; k += LANES) {
        vreal sums[FEW_ROWS], turned[LANES];
        ptrdiff_t some = smaller(LANES, n - k);
        few_scores_tile(count, keys, k, some, dim, query, LANES, ahead, sums);
        for (int i = 0; i < LANES; ++i)
            turned[i] = sums[i < count ? i : 0]; /* lanes without a row: anything */
        vtranspose(turned);
        for (ptrdiff_t j = 0; j < some; ++j)
            vstore(scores.data + (k + j) * scores.stride, turned[j]);
        keys.data += LANES * keys.row;
    }
}

/* One vector of rows: scores[key, lane], like multiply_long. */
static void few_scores(ptrdiff_t rows, struct operand keys, ptrdiff_t n, ptrdiff_t dim, const real *query,
                       struct panel scores, struct ahead ahead)
{
    if (rows == 1)
        few_scores_of(1, keys, n, dim, query, scores, ahead);
    else if (rows == 2)
        few_scores_of(2, keys, n, dim, query, scores, ahead);
    else if (rows <= 4)
        few_scores_of(4, keys, n, dim, query, scores, ahead);
    else
        few_scores_of(LANES < 8 ? 4 : 8, keys, n, dim, query, scores, ahead);
}

/* Chains of the n keys of a block for `count` rows and `vectors` vectors of dimensions from `values` on. */
INLINE void few_values_tile(const int count, const int vectors, struct operand values, ptrdiff_t n, ptrdiff_t dims,
                            struct panel weights, struct ahead ahead, real *sums)
{
    vreal sum[FEW_ROWS * 8];
#pragma GCC unroll 64
    for (int i = 0; i < count * vectors; ++i)
        sum[i] = vsplat(0.0f);
    int whole = dims == vectors * LANES;
    for (ptrdiff_t k = 0; k < n; ++k) {
        const char *row = values.data + k * values.col;
        fetch_row(&ahead, k);
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) {
            const real *at = (const real *)row + v * LANES;
            vreal value = whole ? vload(at) : vload_first(at, larger(0, smaller(LANES, dims - v * LANES)));
#pragma GCC unroll 8
            for (int r = 0; r < count; ++r)
                sum[v * count + r] = vfma(value, vsplat(weights.data[k * weights.stride + r]), sum[v * count + r]);
        }
    }
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v)
#pragma GCC unroll 8
        for (int r = 0; r < count; ++r)
            vstore(sums + (v * FEW_ROWS + r) * LANES, sum[v * count + r]);
}

/* outputs[dim, lane] = the chains, or outputs * rescale + the chains: turned, vector by vector. Returns the dims done. */
INLINE ptrdiff_t few_values_of(const int count, const int vectors, struct operand values, ptrdiff_t n, ptrdiff_t dim,
                               struct panel weights, struct panel outputs, const real *rescale, struct ahead ahead)
{
    real sums[8 * FEW_ROWS * LANES];
    ptrdiff_t dims = smaller(vectors * LANES, dim);
    few_values_tile(count, vectors, values, n, dims, weights, ahead, sums);
    for (ptrdiff_t v = 0; v * LANES < dims; ++v) {
        vreal turned[LANES];
        for (int i = 0; i < LANES; ++i)
            turned[i] = vload(sums + (v * FEW_ROWS + (i < count ? i : 0)) * LANES);
        vtranspose(turned);
        for (ptrdiff_t j = 0; j < smaller(LANES, dims - v * LANES); ++j) {
            real *at = outputs.data + (v * LANES + j) * outputs.stride;
            if (rescale) turned[j] = vfma(vload(at), vload(rescale), turned[j]);
            vstore(at, turned[j]);
        }
    }
    return dims;
}

/* As many vectors of dimensions at a time as registers hold. */
INLINE void few_values_by(const int count, const int vectors, struct operand values, ptrdiff_t n, ptrdiff_t dim,
                          struct panel weights, struct panel outputs, const real *rescale, struct ahead ahead)
{
    while (dim > 0) {
        ptrdiff_t done;
        if (dim >= vectors * LANES)
            done = few_values_of(count, vectors, values, n, dim, weights, outputs, rescale, ahead);
        else if (vectors > 4 && dim >= 4 * LANES)
            done = few_values_of(count, vectors > 4 ? 4 : 1, values, n, dim, weights, outputs, rescale, ahead);
        else
            done = few_values_of(count, 1, values, n, dim, weights, outputs, rescale, ahead);
        ahead.bytes = 0; /* once is enough */
        dim -= done;
        values.data += done * (ptrdiff_t)sizeof(real);
        outputs.data += done * outputs.stride;
    }
}

static void few_values(ptrdiff_t rows, struct operand values, ptrdiff_t n, ptrdiff_t dim, struct panel weights,
                       struct panel outputs, const real *rescale, struct ahead ahead)
{
    if (rows == 1)
        few_values_by(1, 8, values, n, dim, weights, outputs, rescale, ahead);
    else if (rows == 2)
        few_values_by(2, MAX_NV > 2 ? 8 : 4, values, n, dim, weights, outputs, rescale, ahead);
    else if (rows <= 4)
        few_values_by(4, MAX_NV > 2 ? 4 : 2, values, n, dim, weights, outputs, rescale, ahead);
    else
        few_values_by(LANES < 8 ? 4 : 8, MAX_NV > 2 ? 2 : 1, values, n, dim, weights, outputs, rescale, ahead);
}

/* Is the panel one of few rows, and are the rows of this operand contiguous? */
static int few(const struct lanes *p, ptrdiff_t col)
{
    return TERMS == 1 && p->nv == 1 && p->rows <= smaller(LANES, FEW_ROWS) && col == (ptrdiff_t)sizeof(real);
}
