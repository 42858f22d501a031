/* lanes.inc.h -- what lies in the lanes: the queries of a panel, what each may see, what it has summed up so far; and the
 * way in and out, blocked transposes between rows in memory and lanes. */

static const real LOG2E = (real)1.4426950408889634;

/* A running softmax: outputs = sum of 2^((score - max) * c) * value, sum = the sum of the weights. */
struct state {
    real *outputs; /* value_dim x lanes; or rows x value_dim (rows.inc.h) */
    real max[PANEL_LANES], sum[PANEL_LANES];
    int empty; /* no key so far: outputs not yet written */
};

struct lanes {
    int nv, width;        /* vectors, and nv * LANES */
    ptrdiff_t row0, rows; /* rows of the tile in these lanes, rows <= width */
    real *query;          /* head_dim x width */
    int by_rows;          /* so lie the outputs */
    struct state span, total;
    real inverse[PANEL_LANES];                       /* what the weights and outputs of `total` are multiplied by */
    real sink_max[PANEL_LANES];                      /* the larger of maximum and sink, in natural units */
    ptrdiff_t first[PANEL_LANES], last[PANEL_LANES]; /* lane i sees the keys first[i] <= key < last[i] */
    ptrdiff_t position[PANEL_LANES];                 /* where its query stands among the keys */
    ptrdiff_t min_first, max_first, min_last, max_last;
    ptrdiff_t seen_first[MAX_NV], seen_last[MAX_NV]; /* what some lane of a vector sees */
};

/* Scores times `units` are natural logits; `c` turns scores into powers of two. */
struct scaling {
    real query, units, c;
    int natural; /* something is done to each score, which becomes a logit in natural units by it */
};

static struct scaling scaling_of(const struct sa_attention *a)
{
    /* Usually the queries stay as they are, and the scale waits for the exponent. The maximum needs a positive scale,
     * and one that -inf survives; otherwise the queries take it. */
    int in_exponent = a->scale > 1e-20 && a->scale < 1e20;
    struct scaling s = {.query = in_exponent ? (real)1.0 : (real)a->scale,
                        .units = in_exponent ? (real)a->scale : (real)1.0,
                        .natural = a->bias.data || a->alibi_slopes || a->softcap != 0.0};
    s.c = s.natural ? LOG2E : (real)((double)s.units * 1.4426950408889634);
    return s;
}

/* What mask and bias say of a block. */
enum biased {
    NOT_BIASED, /* every lane sees every key, and nothing is added */
    ALL_MASKED, /* no lane sees any */
    BIASED
};

struct block {
    ptrdiff_t first, last; /* the keys of the block that some lane may see */
    real *scores, *bias;   /* keys x width, */
    ptrdiff_t stride;      /* scores: from key to key */
    real *capped;          /* NULL, or where the capped scores are kept */
    real max[PANEL_LANES]; /* of the scores */
    int ranged;            /* some lane's range begins or ends inside the block: */
    integer begin[PANEL_LANES], end[PANEL_LANES];
    int partly_seen; /* so much that it pays to leave out what a vector does not see (seen.inc.h) */
    enum biased biased;
    struct staged keys, values;
    int afar, fetch; /* where keys and values are not staged: they come from there; the block is still to be fetched */
    struct ahead next[2]; /* queries and outputs of the next tile, to be fetched with the next values: */
    ptrdiff_t next_rows;  /* so many more of them */
};

/* Which keys each lane may see, before mask and bias, by its position. Lanes without a row see what the last row sees. */
static void set_lane_ranges(const struct sa_attention *a, const struct sa_tile *t, struct lanes *p)
{
    ptrdiff_t group = a->num_heads / a->num_kv_heads, query = p->row0 / group, head = p->row0 % group;
    for (int i = 0; i < p->width; ++i) {
        ptrdiff_t position = a->positions ? (ptrdiff_t)a->positions[query] : query + t->position0;
        ptrdiff_t last = t->valid_keys;
        if (a->causal) last = smaller(last, position + 1);
        if (a->right.bounded) last = smaller(last, position + a->right.size + 1);
        p->position[i] = position;
        p->first[i] = a->left.bounded ? larger(0, position - a->left.size) : 0;
        p->last[i] = larger(0, last);
        if (i + 1 < p->rows && ++head == group) head = 0, ++query;
    }
}

/* The ranges of the lanes, together. */
static void join_ranges(struct lanes *p)
{
    p->min_first = p->min_last = PTRDIFF_MAX;
    p->max_first = p->max_last = 0;
    for (int v = 0; v < p->nv; ++v) {
        ptrdiff_t min_first = PTRDIFF_MAX, max_first = 0, min_last = PTRDIFF_MAX, max_last = 0;
        for (int i = v * LANES; i < (v + 1) * LANES; ++i) {
            min_first = smaller(min_first, p->first[i]);
            max_first = larger(max_first, p->first[i]);
            min_last = smaller(min_last, p->last[i]);
            max_last = larger(max_last, p->last[i]);
        }
        p->seen_first[v] = min_first;
        p->seen_last[v] = max_last;
        p->min_first = smaller(p->min_first, min_first);
        p->max_first = larger(p->max_first, max_first);
        p->min_last = smaller(p->min_last, min_last);
        p->max_last = larger(p->max_last, max_last);
    }
}

static void set_ranges(const struct sa_attention *a, const struct sa_tile *t, struct lanes *p)
{
    if (a->causal || a->left.bounded || a->right.bounded || a->alibi_slopes) {
        set_lane_ranges(a, t, p);
        join_ranges(p);
        return;
    }
    for (int i = 0; i < p->width; ++i) { /* positions do not matter: all lanes see the same */
        p->first[i] = 0;
        p->last[i] = t->valid_keys;
    }
    p->min_first = p->max_first = 0;
    p->min_last = p->max_last = t->valid_keys;
}

