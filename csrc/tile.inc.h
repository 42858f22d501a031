/* tile.inc.h -- the microkernel behind scores, values and linear layers.
 *
 *   C[rows x NV vectors] (+)= sum over p < depth, in order, of  A[row, p] * B[p, NV vectors]
 *
 * A is broadcast value by value from wherever it lies (any two byte strides, any alignment); B and C are panels:
 * contiguous lanes, a fixed number of floats from one row to the next. Every sum is one chain of fused multiply-adds over
 * p, begun at 0, whatever the tile it falls into: that is the canonical order, and it is why results do not depend on
 * the instruction set, the batch or the thread. Long sums are several chains, added in order: their rounding errors grow
 * with the square root of a chain's length. */

/* A tile is at most 8 rows high: with more, rows 4096 bytes apart would not fit into one set of an 8-way L1 cache. */
#if SA_VECTOR_BYTES == 64 || defined(__aarch64__) /* 32 registers: 24 sums + 4 of B + 1 of A */
enum { MAX_NV = 4 };
#define TILE_ROWS(nv) ((nv) == 4 ? 6 : 8)
#elif SA_FMA /* 16 registers: 12 sums + 2 of B + 1 of A */
enum { MAX_NV = 2 };
#define TILE_ROWS(nv) ((nv) == 2 ? 6 : 8)
#else /* a product needs a register of its own */
enum { MAX_NV = 2 };
#define TILE_ROWS(nv) 4
#endif
enum { MAX_TILE_ROWS = 8, PANEL_LANES = MAX_NV * LANES };

struct operand { /* A */
    const char *data;
    ptrdiff_t row, col; /* bytes */
};
struct panel { /* B or C */
    real *data;
    ptrdiff_t stride; /* floats from row to row */
};

/* A panel that comes from afar is weights, read once for a few rows. A core works some 300 instructions ahead: of wide
 * panels that is enough, of those of AVX2 it is a kilobyte. (Fetched ahead with AVX-512 they are slower.) */
#define FETCH_FAR (SA_VECTOR_BYTES == 32)
enum { FAR_AHEAD = 4096 / (int)sizeof(real) };

INLINE void tile_multiply(const int rows, const int nv, const int far, ptrdiff_t depth, struct operand a, const real *b,
                          ptrdiff_t b_stride, vreal c[MAX_TILE_ROWS][MAX_NV])
{
    for (ptrdiff_t p = 0; p < depth; ++p) {
        if (far) __builtin_prefetch(b + FAR_AHEAD, 0, 3);
        vreal bv[MAX_NV];
#pragma GCC unroll 4
        for (int v = 0; v < nv; ++v)
            bv[v] = vload(b + v * LANES);
#pragma GCC unroll 8
        for (int i = 0; i < rows; ++i) {
            vreal av = vsplat(*(const scalar_any *)(a.data + i * a.row));
#pragma GCC unroll 4
            for (int v = 0; v < nv; ++v)
                c[i][v] = vterm(av, bv[v], c[i][v]);
        }
        a.data += a.col;
        b += b_stride;
    }
}

/* What happens to the sums: they become C, are added to C, are added to C times a factor for each lane; or they become
 * C, or are added to C, and raise the running maximum of each lane. */
enum tile_mode { TILE_STORE, TILE_ADD, TILE_RESCALE, TILE_MAX, TILE_ADD_MAX };

INLINE void tile(const int rows, const int nv, const enum tile_mode mode, const int far, ptrdiff_t depth,
                 struct operand a, const real *b, ptrdiff_t b_stride, struct panel c, vreal lane[MAX_NV])
{
    vreal sum[MAX_TILE_ROWS][MAX_NV];
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < nv; ++v)
            sum[i][v] = vsplat(0.0f);
    tile_multiply(rows, nv, far, depth, a, b, b_stride, sum);
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < nv; ++v) {
            real *at = c.data + i * c.stride + v * LANES;
            if (mode == TILE_ADD || mode == TILE_ADD_MAX) sum[i][v] += vload(at);
            if (mode == TILE_RESCALE) sum[i][v] = vfma(vload(at), lane[v], sum[i][v]);
            vstore(at, sum[i][v]);
            if (mode == TILE_MAX || mode == TILE_ADD_MAX) lane[v] = vmax(sum[i][v], lane[v]);
        }
}

/* Rows that will be wanted soon: while tiles of A are multiplied, the same rows of these are fetched into the cache.
 * (The broadcasts walk several short rows at once, which the hardware's prefetchers do not follow.) */
struct ahead {
    const char *data;
    ptrdiff_t row, bytes; /* from row to row; of one row, 0 if there is nothing to fetch */
};

INLINE void fetch_ahead(const struct ahead *ahead, ptrdiff_t first, int rows)
{
    for (int i = 0; i < rows; ++i)
        for (ptrdiff_t at = 0; at < ahead->bytes; at += 64)
            __builtin_prefetch(ahead->data + (first + i) * ahead->row + at, 0, 2);
}

