/* mask.inc.h -- which keys a lane sees: ranges, boolean masks, additive biases.
 *
 * A block of mask and bias becomes one panel of floats, keys x lanes: the bias, and -inf where the mask is False.
 * A masked key contributes nothing: its score becomes -inf and its weight exactly 0, whatever key and value hold. */

/* out[k] = bias of key first + k for one row of the tile, or 0 without bias; -inf where the mask is False. Notes whether
 * some were. */
static void expand_row(const struct sa_attention *a, const struct sa_tile *t, ptrdiff_t row, ptrdiff_t first,
                       ptrdiff_t n, real *out, int *some_masked, int *some_visible)
{
    ptrdiff_t group = a->num_heads / a->num_kv_heads, query = row / group, head = row % group;
    const char *mask = t->mask ? t->mask + query * a->mask.row + head * a->mask.head + first * a->mask.col : NULL;
    const char *bias = t->bias ? t->bias + query * a->bias.row + head * a->bias.head + first * a->bias.col : NULL;
    if (bias)
        widen_row(bias, a->bias.col, n, a->bias_dtype, out);
    else
        memset(out, 0, (size_t)n * sizeof(real));
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
                         ptrdiff_t first, ptrdiff_t n, real *panel, ptrdiff_t width, int *masked, int *visible)
{
    real expanded[LANES][SA_KEY_BLOCK] = {{0}};
    for (ptrdiff_t i = 0; i < rows; ++i)
        expand_row(a, t, row0 + i, first, n, expanded[i], masked, visible);
    for (ptrdiff_t k = 0; k < n; k += LANES) {
        vreal tile[LANES];
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
                                    ptrdiff_t *first, ptrdiff_t *last, real *panel)
{
    real row[SA_KEY_BLOCK];
    int masked = 0, visible = 0;
    expand_row(a, t, row0, *first, *last - *first, row, &masked, &visible);
    if (!visible) return ALL_MASKED;
    ptrdiff_t begin = 0, end = *last - *first;
    while (row[begin] == -INFINITY)
        ++begin;
    begin = begin / TERMS * TERMS;
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
                             int nv, ptrdiff_t *first, ptrdiff_t *last, real *panel)
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
        b->begin[i] = (integer)smaller(larger(p->first[i] - b->first, 0), keys);
        b->end[i] = (integer)smaller(larger(p->last[i] - b->first, 0), keys);
    }
}

INLINE vint visible_lanes(const struct lanes *p, const struct block *b, ptrdiff_t key, int v)
{
    vint k = visplat((integer)key);
    vint visible = (k >= *(const vint *)(b->begin + v * LANES)) & (k < *(const vint *)(b->end + v * LANES));
    if (b->biased == BIASED) visible &= vload(b->bias + key * p->width + v * LANES) != vsplat(-INFINITY);
    return visible;
}

/* ---- what is done to the scores of a block, in this order; what is not asked for costs nothing ---- */

/* 1. softcap: score = softcap * tanh(score * units / softcap) */
static void cap_scores(const struct lanes *p, struct block *b, real units, real softcap)
{
    for (ptrdiff_t i = 0; i < (b->last - b->first) * p->width; i += LANES)
        vstore(b->scores + i, vsplat(softcap) * vtanh(vload(b->scores + i) * vsplat(units) / vsplat(softcap)));
}

/* 2. alibi: score = score * units - slope * |how far the key is from the query's position| */
static void add_alibi(const struct sa_tile *t, ptrdiff_t group, const struct lanes *p, struct block *b, real units)
{
    const ptrdiff_t far = (ptrdiff_t)1 << 30;
    for (int v = 0; v < p->nv; ++v) {
        real slopes[LANES];
        integer begin[LANES]; /* the first key's distance */
        for (int i = 0; i < LANES; ++i) {
            slopes[i] = -(real)t->alibi_slopes[(p->row0 + v * LANES + i) % group];
            begin[i] = (integer)larger(-far, smaller(far, b->first - p->position[v * LANES + i]));
        }
        vreal slope = vload(slopes);
        vint distance;
        memcpy(&distance, begin, sizeof distance);
        for (ptrdiff_t k = 0; k < b->last - b->first; ++k, distance += 1) {
            real *at = b->scores + k * p->width + v * LANES;
            vint negative = distance < 0;
            vreal away = __builtin_convertvector((distance ^ negative) - negative, vreal);
            vstore(at, vfma(slope, away, vload(at) * vsplat(units)));
        }
    }
}

