/* Prints a hash of every kernel's results over many shapes: `bits ISA`, or `bits` for the names that run here.
 * Two instruction sets, or two machines, compute the same bits if and only if the lines are the same. No Python, so
 * that the same program runs under an emulator of another processor. */
#include "contracts/kernels.h"

#include <stdio.h>
#include <stdlib.h>

static const struct sa_kernels *kernels;
static uint64_t random_state;

/* Multiples of 2^-21 in [-4, 4): exact, and the same on every machine. */
static float random_float(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (float)((int64_t)(random_state >> 40) - (1 << 23)) * 0x1p-21f;
}

static float *room(ptrdiff_t n)
{
    float *x = aligned_alloc(64, ((size_t)n * sizeof *x + 127) / 64 * 64);
    if (!x) exit(3);
    return x;
}

static float *floats(ptrdiff_t n)
{
    float *x = room(n);
    for (ptrdiff_t i = 0; i < n; ++i)
        x[i] = random_float();
    return x;
}

static const size_t SIZES[] = {[SA_FLOAT32] = 4, [SA_FLOAT64] = 8, [SA_FLOAT16] = 2, [SA_BFLOAT16] = 2, [SA_INT8] = 1};

/* Numbers of any dtype, finite and of moderate size. */
static void *numbers(enum sa_dtype dtype, ptrdiff_t n)
{
    char *data = (char *)room(2 * n), *at = data;
    for (ptrdiff_t i = 0; i < n; ++i, at += SIZES[dtype]) {
        float x = random_float();
        double wide = (double)x * 1.0000001;
        unsigned r = (unsigned)(random_state >> 33);
        uint16_t float16 = (uint16_t)((r & 0x83ff) | (10 + r / 1024 % 8) << 10);
        uint16_t bfloat16 = (uint16_t)((r & 0x807f) | (120 + r / 128 % 9) << 7);
        const void *source[] = {&x, &wide, &float16, &bfloat16, &r};
        memcpy(at, source[dtype], SIZES[dtype]);
    }
    return data;
}

/* FNV-1a over the bytes. */
static uint64_t hash_bytes(const void *x, size_t n, uint64_t h)
{
    const unsigned char *bytes = x;
    for (size_t i = 0; i < n; ++i)
        h = (h ^ bytes[i]) * 1099511628211u;
    return h;
}

static uint64_t hash(const float *x, ptrdiff_t n, uint64_t h)
{
    return hash_bytes(x, (size_t)n * sizeof *x, h);
}

static const uint64_t HASH_START = 14695981039346656037u;

static void report(const char *kernel, const ptrdiff_t *shape, int rank, uint64_t h)
{
    printf("%s", kernel);
    for (int i = 0; i < rank; ++i)
        printf(" %td", shape[i]);
    printf(" %016llx\n", (unsigned long long)h);
}

/* A contiguous array of (items, heads, rows, cols). */
static struct sa_array array(void *data, size_t size, ptrdiff_t heads, ptrdiff_t rows, ptrdiff_t cols)
{
    ptrdiff_t col = (ptrdiff_t)size, row = cols * col, head = rows * row;
    return (struct sa_array){.data = data, .leading = {heads * head}, .head = head, .row = row, .col = col};
}

enum { ITEMS = 2, HEADS = 4, KV_HEADS = 2, PAGE = 40 };
enum masking {
    NO_MASK,
    CAUSAL,
    BOTTOM_RIGHT,
    LENGTHS,
    MASK_AND_BIAS,
    WINDOW,
    SOFTCAP,
    ALIBI_AND_SINKS,
    DROPOUT,
    EVERYTHING,
    PACKED,
    PAGES,
    NUM_MASKINGS
};

