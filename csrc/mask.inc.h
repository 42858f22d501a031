/* mask.inc.h -- which keys a lane sees: ranges, boolean masks, additive biases.
 *
 * A block of mask and bias becomes one panel of floats, keys x lanes: the bias, and -inf where the mask is False.
 * A masked key contributes nothing: its score becomes -inf and its weight exactly 0, whatever key and value hold. */

/* out[k] = bias of key first + k for one row of the tile, or 0 without bias; -inf where the mask is False. Notes whether
 * some were. */
static void expand_row(const struct sa_attention *a, const struct sa_tile *t, ptrdiff_t row, ptrdiff_t first,
                       ptrdiff_t n, float *out, int *some_masked, int *some_visible)
{
    ptrdiff_t group = a->num_heads / a->num_kv_heads, query = row / group, head = row % group;
    const char *mask = t->mask ? t->mask + query * a->mask.row + head * a->mask.head + first * a->mask.col : NULL;
    const char *bias = t->bias ? t->bias + query * a->bias.row + head * a->bias.head + first * a->bias.col : NULL;
    for (ptrdiff_t k = 0; k < n; ++k)
        out[k] = bias ? *(const scalar_any *)(bias + k * a->bias.col) : 0.0f;
    if (mask && a->mask.col == 1) {
        for (ptrdiff_t k = 0; k < n; ++k)
            out[k] = mask[k] ? out[k] : -INFINITY;
    } else if (mask) {
        for (ptrdiff_t k = 0; k < n; ++k)
            out[k] = mask[k * a->mask.col] ? out[k] : -INFINITY;
    }
    int masked = 0, visible = 0;
    for (ptrdiff_t k = 0; k < n; ++k) {
        masked |= out[k] == -INFINITY;
        visible |= out[k] != -INFINITY;
    }
    *some_masked |= masked;
    *some_visible |= visible;
}

/* The rows of one vector of lanes, transposed into the panel. */
static void expand_lanes(const struct sa_attention *a, const struct sa_tile *t, ptrdiff_t row0, ptrdiff_t rows,
                         ptrdiff_t first, ptrdiff_t n, float *panel, ptrdiff_t width, int *masked, int *visible)
{
    float expanded[LANES][SA_KEY_BLOCK] = {{0}};
    for (ptrdiff_t i = 0; i < rows; ++i)
        expand_row(a, t, row0 + i, first, n, expanded[i], masked, visible);
    for (ptrdiff_t k = 0; k < n; k += LANES) {
        vfloat tile[LANES];
        for (int i = 0; i < LANES; ++i)
            tile[i] = vload(expanded[i] + k);
        vtranspose(tile);
        for (ptrdiff_t j = 0; j < LANES && k + j < n; ++j)
            vstore(panel + (k + j) * width, tile[j]);
    }
}

/* Do all lanes have the same row of this array? */
static int same_row(const struct sa_array *array, ptrdiff_t group, ptrdiff_t rows)
{
    return rows == 1 || (array->row == 0 && (array->head == 0 || group == 1));
}

/* A row shared by all lanes (a padding mask): masked keys at both ends are cut off the block, not computed. */
static enum biased load_shared_bias(const struct sa_attention *a, const struct sa_tile *t, ptrdiff_t row0, int nv,
                                    ptrdiff_t *first, ptrdiff_t *last, float *panel)
{
    float row[SA_KEY_BLOCK];
    int masked = 0, visible = 0;
    expand_row(a, t, row0, *first, *last - *first, row, &masked, &visible);
    if (!visible) return ALL_MASKED;
    ptrdiff_t begin = 0, end = *last - *first;
    while (row[begin] == -INFINITY)
        ++begin;
    while (row[end - 1] == -INFINITY)
        --end;
    *last = *first + end;
    *first += begin;
    int holes = 0;
    for (ptrdiff_t k = begin; k < end; ++k) {
        holes |= row[k] == -INFINITY;
        for (int v = 0; v < nv; ++v)
            vstore(panel + ((k - begin) * nv + v) * LANES, vsplat(row[k]));
    }
    return holes || t->bias ? BIASED : NOT_BIASED;
}

