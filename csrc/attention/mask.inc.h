/* mask.inc.h -- which keys a lane sees: ranges, boolean masks, additive biases.
 *
 * A block of mask and bias becomes one panel of floats, keys x lanes: the bias, and -inf where the mask is False.
 * A masked key contributes nothing: its score becomes -inf and its weight exactly 0, whatever key and value hold. */

/* May a key of the block be hidden from some lane? */
static int is_masked(const struct block *b)
{
    return b->ranged || b->biased != NOT_BIASED;
}

/* Where one row of the tile has the element of a key, in mask or bias. */
static const char *element(const struct sa_attention *a, const struct sa_array *array, const char *data, ptrdiff_t row,
                           ptrdiff_t key)
{
    return row_of(array, data, a->num_heads / a->num_kv_heads, row) + key * array->col;
}

/* Do all lanes have the same row of this array? */
static int same_row(const struct sa_attention *a, const struct sa_array *array, ptrdiff_t rows)
{
    return rows == 1 || (array->row == 0 && (array->head == 0 || a->num_heads == a->num_kv_heads));
}

/* For each key of a block: is it shown to some row, is it hidden from some row? Sixteen keys at a time. */
struct shown {
    unsigned char some[SA_KEY_BLOCK], not_all[SA_KEY_BLOCK];
};
typedef unsigned char vbytes __attribute__((vector_size(16), aligned(1), may_alias));
typedef signed char vflags __attribute__((vector_size(16), aligned(1), may_alias));

static void scan_mask(const struct sa_attention *a, const struct sa_tile *t, ptrdiff_t row0, ptrdiff_t rows,
                      ptrdiff_t first, ptrdiff_t keys, struct shown *shown)
{
    ptrdiff_t k = 0, col = a->mask.col;
    if (same_row(a, &a->mask, rows)) rows = 1;
    for (; col == 1 && k + 16 <= keys; k += 16) {
        vbytes some = {0}, not_all = {0};
        for (ptrdiff_t i = 0; i < rows; ++i) {
            vbytes mask = *(const vbytes *)element(a, &a->mask, t->mask, row0 + i, first + k);
            some |= mask;
            not_all |= (vbytes)(vflags)(mask == 0);
        }
        memcpy(shown->some + k, &some, sizeof some);
        memcpy(shown->not_all + k, &not_all, sizeof not_all);
    }
    for (; k < keys; ++k) {
        shown->some[k] = shown->not_all[k] = 0;
        for (ptrdiff_t i = 0; i < rows; ++i) {
            char mask = *element(a, &a->mask, t->mask, row0 + i, first + k);
            shown->some[k] |= mask != 0;
            shown->not_all[k] |= mask == 0;
        }
    }
}

/* Narrows the keys *first .. *last - 1 to those that the mask shows to some row. Returns whether one is left; `hidden`
 * tells whether one of those is hidden from some row. */
static int trim_to_mask(const struct sa_attention *a, const struct sa_tile *t, ptrdiff_t row0, ptrdiff_t rows,
                        ptrdiff_t *first, ptrdiff_t *last, int *hidden)
{
    struct shown shown;
    ptrdiff_t begin = 0, end = *last - *first;
    scan_mask(a, t, row0, rows, *first, end, &shown);
    while (end > 0 && !shown.some[end - 1])
        --end;
    while (begin < end && !shown.some[begin])
        ++begin;
    begin = begin / TERMS * TERMS; /* a pair's other key counts as hidden */
    end = smaller((end + TERMS - 1) / TERMS * TERMS, *last - *first);
    *hidden = 0;
    for (ptrdiff_t k = begin; k < end; ++k)
        *hidden |= shown.not_all[k];
    *last = *first + end;
    *first += begin;
    return begin < end;
}

/* out[k] = bias of key first + k for one row of the tile, or 0 without bias; -inf where the mask is False. Returns
 * whether a key is visible. */
static int expand_row(const struct sa_attention *a, const struct sa_tile *t, ptrdiff_t row, ptrdiff_t first,
                      ptrdiff_t n, real *restrict out)
{
    if (t->bias)
        widen_row(element(a, &a->bias, t->bias, row, first), a->bias.col, n, a->bias_dtype, out);
    else
        memset(out, 0, (size_t)n * sizeof(real));
    if (t->mask) {
        const char *restrict mask = element(a, &a->mask, t->mask, row, first);
        ptrdiff_t col = a->mask.col;
        if (col == 1) {
            for (ptrdiff_t k = 0; k < n; ++k)
                out[k] = mask[k] ? out[k] : -INFINITY;
        } else {
            for (ptrdiff_t k = 0; k < n; ++k)
                out[k] = mask[k * col] ? out[k] : -INFINITY;
        }
    }
    int visible = 0;
    for (ptrdiff_t k = 0; k < n; ++k)
        visible |= out[k] != -INFINITY;
    return visible;
}