static void mask_by(enum masking how, struct sa_attention *a, ptrdiff_t q_len, ptrdiff_t kv_len)
{
    static int64_t lengths[ITEMS];
    static const double slopes[HEADS] = {0.5, 0.25, 0.125, 0.0625}, sinks[HEADS] = {0.0, 1.0, -2.0, 3.0};
    int all = how == EVERYTHING;
    a->causal = how == CAUSAL                ? SA_CAUSAL_TOP_LEFT
                : how == BOTTOM_RIGHT || all ? SA_CAUSAL_BOTTOM_RIGHT
                                             : SA_NOT_CAUSAL;
    if (how == LENGTHS || how == PAGES || all) {
        lengths[0] = kv_len / 2;
        lengths[1] = kv_len;
        a->kv_lengths = lengths;
        a->items_per_length = 1;
    }
    if (how == MASK_AND_BIAS || all) {
        ptrdiff_t n = ITEMS * HEADS * q_len * kv_len;
        char *mask = malloc((size_t)n + 1);
        if (!mask) exit(3);
        for (ptrdiff_t i = 0; i < n; ++i)
            mask[i] = random_float() < 2.0f;
        a->mask = array(mask, 1, HEADS, q_len, kv_len);
        a->bias_dtype = a->dtype;
        a->bias = array(numbers(a->dtype, n), SIZES[a->dtype], HEADS, q_len, kv_len);
    }
    if (how == WINDOW || all) {
        a->left = (struct sa_side){1, 1 + kv_len / 3};
        a->right = (struct sa_side){1, 2};
    }
    if (how == SOFTCAP || all) a->softcap = 3.0;
    if (how == DROPOUT || all) {
        a->dropout = 0.3;
        a->seed = 42;
    }
    if (how == ALIBI_AND_SINKS || all) {
        a->alibi_slopes = slopes;
        a->sinks = sinks;
    }
}

/* The first item's rows as two packed sequences; or keys as pages, in another order, the same for all heads. */
static void lie_as(enum masking how, struct sa_attention *a)
{
    static int64_t q[ITEMS + 1], kv[ITEMS + 1], table[ITEMS * 100];
    if (how == PACKED) {
        q[1] = a->q_len / 2, q[2] = a->q_len;
        kv[1] = a->kv_len / 3, kv[2] = a->kv_len;
        a->cu_seqlens_q = q, a->cu_seqlens_kv = kv;
        a->num_leading = 0;
    }
    if (how == PAGES) {
        ptrdiff_t pages = (a->kv_len + PAGE - 1) / PAGE, row = a->key.row, value_row = a->value.row;
        a->key = (struct sa_array){.data = a->key.data, .leading = {PAGE * row}, .row = row, .col = a->key.col};
        a->value = (struct sa_array){
            .data = a->value.data, .leading = {PAGE * value_row}, .row = value_row, .col = a->value.col};
        for (ptrdiff_t i = 0; i < ITEMS * pages; ++i)
            table[i] = (i * 7 + 1) % pages;
        a->block_table = table;
        a->table_width = pages;
        a->page_size = PAGE;
    }
}

static void attention(enum sa_dtype dtype, enum sa_dtype kv_dtype, const ptrdiff_t lengths[2], const ptrdiff_t dims[2],
                      enum masking how)
{
    ptrdiff_t q_len = lengths[0], kv_len = lengths[1], head_dim = dims[0], value_dim = dims[1];
    ptrdiff_t rows = ITEMS * HEADS * q_len, keys = ITEMS * KV_HEADS * (kv_len + PAGE);
    void *query = numbers(dtype, rows * head_dim), *key = numbers(kv_dtype, keys * head_dim);
    void *value = numbers(kv_dtype, keys * value_dim), *out = numbers(dtype, rows * value_dim);
    void *lse = numbers(SA_FLOAT64, rows), *scales = floats(keys);
    size_t size = SIZES[dtype], kv_size = SIZES[kv_dtype];
    struct sa_attention a = {
        .query = array(query, size, HEADS, q_len, head_dim),
        .key = array(key, kv_size, KV_HEADS, kv_len, head_dim),
        .value = array(value, kv_size, KV_HEADS, kv_len, value_dim),
        .out = array(out, size, HEADS, q_len, value_dim),
        .lse = array(lse, dtype == SA_FLOAT64 ? 8 : 4, HEADS, q_len, 1),
        .dtype = dtype,
        .kv_dtype = kv_dtype,
        .num_leading = 1,
        .leading_shape = {ITEMS},
        .items = ITEMS,
        .num_heads = HEADS,
        .num_kv_heads = KV_HEADS,
        .q_len = q_len,
        .kv_len = kv_len,
        .head_dim = head_dim,
        .value_dim = value_dim,
        .scale = 0.25,
    };
    if (kv_dtype == SA_INT8) a.key_scale = a.value_scale = array(scales, sizeof(float), KV_HEADS, kv_len, 1);
    mask_by(how, &a, q_len, kv_len);
    lie_as(how, &a);
    if (sa_attention_run(kernels, &a, SA_ATTENTION, 2) != 0) exit(4);
    report("attention", (ptrdiff_t[]){dtype, kv_dtype, q_len, kv_len, head_dim, value_dim, how}, 7,
           hash_bytes(lse, (size_t)rows * 8, hash_bytes(out, (size_t)(rows * value_dim) * size, HASH_START)));
    free(query), free(key), free(value), free(out), free(lse), free(scales);
    free(a.mask.data), free(a.bias.data);
}