/* Fills the panel for the keys *first .. *last - 1, which it may narrow. */
static enum biased load_bias(const struct sa_attention *a, const struct sa_tile *t, ptrdiff_t row0, ptrdiff_t rows,
                             int nv, ptrdiff_t *first, ptrdiff_t *last, float *panel)
{
    if ((!t->mask && !t->bias) || *first >= *last) return NOT_BIASED;
    ptrdiff_t group = a->num_heads / a->num_kv_heads;
    if ((!t->mask || same_row(&a->mask, group, rows)) && (!t->bias || same_row(&a->bias, group, rows)))
        return load_shared_bias(a, t, row0, nv, first, last, panel);
    int masked = 0, visible = 0;
    for (int v = 0; v < nv; ++v)
        expand_lanes(a, t, row0 + v * LANES, smaller(LANES, rows - v * LANES), *first, *last - *first,
                     panel + v * LANES, nv * LANES, &masked, &visible);
    if (!visible) return ALL_MASKED;
    return masked || t->bias ? BIASED : NOT_BIASED;
}

/* ---- what the lanes of a block see ---- */

/* The lanes' ranges, counted from the block's first key. */
static void set_block_ranges(const struct lanes *p, struct block *b)
{
    ptrdiff_t keys = b->last - b->first;
    for (int i = 0; i < p->width; ++i) {
        b->begin[i] = (int32_t)smaller(larger(p->first[i] - b->first, 0), keys);
        b->end[i] = (int32_t)smaller(larger(p->last[i] - b->first, 0), keys);
    }
}

INLINE vint visible_lanes(const struct lanes *p, const struct block *b, ptrdiff_t key, int v)
{
    vint k = visplat((int32_t)key);
    vint visible = (k >= *(const vint *)(b->begin + v * LANES)) & (k < *(const vint *)(b->end + v * LANES));
    if (b->biased == BIASED) visible &= vload(b->bias + key * p->width + v * LANES) != vsplat(-INFINITY);
    return visible;
}

/* scores = scores * units + bias where the lane sees the key, -inf elsewhere; and their maximum. */
static void mask_scores(const struct lanes *p, struct block *b, float units)
{
    set_block_ranges(p, b);
    for (int v = 0; v < p->nv; ++v) {
        vfloat max = vsplat(-INFINITY);
        for (ptrdiff_t k = 0; k < b->last - b->first; ++k) {
            float *at = b->scores + k * p->width + v * LANES;
            vfloat score = vload(at);
            if (b->biased == BIASED) score = vfma(score, vsplat(units), vload(b->bias + k * p->width + v * LANES));
            score = vselect(visible_lanes(p, b, k, v), score, vsplat(-INFINITY));
            max = vmax(score, max);
            vstore(at, score);
        }
        vstore(b->max + v * LANES, max);
    }
}

/* ---- values that must not reach every lane ---- */

/* Is every element of A finite? (Reads the exponent bits: the largest magnitude tells.) */
static int all_finite(struct operand a, ptrdiff_t rows, ptrdiff_t depth)
{
    uint32_t worst = 0;
    for (ptrdiff_t p = 0; p < depth; ++p) {
        const char *at = a.data + p * a.col;
        if (a.row == (ptrdiff_t)sizeof(float)) {
            for (ptrdiff_t i = 0; i < rows; ++i) {
                uint32_t bits = ((const uint32_any *)at)[i] & 0x7fffffff;
                worst = bits > worst ? bits : worst;
            }
        } else {
            for (ptrdiff_t i = 0; i < rows; ++i) {
                uint32_t bits = *(const uint32_any *)(at + i * a.row) & 0x7fffffff;
                worst = bits > worst ? bits : worst;
            }
        }
    }
    return worst < 0x7f800000;
}

/* The values' pass with the lanes' visibility: the same chain of additions, without the keys a lane does not see. */
static void add_visible_values(const struct lanes *p, const struct block *b, struct operand values, ptrdiff_t dim,
                               struct panel outputs, const float *rescale)
{
    for (ptrdiff_t d = 0; d < dim; ++d)
        for (int v = 0; v < p->nv; ++v) {
            float *at = outputs.data + d * outputs.stride + v * LANES;
            vfloat sum = vsplat(0.0f);
            for (ptrdiff_t k = 0; k < b->last - b->first; ++k) {
                vfloat value = vsplat(*(const scalar_any *)(values.data + d * values.row + k * values.col));
                vfloat more = vfma(value, vload(b->scores + k * p->width + v * LANES), sum);
                sum = vselect(visible_lanes(p, b, k, v), more, sum);
            }
            if (!p->span.empty) sum = vfma(vload(at), vload(rescale + v * LANES), sum);
            vstore(at, sum);
        }
}