/* Any number of rows: full tiles, then 4, 2 and 1. */
INLINE void multiply_nv(const int nv, const enum tile_mode mode, const int far, ptrdiff_t rows, ptrdiff_t depth,
                        struct operand a, const real *b, ptrdiff_t b_stride, struct panel c, real *lanes,
                        const struct ahead ahead[2])
{
    ptrdiff_t done = 0;
    vreal lane[MAX_NV];
    for (int v = 0; v < nv; ++v)
        lane[v] = mode == TILE_RESCALE ? vload(lanes + v * LANES) : vsplat(-INFINITY);
#define SA_TILES(height)                                                                                               \
    {                                                                                                                  \
        if (ahead) {                                                                                                   \
            fetch_ahead(&ahead[0], done, height);                                                                      \
            fetch_ahead(&ahead[1], done, height);                                                                      \
        }                                                                                                              \
        done += (height);                                                                                              \
        tile(height, nv, mode, far, depth, a, b, b_stride, c, lane);                                                   \
        a.data += (height) * a.row;                                                                                    \
        c.data += (height) * c.stride;                                                                                 \
        rows -= (height);                                                                                              \
    }
    while (rows >= TILE_ROWS(nv))
        SA_TILES(TILE_ROWS(nv))
    if (TILE_ROWS(nv) > 4 && rows >= 4) SA_TILES(4)
    if (rows >= 2) SA_TILES(2)
    if (rows >= 1) SA_TILES(1)
#undef SA_TILES
    if (mode == TILE_MAX || mode == TILE_ADD_MAX)
        for (int v = 0; v < nv; ++v)
            vstore(lanes + v * LANES, lane[v]);
}

/* For nv = 1 .. MAX_NV vectors. TILE_RESCALE reads `lanes`, the MAX modes write the maximum of each lane there. */
#define SA_MULTIPLY(name, mode, far)                                                                                   \
    static void name(int nv, ptrdiff_t rows, ptrdiff_t depth, struct operand a, const real *b, ptrdiff_t b_stride,     \
                     struct panel c, real *lanes, const struct ahead ahead[2])                                         \
    {                                                                                                                  \
        if (nv == 1)                                                                                                   \
            multiply_nv(1, mode, far, rows, depth, a, b, b_stride, c, lanes, ahead);                                   \
        else if (nv == 2)                                                                                              \
            multiply_nv(2, mode, far, rows, depth, a, b, b_stride, c, lanes, ahead);                                   \
        else if (MAX_NV > 2 && nv == 3)                                                                                \
            multiply_nv(MAX_NV > 2 ? 3 : 1, mode, far, rows, depth, a, b, b_stride, c, lanes, ahead);                  \
        else if (MAX_NV > 2)                                                                                           \
            multiply_nv(MAX_NV > 2 ? 4 : 1, mode, far, rows, depth, a, b, b_stride, c, lanes, ahead);                  \
    }
SA_MULTIPLY(multiply_store, TILE_STORE, 0)
SA_MULTIPLY(multiply_add, TILE_ADD, 0)
SA_MULTIPLY(multiply_rescale, TILE_RESCALE, 0)
SA_MULTIPLY(multiply_max, TILE_MAX, 0)
SA_MULTIPLY(multiply_add_max, TILE_ADD_MAX, 0)
#if FETCH_FAR
SA_MULTIPLY(multiply_store_far, TILE_STORE, 1)
SA_MULTIPLY(multiply_add_far, TILE_ADD, 1)
#else
#define multiply_store_far multiply_store
#define multiply_add_far multiply_add
#endif
#undef SA_MULTIPLY

/* C = A * B over a depth of any length: chains of `chain` terms, added in order. With `max`, also each lane's maximum;
 * `far`, if B comes from afar. */
INLINE void multiply_long(int nv, const int far, ptrdiff_t rows, ptrdiff_t depth, ptrdiff_t chain, struct operand a,
                          const real *b, ptrdiff_t b_stride, struct panel c, real *max, const struct ahead ahead[2])
{
    if (max && depth <= chain)
        multiply_max(nv, rows, depth, a, b, b_stride, c, max, ahead);
    else
        (far ? multiply_store_far : multiply_store)(nv, rows, depth < chain ? depth : chain, a, b, b_stride, c, NULL,
                                                    ahead);
    for (ptrdiff_t left = depth - chain; left > 0; left -= chain) {
        a.data += chain * a.col;
        b += chain * b_stride;
        if (max && left <= chain)
            multiply_add_max(nv, rows, left, a, b, b_stride, c, max, NULL);
        else
            (far ? multiply_add_far : multiply_add)(nv, rows, left < chain ? left : chain, a, b, b_stride, c, NULL,
                                                    NULL);
    }
}