static void linear(ptrdiff_t rows, ptrdiff_t depth, ptrdiff_t width, enum sa_activation activation)
{
    float *x = floats(rows * depth), *weight = floats(depth * width), *bias = floats(width);
    float *residual = floats(rows * width), *y = floats(rows * width);
    ptrdiff_t panels = (width + kernels->panel_width - 1) / kernels->panel_width;
    float *packed = room(panels * kernels->panel_width * depth);
    kernels->pack_weights((char *)weight, width * (ptrdiff_t)sizeof(float), sizeof(float), depth, width, packed);
    struct sa_linear l = {
        .x = x,
        .packed = packed,
        .bias = bias,
        .residual = residual,
        .y = y,
        .x_stride = depth,
        .y_stride = width,
        .residual_stride = width,
        .rows = rows,
        .depth = depth,
        .width = width,
        .activation = activation,
    };
    if (sa_linear_run(kernels, &l, 2) != 0) exit(4);
    report("linear", (ptrdiff_t[]){rows, depth, width, activation}, 4, hash(y, rows * width, HASH_START));
    struct sa_linear_backward g = {x, y, weight, rows, depth, width};
    if (sa_linear_backward_run(kernels, &g, 2) != 0) exit(4);
    report("linear_backward", (ptrdiff_t[]){rows, depth, width, activation}, 4,
           hash(weight, depth * width, HASH_START));
    free(x), free(weight), free(bias), free(residual), free(y), free(packed);
}

static void norm(ptrdiff_t rows, ptrdiff_t width, int rms)
{
    float *x = floats(rows * width), *weight = floats(width), *bias = floats(width), *y = floats(rows * width);
    struct sa_norm n = {x, weight, rms ? NULL : bias, y, rows, width, 1e-5, rms};
    if (sa_norm_run(kernels, &n, 2) != 0) exit(4);
    report("norm", (ptrdiff_t[]){rows, width, rms}, 3, hash(y, rows * width, HASH_START));
    free(x), free(weight), free(bias), free(y);
}

/* The gradients of norms, activations and gates, and sums over rows. */
static void layer_gradients(ptrdiff_t rows, ptrdiff_t width)
{
    ptrdiff_t n = rows * width;
    float *x = floats(n), *up = floats(n), *grad_y = floats(n), *weight = floats(width);
    float *grad_x = room(n), *grad_up = room(n), *grad_weight = room(width), *grad_bias = room(width);
    for (int rms = 0; rms < 2; ++rms) {
        struct sa_norm_backward args = {grad_y, x, weight, grad_x, grad_weight, grad_bias, rows, width, 1e-5, rms};
        if (sa_norm_backward_run(kernels, &args, 2) != 0) exit(4);
        report("norm_backward", (ptrdiff_t[]){rows, width, rms}, 3,
               hash(grad_weight, width, hash(grad_bias, width, hash(grad_x, n, HASH_START))));
    }
    for (int activation = SA_GELU; activation <= SA_SILU; ++activation) {
        struct sa_activation_backward args = {grad_y, x, up, grad_x, grad_up, n, (enum sa_activation)activation};
        if (sa_activation_backward_run(kernels, &args, 2) != 0) exit(4);
        report("activation_backward", (ptrdiff_t[]){activation, rows, width}, 3,
               hash(grad_up, n, hash(grad_x, n, HASH_START)));
    }
    if (sa_sum_rows_run(kernels, x, rows, width, grad_weight, 2) != 0) exit(4);
    report("sum_rows", (ptrdiff_t[]){rows, width}, 2, hash(grad_weight, width, HASH_START));
    free(x), free(up), free(grad_y), free(weight), free(grad_x), free(grad_up), free(grad_weight), free(grad_bias);
}

