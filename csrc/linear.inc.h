/* linear.inc.h -- y = act(x W + b) + residual. W is packed once, when a model is loaded: panels of PANEL_LANES columns,
 * each depth x width with contiguous lanes (the last one padded with zeros to whole vectors). */

INLINE int panel_vectors(ptrdiff_t width, ptrdiff_t panel)
{
    ptrdiff_t columns = smaller(PANEL_LANES, width - panel * PANEL_LANES);
    return (int)((columns + LANES - 1) / LANES);
}

/* LANES columns, each of them LANES contiguous numbers, become rows. */
INLINE void pack_block(const char *from, ptrdiff_t col, real *to, ptrdiff_t stride)
{
    vreal block[LANES];
    for (int i = 0; i < LANES; ++i)
        block[i] = vload((const real *)(from + i * col));
    vtranspose(block);
    for (int i = 0; i < LANES; ++i)
        vstore(to + i * stride, block[i]);
}

static void pack_weights(const char *weight, ptrdiff_t row, ptrdiff_t col, ptrdiff_t depth, ptrdiff_t width,
                         void *packed)
{
    real *to = packed;
    for (ptrdiff_t panel = 0; panel * PANEL_LANES < width; ++panel) {
        int lanes = panel_vectors(width, panel) * LANES, columns = (int)smaller(lanes, width - panel * PANEL_LANES);
        const char *from = weight + panel * PANEL_LANES * col;
        ptrdiff_t p = 0;
        if (row == sizeof(real) && columns == lanes) /* a transposed weight: square blocks turn in registers */
            for (; p + LANES <= depth; p += LANES, from += LANES * row, to += LANES * lanes)
                for (int i = 0; i < lanes; i += LANES)
                    pack_block(from + i * col, col, to + i, lanes);
        for (; p < depth; ++p, from += row, to += lanes) {
            memset(to + columns, 0, (size_t)(lanes - columns) * sizeof(real));
            if (col == sizeof(real))
                memcpy(to, from, (size_t)columns * sizeof(real));
            else
                for (int i = 0; i < columns; ++i)
                    to[i] = *(const scalar_any *)(from + i * col);
        }
    }
}

/* What follows the sum, on one vector of a row: y = act(sum + bias) + residual. */
INLINE vreal finish_vector(const enum sa_activation activation, vreal sum, const real *bias, const real *residual,
                           ptrdiff_t lanes)
{
    int whole = lanes == LANES;
    if (bias) sum += whole ? vload(bias) : vload_first(bias, lanes);
    sum = activate_vector(activation, sum);
    if (residual) sum += whole ? vload(residual) : vload_first(residual, lanes);
    return sum;
}

/* The same on rows row0 .. row1 - 1 and the n columns from `column` on. */
INLINE void finish_rows(const enum sa_activation activation, const struct sa_linear *l, ptrdiff_t row0, ptrdiff_t row1,
                        ptrdiff_t column, ptrdiff_t n, struct panel sums)
{
    const real *bias = l->bias ? (const real *)l->bias + column : NULL;
    for (ptrdiff_t row = row0; row < row1; ++row, sums.data += sums.stride) {
        real *y = (real *)l->y + row * l->y_stride + column;
        const real *residual = l->residual ? (const real *)l->residual + row * l->residual_stride + column : NULL;
        ptrdiff_t i = 0;
        for (; i + LANES <= n; i += LANES)
            vstore(y + i, finish_vector(activation, vload(sums.data + i), bias ? bias + i : NULL,
                                        residual ? residual + i : NULL, LANES));
        if (i < n)
            vstore_first(y + i,
                         finish_vector(activation, vload(sums.data + i), bias ? bias + i : NULL,
                                       residual ? residual + i : NULL, n - i),
                         n - i);
    }
}

static void finish(const struct sa_linear *l, ptrdiff_t row0, ptrdiff_t row1, ptrdiff_t column, ptrdiff_t n,
                   struct panel sums)
{
    switch (l->activation) { /* outside the loops */
    case SA_GELU:
        finish_rows(SA_GELU, l, row0, row1, column, n, sums);
        break;
    case SA_GELU_TANH:
        finish_rows(SA_GELU_TANH, l, row0, row1, column, n, sums);
        break;
    case SA_RELU:
        finish_rows(SA_RELU, l, row0, row1, column, n, sums);
        break;
    case SA_SILU:
        finish_rows(SA_SILU, l, row0, row1, column, n, sums);
        break;
    default:
        finish_rows(SA_IDENTITY, l, row0, row1, column, n, sums);
    }
}

enum { ROW_CHUNK = 48 }; /* rows whose sums wait in scratch for what follows them: in L1 */

static void linear(const struct sa_linear *l, ptrdiff_t row0, ptrdiff_t row1, ptrdiff_t panel0, ptrdiff_t panel1)
{
    real scratch[ROW_CHUNK * PANEL_LANES] __attribute__((aligned(64)));
    for (ptrdiff_t panel = panel0; panel < panel1; ++panel) {
        int nv = panel_vectors(l->width, panel);
        const real *packed = (const real *)l->packed + panel * PANEL_LANES * l->depth;
        ptrdiff_t column = panel * PANEL_LANES, columns = smaller(PANEL_LANES, l->width - column);
        struct panel c = {scratch, nv * LANES};
        for (ptrdiff_t row = row0; row < row1; row += ROW_CHUNK) {
            ptrdiff_t last = smaller(row + ROW_CHUNK, row1);
            struct operand x = {(const char *)((const real *)l->x + row * l->x_stride),
                                l->x_stride * (ptrdiff_t)sizeof(real), sizeof(real)};
            ptrdiff_t bytes = sizeof(real);
            struct ahead ahead[2] = {
                {(const char *)((const real *)l->y + row * l->y_stride + column), l->y_stride * bytes, columns * bytes},
                {(const char *)((const real *)l->residual + row * l->residual_stride + column),
                 l->residual_stride * bytes, l->residual ? columns * bytes : 0}};
            multiply_long(nv, last - row, l->depth, SA_LINEAR_CHAIN, x, packed, nv * LANES, c, NULL, ahead);
            finish(l, row, last, column, columns, c);
        }
    }
}
