/* SPDX-License-Identifier: Apache-2.0 */
/* span_tasks.inc.h -- the spans of one task as several tasks, for several threads: the state of each span is kept,
 * and the last step merges the states. The driver merges the same numbers in the same order. */
#ifndef SELFATTN_ATTENTION_SPAN_TASKS_INC_H
#define SELFATTN_ATTENTION_SPAN_TASKS_INC_H

#include "attention/driver.inc.h"

_Static_assert(LANES * sizeof(real) % _Alignof(struct softmax_state) == 0, "a state may follow whole vectors");

/* The rows of a task see no key outside of *first .. *last - 1. */
static void key_range(const struct sa_attention *a, const struct sa_attention_task *t, ptrdiff_t *first,
                      ptrdiff_t *last)
{
    *first = PTRDIFF_MAX, *last = 0;
    for (ptrdiff_t row = 0; row < t->rows; row += PANEL_LANES) {
        struct query_panel p;
        begin_panel(a, t, row, &p);
        *first = smaller(*first, p.min_first);
        *last = larger(*last, p.max_last);
    }
}

/* Bytes of the kept states of a span of one task: for each panel a softmax_state, and behind it its outputs. */
static size_t span_bytes(const struct sa_attention *a)
{
    ptrdiff_t max_rows = gathers_keys(a) ? SHARED_PANELS * PANEL_LANES : SA_TASK_ROWS;
    ptrdiff_t rows = smaller(max_rows, a->q_len * sa_group(a));
    ptrdiff_t panels = (rows + PANEL_LANES - 1) / PANEL_LANES, width = (rows + LANES - 1) / LANES * LANES;
    return (size_t)panels * sizeof(struct softmax_state) + (size_t)(width * a->value_dim) * sizeof(real);
}

/* The kept state of the next panel: behind the outputs, which are value_dim numbers for each lane. */
static struct softmax_state *next_kept_state(const struct sa_attention *a, const struct query_panel *p,
                                             struct softmax_state *s)
{
    return (struct softmax_state *)((real *)(s + 1) + a->value_dim * p->width);
}

/* Passes 1 to 3 of the span that begins at first_key; `states` receives its state, span_bytes() long. */
static int attention_span(const struct sa_attention *a, const struct sa_attention_task *t, ptrdiff_t first_key,
                          void *states, void *workspace)
{
    struct query_panel panels[SHARED_PANELS];
    struct key_block b;
    struct score_scale scaling = score_scale_of(a);
    ptrdiff_t first, last;
    int count = begin_task(a, t, scaling, workspace, &b, panels);
    all_keys(panels, count, &first, &last);
    attend_span(a, t, scaling, panels, count, first_key, first, last, &b);
    struct softmax_state *s = states;
    for (int i = 0; i < count; s = next_kept_state(a, &panels[i], s), ++i) {
        *s = panels[i].span;
        s->outputs = (real *)(s + 1);
        if (!s->empty)
            memcpy(s->outputs, panels[i].span.outputs, (size_t)(a->value_dim * panels[i].width) * sizeof(real));
    }
    return SA_OK;
}

/* Merges the kept states of all spans of a task, in order, and stores out and lse. states: spans x span_bytes(). */
static void merge_spans(const struct sa_attention *a, const struct sa_attention_task *t, ptrdiff_t spans, void *states)
{
    struct score_scale scaling = score_scale_of(a);
    struct softmax_state *state = states;
    for (ptrdiff_t row = 0; row < t->rows; row += PANEL_LANES) {
        struct query_panel p;
        begin_panel(a, t, row, &p);
        p.total = *state;
        for (ptrdiff_t span = 1; span < spans; ++span) {
            p.span = *(struct softmax_state *)((char *)state + (size_t)span * span_bytes(a));
            merge_span(&p, a->value_dim, scaling.to_log2);
        }
        state = next_kept_state(a, &p, state);
        close_total(a, t, &p, scaling);
        store_total(a, t, &p, scaling);
    }
}

#endif