/* ---- queries in, outputs out ---- */

/* Where a row of the tile is, in an array that has one for each query and head. */
static const char *row_of(const struct sa_array *array, const char *data, ptrdiff_t group, ptrdiff_t row)
{
    if (group == 1) return data + row * array->row; /* the rule; a division costs as much as a dozen additions */
    return data + row / group * array->row + row % group * array->head;
}
static char *out_row(const struct sa_attention *a, const struct sa_tile *t, ptrdiff_t row)
{
    return (char *)row_of(&a->out, t->out, a->num_heads / a->num_kv_heads, row);
}

/* panel[step, lane] = the row of each lane, the dims of the step, * scale; lanes without a row are zero. */
static void load_panel(const struct sa_attention *a, const struct sa_array *array, const char *data, ptrdiff_t dim,
                       const struct lanes *p, real scale, real *panel)
{
    ptrdiff_t group = a->num_heads / a->num_kv_heads;
    vreal factor = vsplat(scale);
    for (int v = 0; v < p->nv; ++v) {
        const char *rows[LANES];
        ptrdiff_t n = smaller(LANES, p->rows - v * LANES);
        for (ptrdiff_t i = 0; i < n; ++i)
            rows[i] = row_of(array, data, group, p->row0 + v * LANES + i);
        for (ptrdiff_t d = 0; d < dim; d += LANES) {
            vreal tile[LANES];
            ptrdiff_t width = smaller(LANES, dim - d);
            load_turned(rows, n, d * array->col, array->col, width, a->dtype, tile);
            real *to = panel + d / TERMS * p->width + v * LANES;
            if (width == LANES) {
#pragma GCC unroll 16
                for (int j = 0; j < LANES; j += TERMS)
                    vstore(to + j / TERMS * p->width, vpair(tile[j] * factor, tile[j + TERMS - 1] * factor));
            } else {
                for (ptrdiff_t j = 0; j < width; j += TERMS)
                    vstore(to + j / TERMS * p->width, vpair(tile[j] * factor, tile[j + TERMS - 1] * factor));
            }
        }
    }
}

/* The row of each lane = panel[dim, lane] * factor[lane]. */
static void store_panel(const struct sa_attention *a, const struct sa_array *array, char *data, ptrdiff_t dim,
                        const struct lanes *p, const real *panel, const real *factor)
{
    ptrdiff_t group = a->num_heads / a->num_kv_heads;
    for (int v = 0; v < p->nv; ++v) {
        char *rows[LANES];
        ptrdiff_t n = smaller(LANES, p->rows - v * LANES);
        for (ptrdiff_t i = 0; i < n; ++i)
            rows[i] = (char *)row_of(array, data, group, p->row0 + v * LANES + i);
        vreal times = vload(factor + v * LANES);
        vreal zero = vsplat(0.0f); /* -0 becomes 0: a block that a lane does not see could do the same */
        for (ptrdiff_t d = 0; d < dim; d += LANES) {
            vreal tile[LANES];
            ptrdiff_t width = smaller(LANES, dim - d);
            const real *from = panel + d * p->width + v * LANES;
            if (width == LANES) {
#pragma GCC unroll 16
                for (int j = 0; j < LANES; ++j)
                    tile[j] = vfma(vload(from + j * p->width), times, zero);
            } else {
                for (ptrdiff_t j = 0; j < LANES; ++j)
                    tile[j] = vfma(vload(from + smaller(j, width - 1) * p->width), times, zero);
            }
            store_turned(tile, rows, n, d * array->col, array->col, width, a->dtype);
        }
    }
}

/* No more keys will come: what the weights are divided by, the sinks among it. */
static void close_total(const struct sa_attention *a, const struct sa_tile *t, struct lanes *p, struct scaling scaling)
{
    ptrdiff_t group = a->num_heads / a->num_kv_heads;
    for (int v = 0; v < p->nv; ++v) {
        vreal sum = vload(p->total.sum + v * LANES), share = vsplat(1.0f);
        vint empty = sum == vsplat(0.0f); /* no key: 0, whatever the sink */
        if (t->sinks) {
            real sinks[LANES];
            for (int i = 0; i < LANES; ++i)
                sinks[i] = (real)t->sinks[(p->row0 + v * LANES + i) % group];
            vreal max = vload(p->total.max + v * LANES) * vsplat(scaling.natural ? (real)1.0 : scaling.units);
            vreal sink = vload(sinks), top = vmax(sink, max);
            share = vexp2((max - top) * vsplat(LOG2E));
            sum = vfma(sum, share, vexp2((sink - top) * vsplat(LOG2E)));
            vstore(p->total.sum + v * LANES, vzero_where(empty, sum));
            vstore(p->sink_max + v * LANES, top);
        }
        vstore(p->inverse + v * LANES, vzero_where(empty, share / sum));
    }
}

static void store_lse(const struct sa_attention *a, const struct sa_tile *t, const struct lanes *p, struct scaling s)
{
    ptrdiff_t group = a->num_heads / a->num_kv_heads;
    for (ptrdiff_t i = 0; i < p->rows; ++i) {
        double sum = (double)p->total.sum[i];
        double max = t->sinks ? (double)p->sink_max[i] : (double)p->total.max[i] * (s.natural ? 1.0 : (double)s.units);
        double lse = sum == 0.0 ? -(double)INFINITY : max + natural_log(sum);
        *(scalar_any *)row_of(&a->lse, t->lse, group, p->row0 + i) = (real)lse;
    }
}