static void elementwise(enum sa_activation activation, ptrdiff_t rows, ptrdiff_t width)
{
    float *x = floats(2 * rows * width), *y = floats(rows * width);
    if (sa_gate_run(kernels, activation, x, rows, width, y, 2) != 0) exit(4);
    if (sa_activate_run(kernels, activation, x, rows * width, 2) != 0) exit(4);
    report("activation", (ptrdiff_t[]){activation, rows, width}, 3,
           hash(x, rows * width, hash(y, rows * width, HASH_START)));
    free(x), free(y);
}

/* Out and lse of the forward pass, and then every gradient. */
static void backward(enum sa_dtype dtype, const ptrdiff_t lengths[2], const ptrdiff_t dims[2], enum masking how)
{
    ptrdiff_t q_len = lengths[0], kv_len = lengths[1], head_dim = dims[0], value_dim = dims[1];
    ptrdiff_t rows = ITEMS * HEADS * q_len, keys = ITEMS * KV_HEADS * kv_len, scores = ITEMS * HEADS * q_len * kv_len;
    size_t size = SIZES[dtype], wide = dtype == SA_FLOAT64 ? 8 : 4;
    void *arrays[] = {numbers(dtype, rows * head_dim), numbers(dtype, keys * head_dim),
                      numbers(dtype, keys * value_dim), numbers(dtype, rows * value_dim),
                      numbers(dtype, rows * value_dim)};
    void *lse = room(2 * rows), *sinks = room(2 * rows), *alibi = room(2 * rows);
    void *grad_query = room(2 * rows * head_dim), *grad_key = room(2 * keys * head_dim);
    void *grad_value = room(2 * keys * value_dim), *grad_bias = room(2 * scores);
    memset(grad_key, 0, (size_t)(keys * head_dim) * 8), memset(grad_value, 0, (size_t)(keys * value_dim) * 8);
    memset(grad_bias, 0, (size_t)scores * 8);
    struct sa_attention a = {
        .query = array(arrays[0], size, HEADS, q_len, head_dim),
        .key = array(arrays[1], size, KV_HEADS, kv_len, head_dim),
        .value = array(arrays[2], size, KV_HEADS, kv_len, value_dim),
        .out = array(arrays[3], size, HEADS, q_len, value_dim),
        .grad_out = array(arrays[4], size, HEADS, q_len, value_dim),
        .lse = array(lse, wide, HEADS, q_len, 1),
        .dtype = dtype,
        .kv_dtype = dtype,
        .num_leading = 1,
        .leading_shape = {ITEMS},
        .items = ITEMS,
        .num_heads = HEADS,
        .num_kv_heads = KV_HEADS,
        .q_len = q_len,
        .kv_len = kv_len,
        .head_dim = head_dim,
        .value_dim = value_dim,
        .scale = 0.25,
    };
    mask_by(how, &a, q_len, kv_len);
    if (sa_attention_run(kernels, &a, SA_ATTENTION, 2) != 0) exit(4);
    a.grad_query = array(grad_query, size, HEADS, q_len, head_dim);
    a.grad_key = array(grad_key, wide, KV_HEADS, kv_len, head_dim);
    a.grad_value = array(grad_value, wide, KV_HEADS, kv_len, value_dim);
    if (a.bias.data) a.grad_bias = array(grad_bias, 8, HEADS, q_len, kv_len);
    if (a.sinks) a.grad_sinks = array(sinks, wide, HEADS, q_len, 1);
    if (a.alibi_slopes) a.grad_alibi = array(alibi, wide, HEADS, q_len, 1);
    if (sa_attention_backward_run(kernels, &a, 2) != 0) exit(4);
    uint64_t h = hash_bytes(grad_query, (size_t)(rows * head_dim) * size, HASH_START);
    h = hash_bytes(grad_key, (size_t)(keys * head_dim) * wide, h);
    h = hash_bytes(grad_value, (size_t)(keys * value_dim) * wide, h);
    h = hash_bytes(grad_bias, (size_t)scores * 8, h);
    if (a.sinks) h = hash_bytes(sinks, (size_t)rows * wide, h);
    if (a.alibi_slopes) h = hash_bytes(alibi, (size_t)rows * wide, h);
    report("backward", (ptrdiff_t[]){dtype, q_len, kv_len, head_dim, value_dim, how}, 6, h);
    for (int i = 0; i < 5; ++i)
        free(arrays[i]);
    free(lse), free(sinks), free(alibi), free(grad_query), free(grad_key), free(grad_value), free(grad_bias);
    free(a.mask.data), free(a.bias.data);
}

