/* lanes.inc.h -- what lies in the lanes: the queries of a panel, what each may see, what it has summed up so far; and the
 * way in and out, blocked transposes between rows in memory and lanes. */

static const float LOG2E = 1.44269504f;

/* A running softmax: outputs = sum of 2^((score - max) * c) * value, sum = the sum of the weights. */
struct state {
    float *outputs; /* value_dim x lanes */
    float max[PANEL_LANES], sum[PANEL_LANES];
    int empty; /* no key so far: outputs not yet written */
};

struct lanes {
    int nv, width;        /* vectors, and nv * LANES */
    ptrdiff_t row0, rows; /* rows of the tile in these lanes, rows <= width */
    float *query;         /* head_dim x width */
    struct state span, total;
    ptrdiff_t first[PANEL_LANES], last[PANEL_LANES]; /* lane i sees the keys first[i] <= key < last[i] */
    ptrdiff_t min_first, max_first, min_last, max_last;
};

/* Scores times `units` are natural logits; `c` turns scores into powers of two. */
struct scaling {
    float query, units, c;
};

static struct scaling scaling_of(const struct sa_attention *a)
{
    /* Usually the queries stay as they are, and the scale waits for the exponent. The maximum needs a positive scale,
     * and one that -inf survives; otherwise the queries take it. */
    int in_exponent = a->scale > 1e-20f && a->scale < 1e20f;
    struct scaling s = {in_exponent ? 1.0f : a->scale, in_exponent ? a->scale : 1.0f, 0.0f};
    s.c = a->bias.data ? LOG2E : (float)((double)s.units * 1.4426950408889634);
    return s;
}

INLINE ptrdiff_t smaller(ptrdiff_t a, ptrdiff_t b)
{
    return a < b ? a : b;
}
INLINE ptrdiff_t larger(ptrdiff_t a, ptrdiff_t b)
{
    return a > b ? a : b;
}

/* What mask and bias say of a block. */
enum biased {
    NOT_BIASED, /* every lane sees every key, and nothing is added */
    ALL_MASKED, /* no lane sees any */
    BIASED
};

struct block {
    ptrdiff_t first, last;  /* the keys of the block that some lane may see */
    float *scores, *bias;   /* keys x width */
    float max[PANEL_LANES]; /* of the scores */
    int ranged;             /* some lane's range begins or ends inside the block: */
    int32_t begin[PANEL_LANES], end[PANEL_LANES];
    enum biased biased;
};

/* Which keys each lane may see, before mask and bias. Lanes without a row see what the last row sees. */
static void set_ranges(const struct sa_attention *a, const struct sa_tile *t, struct lanes *p)
{
    ptrdiff_t group = a->num_heads / a->num_kv_heads;
    ptrdiff_t offset = a->causal == SA_CAUSAL_BOTTOM_RIGHT ? t->kv_len - t->q_len : 0;
    for (int i = 0; i < p->width; ++i) {
        ptrdiff_t query = (p->row0 + smaller(i, p->rows - 1)) / group;
        p->first[i] = 0;
        p->last[i] = a->causal ? larger(0, smaller(t->valid_keys, query + 1 + offset)) : t->valid_keys;
        p->min_first = i ? smaller(p->min_first, p->first[i]) : p->first[i];
        p->max_first = i ? larger(p->max_first, p->first[i]) : p->first[i];
        p->min_last = i ? smaller(p->min_last, p->last[i]) : p->last[i];
        p->max_last = i ? larger(p->max_last, p->last[i]) : p->last[i];
    }
}

/* ---- queries in, outputs out: blocked transposes between rows in memory and lanes ---- */

static const char *query_row(const struct sa_attention *a, const struct sa_tile *t, ptrdiff_t row)
{
    ptrdiff_t group = a->num_heads / a->num_kv_heads;
    return t->query + row / group * a->query.row + row % group * a->query.head;
}
static char *out_row(const struct sa_attention *a, const struct sa_tile *t, ptrdiff_t row)
{
    ptrdiff_t group = a->num_heads / a->num_kv_heads;
    return t->out + row / group * a->out.row + row % group * a->out.head;
}

/* n <= LANES values of a row that may have any stride and alignment. */
INLINE vfloat load_row(const char *row, ptrdiff_t col, ptrdiff_t n)
{
    if (col == (ptrdiff_t)sizeof(float))
        return n == LANES ? vload((const float *)row) : vload_first((const float *)row, n);
    vfloat v = vsplat(0.0f);
    for (ptrdiff_t i = 0; i < n; ++i)
        v[i] = *(const scalar_any *)(row + i * col);
    return v;
}
INLINE void store_row(char *row, ptrdiff_t col, ptrdiff_t n, vfloat v)
{
    if (col == (ptrdiff_t)sizeof(float)) {
        if (n == LANES)
            vstore((float *)row, v);
        else
            vstore_first((float *)row, v, n);
    } else {
        for (ptrdiff_t i = 0; i < n; ++i)
            *(scalar_any *)(row + i * col) = v[i];
    }
}

