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
            vfloat tile[LANES];
            ptrdiff_t width = smaller(LANES, keys - k);
            for (ptrdiff_t j = 0; j < LANES; ++j)
                tile[j] = vload(b->scores + (k + smaller(j, width - 1)) * p->width + v * LANES);
            store_turned(tile, rows, n, (b->first + k) * a->out.col, a->out.col, width);
        }
    }
}

static void clear_rows(const struct sa_attention *a, const struct sa_tile *t, const struct lanes *p)
{
    for (ptrdiff_t i = 0; i < p->rows; ++i)
        for (ptrdiff_t k = 0; k < a->kv_len; ++k)
            *(scalar_any *)(out_row(a, t, p->row0 + i) + k * a->out.col) = 0.0f;
}

/* Scores become weights: 2^((score - max) * c) / sum, and 0 for a masked key, also in a row of NaN. */
static void weigh(const struct lanes *p, const struct block *b, float c)
{
    for (int v = 0; v < p->nv; ++v) {
        vfloat max = vload(p->total.max + v * LANES), sum = vload(p->total.sum + v * LANES);
        max = vselect(max == vsplat(-INFINITY), vsplat(0.0f), max);
        vfloat inverse = vselect(sum == vsplat(0.0f), sum, vsplat(1.0f) / sum);
        for (ptrdiff_t k = 0; k < b->last - b->first; ++k) {
            float *at = b->scores + k * p->width + v * LANES;
            vfloat score = vload(at), weight = vexp2((score - max) * vsplat(c)) * inverse;
            vstore(at, vselect(score == vsplat(-INFINITY), vsplat(0.0f), weight));
        }
    }
}

static int attention_weights(const struct sa_attention *a, const struct sa_tile *t, void *workspace)
{
    struct lanes panels[MAX_PANELS];
    struct block b = {.scores = workspace, .bias = (float *)workspace + panel_floats(SA_KEY_BLOCK)};
    struct scaling scaling = scaling_of(a);
    int count = set_panels(a, t, b.bias + panel_floats(SA_KEY_BLOCK), 0, scaling.query, panels);
    int status = attend(a, t, scaling, panels, count, &b);
    for (int i = 0; i < count && !status; ++i) {
        struct lanes *p = &panels[i];
        clear_rows(a, t, p);
        ptrdiff_t key = p->min_first / SA_KEY_BLOCK * SA_KEY_BLOCK;
        for (; key < p->max_last && !status; key += SA_KEY_BLOCK) {
            if (score_block(a, t, p, scaling, key, &b)) {
                weigh(p, &b, scaling.c);
                store_weights(a, t, p, &b);
            }
            status = sa_checkpoint();
        }
    }
    return status;
}
