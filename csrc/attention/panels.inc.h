/* SPDX-License-Identifier: Apache-2.0 */
/* panels.inc.h -- the beginning of a task: its workspace, its query panels, its prefetches. */
#ifndef SELFATTN_ATTENTION_PANELS_INC_H
#define SELFATTN_ATTENTION_PANELS_INC_H

#include "attention/decode_scores.inc.h"
#include "attention/key_block.inc.h"
#include "attention/softmax.inc.h"
#include "attention/values_by_row.inc.h"

enum { MAX_PANELS = SA_TASK_ROWS / PANEL_LANES, SHARED_PANELS = SA_SHARED_PANELS * MAX_PANELS };
_Static_assert(SHARED_PANELS *(int)PANEL_LANES == (int)SA_SHARED_PANELS * (int)SA_TASK_ROWS,
               "the panels of a call hold the rows of its largest task");

enum {
    BUFFER_GAP = 64 /
    (int)sizeof(real) /* numbers between two buffers: one cache line, so that buffers are not 4096 bytes apart */
};

/* Buffers one after the other in a workspace. Without a base a buffer has no address, and only the size is counted. */
struct layout {
    real *base;
    size_t used; /* numbers */
};

/* A buffer of `numbers` numbers: whole vectors may be stored past its end, into the gap. */
static real *place(struct layout *l, size_t numbers)
{
    size_t at = l->used;
    l->used += numbers + BUFFER_GAP;
    return l->base ? l->base + at : NULL;
}

/* dim x lanes, for the widest panel */
static real *place_panel(struct layout *l, ptrdiff_t dim)
{
    return place(l, (size_t)dim * PANEL_LANES);
}

/* Gives the buffers of a key block their places: scores and bias, keys x lanes; copies of keys and values, keys x
 * width. */
static void place_block(const struct sa_attention *a, struct layout *l, struct key_block *b)
{
    b->scores = place_panel(l, SA_KEY_BLOCK);
    b->bias = place_panel(l, SA_KEY_BLOCK);
    if (!gathers_keys(a)) return;
    b->keys.copy = place(l, SA_KEY_BLOCK * (size_t)a->head_dim);
    b->values.copy = place(l, SA_KEY_BLOCK * (size_t)a->value_dim);
}

/* Gives the buffers of a query panel their places: dim x lanes. */
static void place_query_panel(const struct sa_attention *a, struct layout *l, struct query_panel *p)
{
    p->query = place_panel(l, a->head_dim);
    p->span.outputs = place_panel(l, a->value_dim);
    p->total.outputs = place_panel(l, a->value_dim);
}

/* Bytes of the workspace of the largest task. */
static size_t attention_workspace(const struct sa_attention *a)
{
    struct layout l = {NULL, 0};
    struct key_block b;
    struct query_panel p;
    place_block(a, &l, &b);
    for (int i = 0; i < (gathers_keys(a) ? SHARED_PANELS : MAX_PANELS); ++i)
        place_query_panel(a, &l, &p);
    return l.used * sizeof(real);
}

/* Sets what is the same for all key blocks of a task. */
static void begin_blocks(const struct sa_attention *a, const struct sa_attention_task *t, struct key_block *b)
{
    b->capped = NULL;
    b->next_task[0] = b->next_task[1] = (struct prefetch_rows){0};
    b->next_task_rows = 0;
    b->prefetch_enabled = should_prefetch_keys(a, t);
    b->keys = (struct key_source){
        .array = &a->key, .data = t->key, .scale = t->key_scale, .scale_row = a->key_scale.row, .width = a->head_dim};
    b->values = (struct key_source){.array = &a->value,
                                    .data = t->value,
                                    .scale = t->value_scale,
                                    .scale_row = a->value_scale.row,
                                    .width = a->value_dim};
    b->keys.keys_per_step = 1;
    b->values.keys_per_step = TERMS;
}