/* A LANES x LANES piece of rows n, turned: tile[j] = element j of every row. Rows and columns outside are zero. */
INLINE void load_turned(const char *const rows[LANES], ptrdiff_t n, ptrdiff_t offset, ptrdiff_t col, ptrdiff_t width,
                        vfloat tile[LANES])
{
    if (n == LANES && width == LANES && col == (ptrdiff_t)sizeof(float)) {
#pragma GCC unroll 16
        for (int i = 0; i < LANES; ++i)
            tile[i] = vload((const float *)(rows[i] + offset));
    } else {
        for (int i = 0; i < LANES; ++i) {
            tile[i] = vsplat(0.0f);
            if (i < n) tile[i] = load_row(rows[i] + offset, col, width);
        }
    }
    vtranspose(tile);
}

INLINE void store_turned(vfloat tile[LANES], char *const rows[LANES], ptrdiff_t n, ptrdiff_t offset, ptrdiff_t col,
                         ptrdiff_t width)
{
    vtranspose(tile);
    if (n == LANES && width == LANES && col == (ptrdiff_t)sizeof(float)) {
#pragma GCC unroll 16
        for (int i = 0; i < LANES; ++i)
            vstore((float *)(rows[i] + offset), tile[i]);
    } else {
        for (ptrdiff_t i = 0; i < n; ++i)
            store_row(rows[i] + offset, col, width, tile[i]);
    }
}

/* p->query[dim, lane] = query[row of lane, dim] * scale; lanes without a row are zero. */
static void load_queries(const struct sa_attention *a, const struct sa_tile *t, struct lanes *p, float scale)
{
    vfloat factor = vsplat(scale);
    for (int v = 0; v < p->nv; ++v) {
        const char *rows[LANES];
        ptrdiff_t n = smaller(LANES, p->rows - v * LANES);
        for (ptrdiff_t i = 0; i < n; ++i)
            rows[i] = query_row(a, t, p->row0 + v * LANES + i);
        for (ptrdiff_t d = 0; d < a->head_dim; d += LANES) {
            vfloat tile[LANES];
            ptrdiff_t width = smaller(LANES, a->head_dim - d);
            load_turned(rows, n, d * a->query.col, a->query.col, width, tile);
            float *to = p->query + d * p->width + v * LANES;
            if (width == LANES) {
#pragma GCC unroll 16
                for (int j = 0; j < LANES; ++j)
                    vstore(to + j * p->width, tile[j] * factor);
            } else {
                for (ptrdiff_t j = 0; j < width; ++j)
                    vstore(to + j * p->width, tile[j] * factor);
            }
        }
    }
}

static void store_outputs(const struct sa_attention *a, const struct sa_tile *t, const struct lanes *p)
{
    for (int v = 0; v < p->nv; ++v) {
        char *rows[LANES];
        ptrdiff_t n = smaller(LANES, p->rows - v * LANES);
        for (ptrdiff_t i = 0; i < n; ++i)
            rows[i] = out_row(a, t, p->row0 + v * LANES + i);
        vfloat sum = vload(p->total.sum + v * LANES);
        vfloat inverse = vselect(sum == vsplat(0.0f), sum, vsplat(1.0f) / sum); /* no key: 0 */
        vfloat zero = vsplat(0.0f); /* -0 becomes 0: a block that a lane does not see could do the same */
        for (ptrdiff_t d = 0; d < a->value_dim; d += LANES) {
            vfloat tile[LANES];
            ptrdiff_t width = smaller(LANES, a->value_dim - d);
            const float *from = p->total.outputs + d * p->width + v * LANES;
            if (width == LANES) {
#pragma GCC unroll 16
                for (int j = 0; j < LANES; ++j)
                    tile[j] = vfma(vload(from + j * p->width), inverse, zero);
            } else {
                for (ptrdiff_t j = 0; j < LANES; ++j)
                    tile[j] = vfma(vload(from + smaller(j, width - 1) * p->width), inverse, zero);
            }
            store_turned(tile, rows, n, d * a->out.col, a->out.col, width);
        }
    }
}

static void store_lse(const struct sa_attention *a, const struct sa_tile *t, const struct lanes *p, float units)
{
    ptrdiff_t group = a->num_heads / a->num_kv_heads;
    double scale = a->bias.data ? 1.0 : (double)units;
    for (ptrdiff_t i = 0; i < p->rows; ++i) {
        ptrdiff_t row = p->row0 + i;
        double sum = (double)p->total.sum[i];
        double lse = sum == 0.0 ? -(double)INFINITY : (double)p->total.max[i] * scale + natural_log(sum);
        *(scalar_any *)(t->lse + row / group * a->lse.row + row % group * a->lse.head) = (float)lse;
    }
}
