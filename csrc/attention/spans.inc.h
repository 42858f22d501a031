/* spans.inc.h -- the spans of a tile make the whole: one after the other; or apart, on several threads, where what each
 * has summed up is kept until all are there. Both merge the same numbers in the same order. */

/* outputs = span * factor + outputs * old factor, for a vector of lanes. */
static void merge_lanes(struct lanes *p, int v, ptrdiff_t dim, vreal factor, vreal old_factor)
{
    for (ptrdiff_t d = 0; d < dim; ++d) {
        real *total = p->total.outputs + d * p->width + v * LANES;
        const real *span = p->span.outputs + d * p->width + v * LANES;
        vstore(total, vfma(vload(span), factor, vload(total) * old_factor));
    }
}

/* total = total + span, both rescaled to the larger maximum; the first span with a key is taken as it is. */
static void merge_span(struct lanes *p, ptrdiff_t value_dim, real c)
{
    struct state *total = &p->total, *span = &p->span;
    if (span->empty) return;
    if (total->empty) {
        real *room = total->outputs;
        *total = *span;
        span->outputs = room;
        return;
    }
    for (int v = 0; v < p->nv; ++v) {
        vreal old = vload(total->max + v * LANES), add = vload(span->max + v * LANES), max = vmax(add, old);
        vreal base = vzero_where(max == vsplat(-INFINITY), max);
        vreal old_factor = vexp2((old - base) * vsplat(c)), add_factor = vexp2((add - base) * vsplat(c));
        vstore(total->max + v * LANES, max);
        vreal sum = vload(total->sum + v * LANES) * old_factor;
        vstore(total->sum + v * LANES, vfma(vload(span->sum + v * LANES), add_factor, sum));
        if (total->outputs) (p->by_rows ? merge_rows : merge_lanes)(p, v, value_dim, add_factor, old_factor);
    }
}

/* All blocks of one span for the panels of a tile, which see the keys first .. last - 1. */
static void attend_span(const struct sa_attention *a, const struct sa_tile *t, struct scaling scaling,
                        struct lanes *panels, int count, ptrdiff_t span, ptrdiff_t first, ptrdiff_t last,
                        struct block *b)
{
    for (int i = 0; i < count; ++i)
        begin_state(&panels[i], &panels[i].span);
    ptrdiff_t end = smaller(span + SA_KEY_SPAN, last);
    for (ptrdiff_t key = larger(span, first / SA_KEY_BLOCK * SA_KEY_BLOCK); key < end; key += SA_KEY_BLOCK) {
        begin_block(b, larger(key, first), smaller(key + SA_KEY_BLOCK, last));
        for (int i = 0; i < count; ++i)
            attend_block(a, t, &panels[i], scaling, key, b);
    }
}

/* Begins a tile of `count` panels, and does all spans. */
static int attend(const struct sa_attention *a, const struct sa_tile *t, struct scaling scaling, void *workspace,
                  struct block *b, struct lanes *panels, int *panel_count)
{
    int count = *panel_count = begin_tile(a, t, scaling, workspace, b, panels);
    ptrdiff_t first, last;
    all_keys(panels, count, &first, &last);
    for (ptrdiff_t span = first / SA_KEY_SPAN * SA_KEY_SPAN; span < last; span += SA_KEY_SPAN) {
        int status = sa_checkpoint();
        if (status) return status;
        if (span + SA_KEY_SPAN >= last) fetch_next(a, t->next, b);
        attend_span(a, t, scaling, panels, count, span, first, last, b);
        for (int i = 0; i < count; ++i)
            merge_span(&panels[i], a->value_dim, scaling.c);
    }
    for (int i = 0; i < 2 && b->next_rows > 0; ++i)
        fetch_ahead(&b->next[i], 0, (int)b->next_rows);
    for (int i = 0; i < count; ++i)
        close_total(a, t, &panels[i], scaling);
    return SA_OK;
}