/* The rows of one vector of lanes, transposed into the panel. */
static int expand_lanes(const struct sa_attention *a, const struct sa_tile *t, ptrdiff_t row0, ptrdiff_t rows,
                        ptrdiff_t first, ptrdiff_t n, real *panel, ptrdiff_t width)
{
    real expanded[LANES][SA_KEY_BLOCK] = {{0}};
    int visible = 0;
    for (ptrdiff_t i = 0; i < rows; ++i)
        visible |= expand_row(a, t, row0 + i, first, n, expanded[i]);
    for (ptrdiff_t k = 0; k < n; k += LANES) {
        vreal tile[LANES];
        for (int i = 0; i < LANES; ++i)
            tile[i] = vload(expanded[i] + k);
        vtranspose(tile);
        for (ptrdiff_t j = 0; j < LANES && k + j < n; ++j)
            vstore(panel + (k + j) * width, tile[j]);
    }
    return visible;
}

/* A row shared by all lanes: keys at both ends that it masks, by mask or bias, are cut off the block, not computed. */
static int expand_shared(const struct sa_attention *a, const struct sa_tile *t, ptrdiff_t row0, ptrdiff_t width,
                         ptrdiff_t *first, ptrdiff_t *last, real *panel)
{
    real row[SA_KEY_BLOCK];
    ptrdiff_t begin = 0, end = *last - *first;
    if (!expand_row(a, t, row0, *first, end, row)) return 0;
    while (row[begin] == -INFINITY)
        ++begin;
    while (row[end - 1] == -INFINITY)
        --end;
    begin = begin / TERMS * TERMS;
    *last = *first + end;
    *first += begin;
    for (ptrdiff_t k = begin; k < end; ++k)
        for (int i = 0; i < width; i += LANES)
            vstore(panel + (k - begin) * width + i, vsplat(row[k]));
    return 1;
}

/* Fills the panel for the keys *first .. *last - 1, which it may narrow. */
static enum biased load_bias(const struct sa_attention *a, const struct sa_tile *t, ptrdiff_t row0, ptrdiff_t rows,
                             int nv, ptrdiff_t *first, ptrdiff_t *last, real *panel)
{
    int hidden = 0, visible = 0, width = nv * LANES;
    if ((!t->mask && !t->bias) || *first >= *last) return NOT_BIASED;
    if (t->mask && !trim_to_mask(a, t, row0, rows, first, last, &hidden)) return ALL_MASKED;
    if (!t->bias && !hidden) return NOT_BIASED;
    if ((!t->mask || same_row(a, &a->mask, rows)) && (!t->bias || same_row(a, &a->bias, rows)))
        return expand_shared(a, t, row0, width, first, last, panel) ? BIASED : ALL_MASKED;
    for (int v = 0; v < nv; ++v)
        visible |= expand_lanes(a, t, row0 + v * LANES, smaller(LANES, rows - v * LANES), *first, *last - *first,
                                panel + v * LANES, width);
    return visible ? BIASED : ALL_MASKED;
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
    for (ptrdiff_t k = 0; k < b->last - b->first; ++k)
        for (int i = 0; i < p->width; i += LANES) {
            real *at = b->scores + k * b->stride + i;
            vreal capped = vsplat(softcap) * vtanh(vload(at) * vsplat(units) / vsplat(softcap));
            vstore(at, capped);
            if (b->capped) vstore(b->capped + k * b->stride + i, capped);
        }
}

/* How far the block's first key is from each lane's position. */
INLINE vint first_distances(const struct lanes *p, const struct block *b, int v)
{
    const ptrdiff_t far = (ptrdiff_t)1 << 30;
    integer first[LANES];
    vint distance;
    for (int i = 0; i < LANES; ++i)
        first[i] = (integer)larger(-far, smaller(far, b->first - p->position[v * LANES + i]));
    memcpy(&distance, first, sizeof distance);
    return distance;
}

INLINE vreal magnitude_of(vint distance)
{
    vint negative = distance < 0;
    return __builtin_convertvector((distance ^ negative) - negative, vreal);
}

/* 2. alibi: score = score * units - slope * |how far the key is from the query's position| */
static void add_alibi(const struct sa_tile *t, ptrdiff_t group, const struct lanes *p, struct block *b, real units)
{
    for (int v = 0; v < p->nv; ++v) {
        real slopes[LANES];
        for (int i = 0; i < LANES; ++i)
            slopes[i] = -(real)t->alibi_slopes[(p->row0 + v * LANES + i) % group];
        vreal slope = vload(slopes);
        vint distance = first_distances(p, b, v);
        for (ptrdiff_t k = 0; k < b->last - b->first; ++k, distance += 1) {
            real *at = b->scores + k * b->stride + v * LANES;
            vstore(at, vfma(slope, magnitude_of(distance), vload(at) * vsplat(units)));
        }
    }
}

