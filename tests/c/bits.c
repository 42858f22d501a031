/* Prints a hash of every kernel's results over many shapes: `bits ISA`, or `bits` for the names that run here.
 * Two instruction sets, or two machines, compute the same bits if and only if the lines are the same. No Python, so
 * that the same program runs under an emulator of another processor. */
#include "kernels.h"

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

/* FNV-1a over the bytes. */
static uint64_t hash(const float *x, ptrdiff_t n, uint64_t h)
{
    const unsigned char *bytes = (const unsigned char *)x;
    for (size_t i = 0; i < (size_t)n * sizeof *x; ++i)
        h = (h ^ bytes[i]) * 1099511628211u;
    return h;
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

enum { ITEMS = 2, HEADS = 4, KV_HEADS = 2 };
enum masking { NO_MASK, CAUSAL, BOTTOM_RIGHT, LENGTHS, MASK_AND_BIAS, NUM_MASKINGS };

static void mask_by(enum masking how, struct sa_attention *a, ptrdiff_t q_len, ptrdiff_t kv_len)
{
    static int64_t lengths[ITEMS];
    a->causal = how == CAUSAL ? SA_CAUSAL_TOP_LEFT : how == BOTTOM_RIGHT ? SA_CAUSAL_BOTTOM_RIGHT : SA_NOT_CAUSAL;
    if (how == LENGTHS) {
        lengths[0] = kv_len / 2;
        lengths[1] = kv_len;
        a->kv_lengths = lengths;
        a->items_per_length = 1;
    }
    if (how == MASK_AND_BIAS) {
        ptrdiff_t n = ITEMS * HEADS * q_len * kv_len;
        char *mask = malloc((size_t)n + 1);
        if (!mask) exit(3);
        for (ptrdiff_t i = 0; i < n; ++i)
            mask[i] = random_float() < 2.0f;
        a->mask = array(mask, 1, HEADS, q_len, kv_len);
        a->bias = array(floats(n), sizeof(float), HEADS, q_len, kv_len);
    }
}

static void attention(ptrdiff_t q_len, ptrdiff_t kv_len, ptrdiff_t head_dim, ptrdiff_t value_dim, enum masking how)
{
    ptrdiff_t out_size = ITEMS * HEADS * q_len * value_dim, lse_size = ITEMS * HEADS * q_len;
    float *query = floats(ITEMS * HEADS * q_len * head_dim), *key = floats(ITEMS * KV_HEADS * kv_len * head_dim);
    float *value = floats(ITEMS * KV_HEADS * kv_len * value_dim), *out = floats(out_size), *lse = floats(lse_size);
    struct sa_attention a = {
        .query = array(query, sizeof(float), HEADS, q_len, head_dim),
        .key = array(key, sizeof(float), KV_HEADS, kv_len, head_dim),
        .value = array(value, sizeof(float), KV_HEADS, kv_len, value_dim),
        .out = array(out, sizeof(float), HEADS, q_len, value_dim),
        .lse = array(lse, sizeof(float), HEADS, q_len, 1),
        .num_leading = 1,
        .leading_shape = {ITEMS},
        .items = ITEMS,
        .num_heads = HEADS,
        .num_kv_heads = KV_HEADS,
        .q_len = q_len,
        .kv_len = kv_len,
        .head_dim = head_dim,
        .value_dim = value_dim,
        .scale = 0.25f,
    };
    mask_by(how, &a, q_len, kv_len);
    if (sa_attention_run(kernels, &a, 0, 2) != 0) exit(4);
    report("attention", (ptrdiff_t[]){q_len, kv_len, head_dim, value_dim, how}, 5,
           hash(lse, lse_size, hash(out, out_size, HASH_START)));
    free(query), free(key), free(value), free(out), free(lse);
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

static void elementwise(enum sa_activation activation, ptrdiff_t rows, ptrdiff_t width)
{
    float *x = floats(2 * rows * width), *y = floats(rows * width);
    if (sa_gate_run(kernels, activation, x, rows, width, y, 2) != 0) exit(4);
    if (sa_activate_run(kernels, activation, x, rows * width, 2) != 0) exit(4);
    report("activation", (ptrdiff_t[]){activation, rows, width}, 3,
           hash(x, rows * width, hash(y, rows * width, HASH_START)));
    free(x), free(y);
}

static void all_attention(void)
{
    static const ptrdiff_t lengths[][2] = {{1, 1}, {1, 40}, {3, 17}, {5, 300}, {17, 33}, {35, 97}, {70, 193}};
    static const ptrdiff_t dims[][2] = {{1, 1}, {7, 9}, {16, 16}, {33, 65}, {64, 64}, {129, 24}};
    for (size_t l = 0; l < sizeof lengths / sizeof *lengths; ++l)
        for (size_t d = 0; d < sizeof dims / sizeof *dims; ++d)
            for (int how = NO_MASK; how < NUM_MASKINGS; ++how)
                attention(lengths[l][0], lengths[l][1], dims[d][0], dims[d][1], (enum masking)how);
    attention(2, 3100, 32, 32, NO_MASK);
    attention(20, 1600, 24, 24, BOTTOM_RIGHT);
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
        }
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
    all_layers();
    return 0;
}