static void store_total(const struct sa_attention *a, const struct sa_tile *t, const struct lanes *p,
                        struct scaling scaling)
{
    if (p->total.empty) memset(p->total.outputs, 0, (size_t)a->value_dim * (size_t)p->width * sizeof(real));
    (p->by_rows ? store_rows : store_panel)(a, &a->out, t->out, a->value_dim, p, p->total.outputs, p->inverse);
    if (t->lse) store_lse(a, t, p, scaling);
}

static int attention(const struct sa_attention *a, const struct sa_tile *t, void *workspace)
{
    struct lanes panels[SHARED_PANELS];
    struct block b;
    struct scaling scaling = scaling_of(a);
    int count, status = attend(a, t, scaling, workspace, &b, panels, &count);
    for (int i = 0; i < count && !status; ++i)
        store_total(a, t, &panels[i], scaling);
    return status;
}

/* ---- apart ---- */

/* The keys that a tile may see: none outside of first .. last - 1. */
static void key_range(const struct sa_attention *a, const struct sa_tile *t, ptrdiff_t *first, ptrdiff_t *last)
{
    *first = PTRDIFF_MAX, *last = 0;
    for (ptrdiff_t row = 0; row < t->rows; row += PANEL_LANES) {
        struct lanes p;
        begin_panel(a, t, row, &p);
        *first = smaller(*first, p.min_first);
        *last = larger(*last, p.max_last);
    }
}

/* The bytes of what is kept of a tile's span: panel by panel a state, and behind it its outputs. */
static size_t span_bytes(const struct sa_attention *a)
{
    ptrdiff_t most = needs_staging(a) ? SHARED_PANELS * PANEL_LANES : SA_TASK_ROWS;
    ptrdiff_t rows = smaller(most, a->q_len * (a->num_heads / a->num_kv_heads));
    ptrdiff_t panels = (rows + PANEL_LANES - 1) / PANEL_LANES, width = (rows + LANES - 1) / LANES * LANES;
    return (size_t)panels * sizeof(struct state) + (size_t)(width * a->value_dim) * sizeof(real);
}

static struct state *next_state(const struct sa_attention *a, const struct lanes *p, struct state *s)
{
    return (struct state *)((real *)(s + 1) + a->value_dim * p->width);
}

/* The span that begins at first_key. */
static int attention_span(const struct sa_attention *a, const struct sa_tile *t, ptrdiff_t first_key, void *states,
                          void *workspace)
{
    struct lanes panels[SHARED_PANELS];
    struct block b;
    struct scaling scaling = scaling_of(a);
    ptrdiff_t first, last;
    int count = begin_tile(a, t, scaling, workspace, &b, panels);
    all_keys(panels, count, &first, &last);
    attend_span(a, t, scaling, panels, count, first_key, first, last, &b);
    struct state *s = states;
    for (int i = 0; i < count; s = next_state(a, &panels[i], s), ++i) {
        *s = panels[i].span;
        s->outputs = (real *)(s + 1);
        if (!s->empty)
            memcpy(s->outputs, panels[i].span.outputs, (size_t)(a->value_dim * panels[i].width) * sizeof(real));
    }
    return SA_OK;
}

/* All spans of a tile, as they were kept, one after the other. */
static void merge_spans(const struct sa_attention *a, const struct sa_tile *t, ptrdiff_t spans, void *states)
{
    struct scaling scaling = scaling_of(a);
    struct state *of_panel = states;
    for (ptrdiff_t row = 0; row < t->rows; row += PANEL_LANES) {
        struct lanes p;
        begin_panel(a, t, row, &p);
        p.total = *of_panel;
        for (ptrdiff_t span = 1; span < spans; ++span) {
            p.span = *(struct state *)((char *)of_panel + (size_t)span * span_bytes(a));
            merge_span(&p, a->value_dim, scaling.c);
        }
        of_panel = next_state(a, &p, of_panel);
        close_total(a, t, &p, scaling);
        store_total(a, t, &p, scaling);
    }
}