/* The rows of a task in an array (head, query, dim); none where the numbers of a row are not side by side. */
static struct prefetch_rows rows_of_task(const struct sa_attention *a, const struct sa_attention_task *t,
                                         const struct sa_array *array, const char *data, ptrdiff_t dim)
{
    ptrdiff_t size = size_of(a->dtype), bytes = array->col == size ? dim * size : 0;
    return (struct prefetch_rows){data, array->row, bytes, t->row0, sa_group(a), array->head};
}

/* Prefetches the queries, which are read next, and the cache lines of the outputs, which are written at the end. The
 * processor's own prefetchers follow rows that lie side by side. */
static void prefetch_task_rows(const struct sa_attention *a, const struct sa_attention_task *t)
{
    const struct prefetch_rows rows[2] = {rows_of_task(a, t, &a->query, t->query, a->head_dim),
                                          rows_of_task(a, t, &a->out, t->out, a->value_dim)};
    for (int i = 0; i < 2; ++i)
        if (rows[i].row != rows[i].bytes) issue_prefetch(&rows[i], 0, (int)t->rows);
}

/* Plans the same prefetches for the task that is likely to be next. They are spread over pass 3: one row with each
 * row or dimension of the outputs; the remainder follows at the end of the task. */
static void prefetch_next_task(const struct sa_attention *a, const struct sa_attention_task *next, struct key_block *b)
{
    if (!next) return;
    b->next_task_rows = next->rows;
    b->next_task[0] = rows_of_task(a, next, &a->query, next->query, a->head_dim);
    b->next_task[1] = rows_of_task(a, next, &a->out, next->out, a->value_dim);
}

/* A panel with the rows of a task from the row-th on, at most PANEL_LANES, and the keys that each may see. */
static void begin_panel(const struct sa_attention *a, const struct sa_attention_task *t, ptrdiff_t row,
                        struct query_panel *p)
{
    p->row0 = t->row0 + row;
    p->rows = smaller(PANEL_LANES, t->rows - row);
    p->nv = (int)((p->rows + LANES - 1) / LANES);
    p->width = p->nv * LANES;
    p->by_rows = outputs_by_rows(a, p);
    set_ranges(a, t, p);
}

/* p->query: head_dim x width = the queries * scaling.query_factor. */
static void load_queries(const struct sa_attention *a, const struct sa_attention_task *t, struct query_panel *p,
                         struct score_scale scaling)
{
    load_panel(a, &a->query, t->query, a->head_dim, p, scaling.query_factor, p->query);
    if (is_decode(a, p)) set_decode_query(p, a->head_dim);
}

/* Lays out the workspace, and cuts the rows of a task into panels. Returns the number of panels. */
static int begin_task(const struct sa_attention *a, const struct sa_attention_task *t, struct score_scale scaling,
                      void *workspace, struct key_block *b, struct query_panel *panels)
{
    int count = 0;
    struct layout l = {workspace, 0};
    begin_blocks(a, t, b);
    place_block(a, &l, b);
    if (!t->next) prefetch_task_rows(a, t); /* with a next task, its predecessor has prefetched the rows */
    for (ptrdiff_t row = 0; row < t->rows; row += PANEL_LANES, ++count) {
        struct query_panel *p = &panels[count];
        begin_panel(a, t, row, p);
        place_query_panel(a, &l, p);
        if (!t->value) p->span.outputs = p->total.outputs = NULL;
        begin_softmax(p, &p->total);
        load_queries(a, t, p, scaling);
    }
    return count;
}

/* The keys *first .. *last - 1 that the panels may see, together. */
static void all_keys(const struct query_panel *panels, int count, ptrdiff_t *first, ptrdiff_t *last)
{
    *first = panels[0].min_first;
    *last = panels[0].max_last;
    for (int i = 1; i < count; ++i) {
        *first = smaller(*first, panels[i].min_first);
        *last = larger(*last, panels[i].max_last);
    }
}

#endif