/* 3. bias and masks: scores = scores * units + bias where the lane sees the key, -inf elsewhere; and their maximum. */
static void mask_scores(const struct lanes *p, struct block *b, real units)
{
    set_block_ranges(p, b);
    for (int v = 0; v < p->nv; ++v) {
        vreal max = vsplat(-INFINITY);
        for (ptrdiff_t k = 0; k < b->last - b->first; ++k) {
            real *at = b->scores + k * p->width + v * LANES;
            vreal score = vload(at);
            if (b->biased == BIASED)
                score = vfma(score, vsplat(units), vload(b->bias + k * p->width + v * LANES));
            else
                score *= vsplat(units);
            score = vselect(visible_lanes(p, b, k, v), score, vsplat(-INFINITY));
            max = vmax(score, max);
            vstore(at, score);
        }
        vstore(b->max + v * LANES, max);
    }
}

static void finish_scores(const struct sa_attention *a, const struct sa_tile *t, const struct lanes *p,
                          struct scaling scaling, struct block *b)
{
    real units = scaling.natural ? scaling.units : (real)1.0;
    if (a->softcap != 0.0) {
        cap_scores(p, b, units, (real)a->softcap);
        units = (real)1.0;
    }
    if (t->alibi_slopes) {
        add_alibi(t, a->num_heads / a->num_kv_heads, p, b, units);
        units = (real)1.0;
    }
    mask_scores(p, b, units);
}

/* ---- values that must not reach every lane ---- */

/* The largest magnitude of n elements, as bits; of pairs, that of both halves. */
INLINE bits largest(const char *at, ptrdiff_t row, ptrdiff_t n)
{
    const bits MAGNITUDE = ~((bits)1 << (8 * sizeof(bits) - 1));
    bits worst = 0;
    for (ptrdiff_t i = 0; i < n; ++i) {
        bits element = *(const bits_any *)(at + i * row), magnitude = element & MAGNITUDE;
        worst = magnitude > worst ? magnitude : worst;
        if (TERMS == 2) worst = (element << 16 & MAGNITUDE) > worst ? element << 16 & MAGNITUDE : worst;
    }
    return worst;
}

/* Is every element of A finite? (The exponent's bits tell.) */
static int all_finite(struct operand a, ptrdiff_t rows, ptrdiff_t depth)
{
    const bits INFINITE = sizeof(bits) == 4 ? (bits)0xff << 23 : (bits)((uint64_t)0x7ff << 52);
    bits worst = 0;
    for (ptrdiff_t p = 0; p < depth; ++p) {
        const char *at = a.data + p * a.col;
        int side_by_side = a.row == (ptrdiff_t)sizeof(real);
        bits more = side_by_side ? largest(at, sizeof(real), rows) : largest(at, a.row, rows);
        worst = more > worst ? more : worst;
    }
    return worst < INFINITE;
}

/* A step's values for each lane: 0 at a key that the lane does not see. */
INLINE vreal visible_value(const struct lanes *p, const struct block *b, const char *value, ptrdiff_t step, int v)
{
    vreal splat = vsplat(*(const scalar_any *)value);
    if (TERMS == 1) return vselect(visible_lanes(p, b, step, v), splat, vsplat(0.0f));
    vbits seen = (vbits)visible_lanes(p, b, 2 * step, v) & 0xffff;
    if (2 * step + 1 < b->last - b->first) seen |= (vbits)visible_lanes(p, b, 2 * step + 1, v) & 0xffff0000;
    return (vreal)((vbits)splat & seen);
}

/* The values' pass with the lanes' visibility: the same chain of additions, but the weight 0 of a key that a lane does
 * not see meets a value of 0. */
static void add_visible_values(const struct lanes *p, const struct block *b, struct operand values, ptrdiff_t dim,
                               struct panel outputs, const real *rescale)
{
    for (ptrdiff_t d = 0; d < dim; ++d)
        for (int v = 0; v < p->nv; ++v) {
            real *at = outputs.data + d * outputs.stride + v * LANES;
            vreal sum = vsplat(0.0f);
            for (ptrdiff_t k = 0; k < steps(b->last - b->first); ++k) {
                vreal value = visible_value(p, b, values.data + d * values.row + k * values.col, k, v);
                sum = vterm(value, vload(b->scores + k * p->width + v * LANES), sum);
            }
            if (!p->span.empty) sum = vfma(vload(at), vload(rescale + v * LANES), sum);
            vstore(at, sum);
        }
}
