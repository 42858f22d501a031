/* SPDX-License-Identifier: Apache-2.0 */
/* kernels.h -- the contract that every instruction set fulfils. A new kernel is one line in struct sa_kernels, one
 * function in a *.inc.h, and its name in isa/kernels.inc.h. */
#ifndef SELFATTN_CONTRACTS_KERNELS_H
#define SELFATTN_CONTRACTS_KERNELS_H

#include <math.h>
#include <string.h>

#include "contracts/arguments.h"
#include "contracts/canonical.h"
#include "contracts/tuning.h"
#include "runtime/pool.h"
#include "runtime/workspace.h"

enum { SA_TASK_ROWS = SA_BACKWARD_ROWS }; /* rows (queries x grouped heads) of one task */

/* One task: the rows row0 .. row0 + rows - 1 of one key head of an item. Row r is query r / group of head r % group
 * of the group. So grouped heads lie side by side in the lanes, and share every load of a key. */
struct sa_attention_task {
    const char *query, *key, *value, *mask, *bias, *key_scale,
        *value_scale; /* addresses of the item and the first head */
    char *out, *lse;
    const char *grad_out;
    char *grad_query, *grad_key, *grad_value, *grad_bias, *grad_sinks, *grad_alibi; /* NULL: not computed */
    double *grad_relative_bias;
    ptrdiff_t item, head;                               /* the indices of the item and of the first head */
    const int64_t *pages;                               /* the page numbers of the item, or NULL */
    const double *alibi_slopes, *sinks, *relative_bias; /* of the first head, or NULL */
    ptrdiff_t q_len, valid_keys;                        /* keys from valid_keys on are hidden */
    ptrdiff_t position0;                                /* the position of query 0 among the keys */
    ptrdiff_t row0, rows;
    int first;                            /* the first task of its head, which brings keys and values into the caches */
    const struct sa_attention_task *next; /* NULL, or the likely next task of this thread, to prefetch */
};

/* Do the keys and values of a head exceed SA_CORE_CACHE_BYTES? */
static inline int sa_keys_exceed_cache(const struct sa_attention *a)
{
    return (double)a->kv_len * (double)(a->head_dim + a->value_dim) * sizeof(float) >= SA_CORE_CACHE_BYTES;
}

struct sa_kernels {
    const char *isa;
    int lanes;                                    /* numbers of a vector */
    int number_bytes;                             /* 4, or 8 for the float64 kernels */
    enum sa_format format;                        /* of the operands of products */
    ptrdiff_t panel_width;                        /* columns of a weight panel */
    int (*runs_here)(void);                       /* do this processor and its operating system support it? */
    const struct sa_kernels *float64;             /* the same kernels in float64 */
    const struct sa_kernels *formats[SA_FORMATS]; /* the same kernels with products of another format; NULL: none */

    int (*gathers_keys)(const struct sa_attention *); /* do the panels of a task share a copy of keys and values? */
    size_t (*attention_workspace)(const struct sa_attention *);
    int (*attention)(const struct sa_attention *, const struct sa_attention_task *, void *workspace);
    /* The same in parts: the state of each span of a task, span_bytes long; then all states are merged. */
    void (*key_range)(const struct sa_attention *, const struct sa_attention_task *, ptrdiff_t *first_key,
                      ptrdiff_t *last_key);
    size_t (*span_bytes)(const struct sa_attention *);
    int (*attention_span)(const struct sa_attention *, const struct sa_attention_task *, ptrdiff_t first_key,
                          void *states, void *workspace);
    void (*merge_spans)(const struct sa_attention *, const struct sa_attention_task *, ptrdiff_t spans, void *states);
    int (*attention_weights)(const struct sa_attention *, const struct sa_attention_task *, void *workspace);
    int (*row_statistics)(const struct sa_attention *, const struct sa_attention_task *, void *workspace);
    size_t (*backward_workspace)(const struct sa_attention *);
    int (*attention_backward)(const struct sa_attention *, const struct sa_attention_task *, ptrdiff_t first_key,
                              ptrdiff_t last_key, void *workspace);
    int (*column_sums)(const struct sa_attention *, const struct sa_attention_task *, ptrdiff_t first_key,
                       void *workspace);

    void (*pack_weights)(const char *weight, ptrdiff_t row, ptrdiff_t col, ptrdiff_t depth, ptrdiff_t width,
                         void *packed);
    size_t (*linear_workspace)(ptrdiff_t rows, ptrdiff_t depth);
    void (*linear)(const struct sa_linear *, ptrdiff_t row0, ptrdiff_t row1, ptrdiff_t panel0, ptrdiff_t panel1,
                   void *workspace);
    size_t (*linear_backward_workspace)(void);
    void (*linear_backward)(const struct sa_linear_backward *, ptrdiff_t row0, ptrdiff_t row1, ptrdiff_t in0,
                            ptrdiff_t in1, ptrdiff_t panel0, ptrdiff_t panel1, void *workspace);
    void (*norm)(const struct sa_norm *, ptrdiff_t row0, ptrdiff_t row1);
    void (*rotary)(const struct sa_rotary *, ptrdiff_t row0, ptrdiff_t row1);
    void (*activate)(enum sa_activation, void *x, ptrdiff_t n); /* in place */
    void (*gate)(enum sa_activation, const void *gate_up, ptrdiff_t rows, ptrdiff_t width, void *y);

    void (*activation_backward)(const struct sa_activation_backward *, ptrdiff_t begin, ptrdiff_t end);
    /* Sums over the rows of a chunk: of weight and bias, (2, width); of x, (width,). add_sums adds the sums of all
     * chunks into y. */
    void (*norm_backward)(const struct sa_norm_backward *, ptrdiff_t row0, ptrdiff_t row1, double *sums);
    void (*sum_rows)(const void *x, ptrdiff_t rows, ptrdiff_t width, double *sums);
    void (*add_sums)(double *sums, ptrdiff_t chunks, ptrdiff_t stride, ptrdiff_t width, void *y);

    double (*peak_loop)(ptrdiff_t iterations);          /* multiply-adds only; returns the number of operations */
    double (*read_loop)(const void *data, ptrdiff_t n); /* reads n numbers */
};

extern const struct sa_kernels sa_kernels_baseline, sa_kernels_avx2, sa_kernels_avx512, sa_kernels_neon;
extern const struct sa_kernels sa_kernels_baseline_float64, sa_kernels_avx2_float64, sa_kernels_avx512_float64,
    sa_kernels_neon_float64, sa_kernels_avx512_bfloat16;

/* The kernels whose products are of a format, if this processor has them; else the given kernels. */
const struct sa_kernels *sa_kernels_of(const struct sa_kernels *, enum sa_format);
const struct sa_kernels *sa_active(void);
const struct sa_kernels *sa_available(int index); /* best first; NULL past the end */
int sa_use(const char *isa);                      /* 0, or -1 if that instruction set cannot run here */

#endif
