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

/* What comes after B, where B is weights, which a few rows read but once, from memory: with every step of the tiles so
 * many bytes of it are fetched into the second cache. Evenly, and every line: the processor drops what it cannot take,
 * and where some lines are missing its own prefetchers are no help. */
struct coming {
    const char *at;
    ptrdiff_t bytes;
};

INLINE void tile_multiply(const int rows, const int nv, ptrdiff_t depth, struct operand a, const real *b,
                          ptrdiff_t b_stride, struct coming *coming, vreal c[MAX_TILE_ROWS][MAX_NV])
{
    const char *at = coming ? coming->at : NULL, *to = at;
    for (ptrdiff_t p = 0; p < depth; ++p) {
        if (coming)
            for (to += coming->bytes; at < to; at += 64)
                __builtin_prefetch(at, 0, 2);
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
    if (coming) coming->at = at;
}

/* What happens to the sums: they become C; are added to C; are added to C times a factor for each lane, or for each row; or
 * they become C, or are added to C, and raise the running maximum of each lane. */
enum tile_mode { TILE_STORE, TILE_ADD, TILE_RESCALE, TILE_RESCALE_ROWS, TILE_MAX, TILE_ADD_MAX };

INLINE void tile(const int rows, const int nv, const enum tile_mode mode, ptrdiff_t depth, struct operand a,
                 const real *b, ptrdiff_t b_stride, struct panel c, vreal lane[MAX_NV], const real *factors,
                 struct coming *coming)
{
    vreal sum[MAX_TILE_ROWS][MAX_NV];
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < nv; ++v)
            sum[i][v] = vsplat(0.0f);
    tile_multiply(rows, nv, depth, a, b, b_stride, coming, sum);
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < nv; ++v) {
            real *at = c.data + i * c.stride + v * LANES;
            if (mode == TILE_ADD || mode == TILE_ADD_MAX) sum[i][v] += vload(at);
            if (mode == TILE_RESCALE) sum[i][v] = vfma(vload(at), lane[v], sum[i][v]);
            if (mode == TILE_RESCALE_ROWS) sum[i][v] = vfma(vload(at), vsplat(factors[i]), sum[i][v]);
            vstore(at, sum[i][v]);
            if (mode == TILE_MAX || mode == TILE_ADD_MAX) lane[v] = vmax(sum[i][v], lane[v]);
        }
}

/* Rows that will be wanted soon: while tiles of A are multiplied, the same rows of these are fetched into the cache.
 * (The broadcasts walk several short rows at once, which the hardware's prefetchers do not follow.) */
struct ahead {
    const char *data;
    ptrdiff_t row, bytes;  /* from row to row; of one row, 0 if there is nothing to fetch */
    ptrdiff_t first;       /* row 0 of these is row `first` there; */
    ptrdiff_t group, head; /* with a group of 2 and more row r is row r / group of head r % group, heads so far apart */
};

/* From a row on; nothing stays nothing. */
static struct ahead ahead_from(struct ahead ahead, ptrdiff_t row)
{
    ahead.first += row;
    return ahead;
}

INLINE void fetch_row(const char *row, ptrdiff_t bytes)
{
    for (ptrdiff_t at = 0; at < bytes; at += 64)
        __builtin_prefetch(row + at, 0, 2);
}

static __attribute__((noinline)) void fetch_grouped(const struct ahead *ahead, ptrdiff_t first, int rows)
{
    __asm__ volatile(""); /* GCC takes a function that does nothing but prefetch for one that does nothing */
    ptrdiff_t row = first / ahead->group, head = first % ahead->group;
    for (int i = 0; i < rows; ++i) {
        fetch_row(ahead->data + row * ahead->row + head * ahead->head, ahead->bytes);
        if (++head == ahead->group) head = 0, ++row;
    }
}

