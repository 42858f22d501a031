/* weights.inc.h -- the attention weights themselves, for looking at: two passes over the scores, the first for each
 * lane's maximum and sum, the second for the weights, written out row by row. */

/* Lanes become rows of the output. */
static void store_weights(const struct sa_attention *a, const struct sa_tile *t, const struct lanes *p,
                          const struct block *b)
{
    ptrdiff_t keys = b->last - b->first;
    for (int v = 0; v < p->nv; ++v) {
        char *rows[LANES];
        ptrdiff_t n = smaller(LANES, p->rows - v * LANES);
        for (ptrdiff_t i = 0; i < n; ++i)
            rows[i] = out_row(a, t, p->row0 + v * LANES + i);
        for (ptrdiff_t k = 0; k < keys; k += LANES) {
            vreal tile[LANES];
            ptrdiff_t width = smaller(LANES, keys - k);
            for (ptrdiff_t j = 0; j < LANES; ++j)
                tile[j] = vload(b->scores + (k + smaller(j, width - 1)) * b->stride + v * LANES);
            store_turned(tile, rows, n, (b->first + k) * a->out.col, a->out.col, width, a->dtype);
        }
    }
}

static void clear_rows(const struct sa_attention *a, const struct sa_tile *t, const struct lanes *p)
{
    for (ptrdiff_t i = 0; i < p->rows; ++i)
        for (ptrdiff_t k = 0; k < a->kv_len; ++k)
            memset(out_row(a, t, p->row0 + i) + k * a->out.col, 0, (size_t)size_of(a->dtype));
}

/* Scores become weights: 2^((score - max) * c) / sum, and 0 for a masked key, also in a row of NaN. */
static void weigh(const struct lanes *p, const struct block *b, real c)
{
    for (int v = 0; v < p->nv; ++v) {
        vreal max = vload(p->total.max + v * LANES), inverse = vload(p->inverse + v * LANES);
        max = vzero_where(max == vsplat(-INFINITY), max);
        for (ptrdiff_t k = 0; k < b->last - b->first; ++k) {
            real *at = b->scores + k * b->stride + v * LANES;
            vreal score = vload(at), weight = vexp2((score - max) * vsplat(c)) * inverse;
            vstore(at, vzero_where(score == vsplat(-INFINITY), weight));
        }
    }
}

/* The weights of the block that begins at `key`, in the place of its scores. Returns 0 if no lane sees a key of it. */
static int weigh_block(const struct sa_attention *a, const struct sa_tile *t, const struct lanes *p,
                       struct scaling scaling, ptrdiff_t key, struct block *b)
{
    begin_block(b, larger(key, p->min_first), smaller(key + SA_KEY_BLOCK, p->max_last));
    b->stride = p->width;
    if (!score_block(a, t, p, scaling, key, b)) return 0;
    weigh(p, b, scaling.c);
    return 1;
}

static int attention_weights(const struct sa_attention *a, const struct sa_tile *t, void *workspace)
{
    struct lanes panels[MAX_PANELS];
    struct block b;
    struct scaling scaling = scaling_of(a);
    int count, status = attend(a, t, scaling, workspace, &b, panels, &count);
    for (int i = 0; i < count && !status; ++i) {
        struct lanes *p = &panels[i];
        clear_rows(a, t, p);
        ptrdiff_t key = p->min_first / SA_KEY_BLOCK * SA_KEY_BLOCK;
        for (; key < p->max_last && !status; key += SA_KEY_BLOCK) {
            if (weigh_block(a, t, p, scaling, key, &b)) store_weights(a, t, p, &b);
            status = sa_checkpoint();
        }
    }
    return status;
}

/* ---- how much each key was attended to in all ---- */

static real *statistics_row(const struct sa_attention *a, const struct sa_tile *t, ptrdiff_t row)
{
    return (real *)row_of(&a->lse, t->lse, a->num_heads / a->num_kv_heads, row);
}

/* What weigh() needs to know of a row, found by a pass over all its keys: written for the tasks that share the row. */
static int row_statistics(const struct sa_attention *a, const struct sa_tile *t, void *workspace)
{
    struct lanes panels[MAX_PANELS];
    struct block b;
    struct scaling scaling = scaling_of(a);
    int count, status = attend(a, t, scaling, workspace, &b, panels, &count);
    for (int i = 0; i < count && !status; ++i)
        for (ptrdiff_t row = 0; row < panels[i].rows; ++row) {
            real *statistics = statistics_row(a, t, panels[i].row0 + row);
            statistics[0] = panels[i].total.max[row];
            statistics[1] = panels[i].inverse[row];
        }
    return status;
}

/* Adds the weights to their columns, row after row: the order of the queries, whatever the lanes. */
static void add_columns(const struct sa_attention *a, const struct sa_tile *t, const struct lanes *p,
                        const struct block *b)
{
    ptrdiff_t group = a->num_heads / a->num_kv_heads, keys = b->last - b->first;
    for (int v = 0; v < p->nv; ++v)
        for (ptrdiff_t k = 0; k < keys; k += LANES) {
            vreal tile[LANES];
            ptrdiff_t width = smaller(LANES, keys - k), rows = smaller(LANES, p->rows - v * LANES);
            for (ptrdiff_t j = 0; j < LANES; ++j)
                tile[j] = vload(b->scores + (k + smaller(j, width - 1)) * b->stride + v * LANES);
            vtranspose(tile);
            for (ptrdiff_t i = 0; i < rows; ++i) {
                ptrdiff_t head = (p->row0 + v * LANES + i) % group;
                double *sums = (double *)(t->out + head * a->out.head) + b->first + k;
                for (ptrdiff_t j = 0; j < width; ++j)
                    sums[j] += (double)tile[i][j];
            }
        }
}

/* The rows of a tile, for the keys of one span. */
static int column_sums(const struct sa_attention *a, const struct sa_tile *t, ptrdiff_t first_key, void *workspace)
{
    struct lanes panels[MAX_PANELS];
    struct block b;
    struct scaling scaling = scaling_of(a);
    int count = begin_tile(a, t, scaling, workspace, &b, panels);
    for (int i = 0; i < count; ++i) {
        struct lanes *p = &panels[i];
        for (int lane = 0; lane < p->width; ++lane) {
            const real *statistics = statistics_row(a, t, p->row0 + smaller(lane, p->rows - 1));
            p->total.max[lane] = statistics[0];
            p->inverse[lane] = statistics[1];
        }
        ptrdiff_t key = larger(first_key, p->min_first / SA_KEY_BLOCK * SA_KEY_BLOCK);
        for (; key < smaller(first_key + SA_KEY_SPAN, p->max_last); key += SA_KEY_BLOCK)
            if (weigh_block(a, t, p, scaling, key, &b)) add_columns(a, t, p, &b);
    }
    return sa_checkpoint();
}