/* 3. bias and masks: scores = scores * units + bias where the lane sees the key, -inf elsewhere; and their maximum. */
INLINE void mask_scores_of(const int biased, const int ranged, const struct lanes *p, struct block *b, real units)
{
    for (int v = 0; v < p->nv; ++v) {
        vreal max = vsplat(-INFINITY);
        vint begin = *(const vint *)(b->begin + v * LANES), end = *(const vint *)(b->end + v * LANES);
        for (ptrdiff_t k = 0; k < b->last - b->first; ++k) {
            real *at = b->scores + k * b->stride + v * LANES;
            vreal score = vload(at) * vsplat(units), bias = vsplat(0.0f);
            if (biased) bias = vload(b->bias + k * p->width + v * LANES);
            if (biased) score = vfma(vload(at), vsplat(units), bias);
            vint key = visplat((integer)k);
            if (biased) score = vselect(bias == vsplat(-INFINITY), bias, score); /* whatever the score is */
            if (ranged) score = vselect((key >= begin) & (key < end), score, vsplat(-INFINITY));
            max = vmax(score, max);
            vstore(at, score);
        }
        vstore(b->max + v * LANES, max);
    }
}

static void mask_scores(const struct lanes *p, struct block *b, real units)
{
    set_block_ranges(p, b);
    if (b->biased == BIASED && b->ranged)
        mask_scores_of(1, 1, p, b, units);
    else if (b->biased == BIASED)
        mask_scores_of(1, 0, p, b, units);
    else
        mask_scores_of(0, 1, p, b, units);
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

/* Is every element of A finite, of pairs both halves? An exponent of ones alone carries into the sign, if it is
 * raised by one. */
static int all_finite(struct operand a, ptrdiff_t rows, ptrdiff_t depth)
{
    const bits sign = (bits)1 << (8 * sizeof(bits) - 1), signs = TERMS == 2 ? sign | 0x8000 : sign;
    const bits exponent = sizeof(bits) == 4 ? (bits)1 << 23 : (bits)((uint64_t)1 << 52);
    const bits one = TERMS == 2 ? exponent | 0x80 : exponent;
    vbits carried = {0};
    bits found = 0;
    for (ptrdiff_t p = 0; p < depth; ++p) {
        const char *at = a.data + p * a.col;
        ptrdiff_t i = 0;
        for (; a.row == (ptrdiff_t)sizeof(real) && i + LANES <= rows; i += LANES)
            carried |= ((vbits)vload((const real *)(at + i * a.row)) & ~signs) + one;
        for (; i < rows; ++i)
            found |= (*(const bits_any *)(at + i * a.row) & ~signs) + one;
    }
    for (int i = 0; i < LANES; ++i)
        found |= carried[i];
    return !(found & signs);
}

/* Is there a number that must not reach every lane, among the values of the keys that some lane does not see (with a mask
 * or bias, of all)? 0 * NaN is NaN. rows: from step to step, and from dimension to dimension. */
static int hides_infinite(const struct lanes *p, const struct block *b, struct operand rows, ptrdiff_t dim)
{
    if (!is_masked(b)) return 0;
    ptrdiff_t keys = b->last - b->first, first = keys, last = keys; /* all lanes see the keys first .. last - 1 */
    if (b->biased == NOT_BIASED) {
        first = smaller(keys, larger(0, p->max_first - b->first));
        last = larger(first, smaller(keys, p->min_last - b->first));
    }
    ptrdiff_t after = last < keys ? last / TERMS : steps(keys);
    return !all_finite((struct operand){rows.data, rows.col, rows.row}, dim, steps(first)) ||
           !all_finite((struct operand){rows.data + after * rows.row, rows.col, rows.row}, dim, steps(keys) - after);
}

/* Which bits of a step's values each lane sees: all, or none, of each key's. */
INLINE vbits visible_bits(const struct lanes *p, const struct block *b, ptrdiff_t step, int v)
{
    if (TERMS == 1) return (vbits)visible_lanes(p, b, step, v);
    vbits seen = (vbits)visible_lanes(p, b, 2 * step, v) & 0xffff;
    if (2 * step + 1 < b->last - b->first) seen |= (vbits)visible_lanes(p, b, 2 * step + 1, v) & 0xffff0000;
    return seen;
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
                vreal value = vsplat(*(const scalar_any *)(values.data + d * values.row + k * values.col));
                value = (vreal)((vbits)value & visible_bits(p, b, k, v));
                sum = vterm(value, vload(b->scores + k * b->stride + v * LANES), sum);
            }
            if (!p->span.empty) sum = vfma(vload(at), vload(rescale + v * LANES), sum);
            vstore(at, sum);
        }
}