INLINE void fetch_ahead(const struct ahead *ahead, ptrdiff_t first, int rows)
{
    if (ahead->bytes == 0) return;
    first += ahead->first;
    if (ahead->group > 1) {
        fetch_grouped(ahead, first, rows);
        return;
    }
    for (int i = 0; i < rows; ++i)
        fetch_row(ahead->data + (first + i) * ahead->row, ahead->bytes);
}

/* Any number of rows: full tiles, then 4, 2 and 1. */
INLINE void multiply_nv(const int nv, const enum tile_mode mode, ptrdiff_t rows, ptrdiff_t depth, struct operand a,
                        const real *b, ptrdiff_t b_stride, struct panel c, real *lanes, const struct ahead ahead[2])
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
        tile(height, nv, mode, depth, a, b, b_stride, c, lane, mode == TILE_RESCALE_ROWS ? lanes + done : NULL, NULL); \
        done += (height);                                                                                              \
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

/* For nv = 1 .. MAX_NV vectors. */
#define SA_BY_VECTORS(function, ...)                                                                                   \
    if (nv == 1)                                                                                                       \
        function(1, __VA_ARGS__);                                                                                      \
    else if (nv == 2)                                                                                                  \
        function(2, __VA_ARGS__);                                                                                      \
    else if (MAX_NV > 2 && nv == 3)                                                                                    \
        function(MAX_NV > 2 ? 3 : 1, __VA_ARGS__);                                                                     \
    else if (MAX_NV > 2)                                                                                               \
    function(MAX_NV > 2 ? 4 : 1, __VA_ARGS__)

typedef void multiply(int nv, ptrdiff_t rows, ptrdiff_t depth, struct operand a, const real *b, ptrdiff_t b_stride,
                      struct panel c, real *lanes, const struct ahead ahead[2]);

/* The RESCALE modes read `lanes`, TILE_RESCALE_ROWS a factor for each row; the MAX modes write each lane's maximum there. */
#define SA_MULTIPLY(name, mode)                                                                                        \
    static void name(int nv, ptrdiff_t rows, ptrdiff_t depth, struct operand a, const real *b, ptrdiff_t b_stride,     \
                     struct panel c, real *lanes, const struct ahead ahead[2])                                         \
    {                                                                                                                  \
        SA_BY_VECTORS(multiply_nv, mode, rows, depth, a, b, b_stride, c, lanes, ahead);                                \
    }
SA_MULTIPLY(multiply_store, TILE_STORE)
SA_MULTIPLY(multiply_add, TILE_ADD)
SA_MULTIPLY(multiply_rescale, TILE_RESCALE)
SA_MULTIPLY(multiply_rescale_rows, TILE_RESCALE_ROWS)
SA_MULTIPLY(multiply_max, TILE_MAX)
SA_MULTIPLY(multiply_add_max, TILE_ADD_MAX)
#undef SA_MULTIPLY

/* ---- of weights that come from afar: tiles of every height, and what comes next is fetched ---- */

/* With the fewest rows memory is the limit in any case, and of wide panels the processor's prefetchers are faster alone.
 * (A tile less than half as high as these rows has all there are.) Where one tile has all the rows, what comes next is
 * needed at once. */
enum { FAR_AHEAD = 8192, LEAST_ROWS_FAR = SA_VECTOR_BYTES == 64 ? 6 : 1 };

INLINE void low_tile_nv(const int nv, const enum tile_mode mode, ptrdiff_t rows, ptrdiff_t depth, struct operand a,
                        const real *b, ptrdiff_t b_stride, struct panel c, struct coming *coming)
{
    switch (rows) {
#define SA_HEIGHT(height)                                                                                              \
    case (height):                                                                                                     \
        if ((height) < TILE_ROWS(nv))                                                                                  \
            tile(height, nv, mode, depth, a, b, b_stride, c, NULL, NULL,                                               \
                 2 * (height) < LEAST_ROWS_FAR ? NULL : coming);                                                       \
        break;
        SA_HEIGHT(1)
        SA_HEIGHT(2)
        SA_HEIGHT(3)
        SA_HEIGHT(4)
        SA_HEIGHT(5)
        SA_HEIGHT(6)
        SA_HEIGHT(7)
#undef SA_HEIGHT
    default:
        break;
    }
}