static void all_backward(void)
{
    static const ptrdiff_t lengths[][2] = {{1, 1}, {5, 300}, {35, 97}, {70, 193}};
    static const ptrdiff_t dims[][2] = {{1, 1}, {33, 65}, {64, 64}, {70, 24}};
    static const enum sa_dtype dtypes[] = {SA_FLOAT32, SA_FLOAT64, SA_BFLOAT16};
    for (size_t t = 0; t < sizeof dtypes / sizeof *dtypes; ++t)
        for (size_t l = 0; l < sizeof lengths / sizeof *lengths; ++l)
            for (size_t d = 0; d < sizeof dims / sizeof *dims; ++d)
                for (int how = NO_MASK; how <= EVERYTHING; ++how)
                    backward(dtypes[t], lengths[l], dims[d], (enum masking)how);
}

static void all_attention(void)
{
    static const ptrdiff_t lengths[][2] = {{1, 1}, {1, 40}, {3, 17}, {5, 300}, {17, 33}, {35, 97}, {70, 193}};
    static const ptrdiff_t dims[][2] = {{1, 1}, {7, 9}, {16, 16}, {33, 65}, {64, 64}, {129, 24}};
    static const enum sa_dtype dtypes[][2] = {{SA_FLOAT32, SA_FLOAT32},
                                              {SA_FLOAT64, SA_FLOAT64},
                                              {SA_FLOAT16, SA_FLOAT16},
                                              {SA_BFLOAT16, SA_BFLOAT16},
                                              {SA_FLOAT32, SA_INT8}};
    for (size_t t = 0; t < sizeof dtypes / sizeof *dtypes; ++t)
        for (size_t l = 0; l < sizeof lengths / sizeof *lengths; ++l)
            for (size_t d = t ? 3 : 0; d < sizeof dims / sizeof *dims; d += t ? 2 : 1)
                for (int how = NO_MASK; how < NUM_MASKINGS; ++how)
                    attention(dtypes[t][0], dtypes[t][1], lengths[l], dims[d], (enum masking)how);
    attention(SA_FLOAT32, SA_FLOAT32, (ptrdiff_t[]){2, 3100}, (ptrdiff_t[]){32, 32}, NO_MASK);
    attention(SA_FLOAT32, SA_FLOAT32, (ptrdiff_t[]){20, 1600}, (ptrdiff_t[]){24, 24}, BOTTOM_RIGHT);
}

static void all_layers(void)
{
    static const ptrdiff_t sizes[] = {1, 3, 8, 17, 33, 64, 100};
    enum { SIZES = sizeof sizes / sizeof *sizes };
    for (int r = 0; r < SIZES; ++r)
        for (int w = 0; w < SIZES; ++w) {
            for (int activation = SA_IDENTITY; activation <= SA_SILU; ++activation) {
                linear(sizes[r], 1 + sizes[r] * sizes[w] % 400, sizes[w], (enum sa_activation)activation);
                elementwise((enum sa_activation)activation, sizes[r], sizes[w]);
            }
            norm(sizes[r], sizes[w], 0);
            norm(sizes[r], sizes[w], 1);
            layer_gradients(sizes[r], sizes[w]);
        }
    layer_gradients(150, 40); /* more rows than a chunk */
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        for (int i = 0; sa_available(i); ++i)
            puts(sa_available(i)->isa);
        return 0;
    }
    if (sa_use(argv[1]) != 0) {
        fprintf(stderr, "bits: %s does not run here\n", argv[1]);
        return 2;
    }
    kernels = sa_active();
    random_state = 20170612;
    all_attention();
    all_backward();
    all_layers();
    return 0;
}
