/* kernels.h -- the contract every instruction set fulfils. To add a kernel: one line in struct sa_kernels, one function
 * in a *.inc.h. Strides are in bytes and may be anything (negative, zero, odd); row, column and head counts may be zero.
 */
#ifndef SELFATTN_KERNELS_H
#define SELFATTN_KERNELS_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "pool.h"

enum {
    SA_MAX_LEADING = 16,             /* leading (batch) dimensions */
    SA_TASK_ROWS = 64,               /* rows of the score matrix (queries x grouped heads) that one task takes */
    SA_KEY_BLOCK = 144,              /* keys that share one maximum ... */
    SA_KEY_SPAN = 12 * SA_KEY_BLOCK, /* ... and one chain of additions: functions of nothing but the key's index */
};

/* An array as it lies in memory: a base address and byte strides. data is NULL for an argument not given. */
struct sa_array {
    char *data;
    ptrdiff_t leading[SA_MAX_LEADING];
    ptrdiff_t head, row, col;
};

/* Query i sees every key, the keys j <= i, or j <= i + kv_len - q_len. */
enum sa_causal { SA_NOT_CAUSAL = 0, SA_CAUSAL_TOP_LEFT, SA_CAUSAL_BOTTOM_RIGHT };

/* One call of the attention operator. Arrays are (leading..., head, row, col): query and out rows are queries, key and
 * value rows are keys; mask and bias are (..., head, query, key); lse has no column.
 * Dense: every item has q_len queries and kv_len keys (cu_seqlens_* NULL). Packed: item i has the rows
 * cu_seqlens_q[i] .. cu_seqlens_q[i + 1] - 1 of query and out, and those of cu_seqlens_kv of key and value. */
struct sa_attention {
    struct sa_array query, key, value, out, mask, bias, lse;
    int num_leading;
    ptrdiff_t leading_shape[SA_MAX_LEADING];
    ptrdiff_t items; /* product of leading_shape, or the number of packed sequences */
    ptrdiff_t num_heads, num_kv_heads, q_len, kv_len, head_dim, value_dim;
    const int64_t *cu_seqlens_q, *cu_seqlens_kv;
    const int64_t *kv_lengths; /* NULL, or valid keys of item i at kv_lengths[i / items_per_length] */
    ptrdiff_t items_per_length;
    float scale;
    enum sa_causal causal;
};

/* What one task computes: rows row0 .. row0 + rows - 1 of one item's key/value head. Row r is query r / group of head
 * r % group of the group: grouped heads lie side by side in the lanes and share every load of a key. */
struct sa_tile {
    const char *query, *key, *value, *mask, *bias; /* of the item and the (first) head */
    char *out, *lse;
    ptrdiff_t q_len, kv_len, valid_keys; /* valid_keys <= kv_len */
    ptrdiff_t row0, rows;
};

enum sa_activation { SA_IDENTITY = 0, SA_GELU, SA_GELU_TANH, SA_RELU, SA_SILU };

/* y = act(x W + b) + residual on packed weights. x rows: any byte stride, contiguous floats; y and residual likewise. */
struct sa_linear {
    const float *x, *packed, *bias, *residual; /* bias, residual: NULL if none */
    float *y;
    ptrdiff_t x_stride, y_stride, residual_stride; /* floats */
    ptrdiff_t rows, depth, width;
    enum sa_activation activation;
};

/* Rows of floats, normalised: kind 0 LayerNorm, 1 RMSNorm. */
struct sa_norm {
    const float *x, *weight, *bias; /* bias: NULL if none */
    float *y;                       /* may be x */
    ptrdiff_t rows, width;
    double eps;
    int rms;
};

struct sa_kernels {
    const char *isa;
    int lanes;              /* float32 values per vector */
    ptrdiff_t panel_width;  /* columns of one packed panel of weights */
    int (*runs_here)(void); /* do this CPU and its operating system support it? */

    size_t (*attention_workspace)(const struct sa_attention *);
    int (*attention)(const struct sa_attention *, const struct sa_tile *, void *workspace);
    int (*attention_weights)(const struct sa_attention *, const struct sa_tile *, void *workspace);

    void (*pack_weights)(const char *weight, ptrdiff_t row, ptrdiff_t col, ptrdiff_t depth, ptrdiff_t width,
                         float *packed);
    void (*linear)(const struct sa_linear *, ptrdiff_t row0, ptrdiff_t row1, ptrdiff_t panel0, ptrdiff_t panel1);
    void (*norm)(const struct sa_norm *, ptrdiff_t row0, ptrdiff_t row1);
    void (*activate)(enum sa_activation, float *x, ptrdiff_t n); /* in place */
    void (*gate)(enum sa_activation, const float *gate_up, ptrdiff_t rows, ptrdiff_t width, float *y);

    double (*peak_loop)(ptrdiff_t iterations);          /* multiply-adds only; returns the floating-point operations */
    float (*read_loop)(const float *data, ptrdiff_t n); /* reads n floats */
};

extern const struct sa_kernels sa_kernels_baseline, sa_kernels_avx2, sa_kernels_avx512, sa_kernels_neon;

const struct sa_kernels *sa_active(void);
const struct sa_kernels *sa_available(int index); /* best first; NULL past the end */
int sa_use(const char *isa);                      /* 0, or -1 if that instruction set cannot run here */

/* The operators over all their tasks, on the pool's threads; each returns SA_OK or the pool's status. */
int sa_attention_run(const struct sa_kernels *, const struct sa_attention *, int weights, int num_threads);
int sa_linear_run(const struct sa_kernels *, const struct sa_linear *, int num_threads);
int sa_norm_run(const struct sa_kernels *, const struct sa_norm *, int num_threads);
int sa_activate_run(const struct sa_kernels *, enum sa_activation, float *x, ptrdiff_t n, int num_threads);
int sa_gate_run(const struct sa_kernels *, enum sa_activation, const float *gate_up, ptrdiff_t rows, ptrdiff_t width,
                float *y, int num_threads);

#endif