/* A tile that is not full. (By itself: the loop of full tiles is the faster without.) */
static __attribute__((noinline)) void low_tile(int nv, enum tile_mode mode, ptrdiff_t rows, ptrdiff_t depth,
                                               struct operand a, const real *b, ptrdiff_t b_stride, struct panel c,
                                               struct coming *coming)
{
    if (mode == TILE_STORE) {
        SA_BY_VECTORS(low_tile_nv, TILE_STORE, rows, depth, a, b, b_stride, c, coming);
    } else {
        SA_BY_VECTORS(low_tile_nv, TILE_ADD, rows, depth, a, b, b_stride, c, coming);
    }
}

/* A full tile; or of what is left the half, if a second tile would be of one row or two, which is slow. */
INLINE ptrdiff_t far_height(ptrdiff_t left, ptrdiff_t full)
{
    if (left == full || left > full + 2) return full;
    return left > full ? (left + 1) / 2 : left;
}

INLINE void multiply_far_nv(const int nv, const enum tile_mode mode, ptrdiff_t rows, ptrdiff_t depth, struct operand a,
                            const real *b, ptrdiff_t b_stride, struct panel c, const struct ahead ahead[2])
{
    const ptrdiff_t full = TILE_ROWS(nv), bytes = rows < LEAST_ROWS_FAR ? 0 : b_stride * (ptrdiff_t)sizeof(real);
    struct coming coming = {rows > full ? (const char *)(b + depth * b_stride) : (const char *)b + FAR_AHEAD, 0};
    for (ptrdiff_t done = 0, height; done < rows; done += height) {
        height = far_height(rows - done, full);
        coming.bytes = (bytes * height + rows - 1) / rows; /* all of it with all the rows */
        if (ahead) {
            fetch_ahead(&ahead[0], done, (int)height);
            fetch_ahead(&ahead[1], done, (int)height);
        }
        if (height == full)
            tile(TILE_ROWS(nv), nv, mode, depth, a, b, b_stride, c, NULL, NULL, &coming);
        else
            low_tile(nv, mode, height, depth, a, b, b_stride, c, &coming);
        a.data += height * a.row;
        c.data += height * c.stride;
    }
}

static void multiply_far(int nv, enum tile_mode mode, ptrdiff_t rows, ptrdiff_t depth, struct operand a, const real *b,
                         ptrdiff_t b_stride, struct panel c, const struct ahead ahead[2])
{
    if (mode == TILE_STORE) {
        SA_BY_VECTORS(multiply_far_nv, TILE_STORE, rows, depth, a, b, b_stride, c, ahead);
    } else {
        SA_BY_VECTORS(multiply_far_nv, TILE_ADD, rows, depth, a, b, b_stride, c, ahead);
    }
}

/* ---- any depth: chains of `chain` terms, added in order ---- */

/* C = A * B. With `max`, also each lane's maximum; `far`, if B comes from afar, and what follows it is wanted next. */
INLINE void multiply_long(int nv, int far, ptrdiff_t rows, ptrdiff_t depth, ptrdiff_t chain, struct operand a,
                          const real *b, ptrdiff_t b_stride, struct panel c, real *max, const struct ahead ahead[2])
{
    for (ptrdiff_t left = depth; left > 0 || left == depth; left -= chain) {
        ptrdiff_t terms = left < chain ? left : chain;
        int first = left == depth, raise = max && left <= chain;
        if (far)
            multiply_far(nv, first ? TILE_STORE : TILE_ADD, rows, terms, a, b, b_stride, c, first ? ahead : NULL);
        else if (first)
            (raise ? multiply_max : multiply_store)(nv, rows, terms, a, b, b_stride, c, max, ahead);
        else
            (raise ? multiply_add_max : multiply_add)(nv, rows, terms, a, b, b_stride, c, max, NULL);
        a.data += chain * a.col;
        b += chain * b_stride;
    }
}
