/* stage.inc.h -- the keys and values of a block as operands: read where they lie if they are numbers to compute with
 * and lie at one stride; otherwise (half precision, int8, pages, pairs) brought together once per block, for all panels. */

struct staged {
    const struct sa_array *array;
    const char *data, *scale; /* of the item's head */
    ptrdiff_t scale_row, width;
    int keys_per_step;     /* 2 where the pairs of TERMS == 2 are pairs of keys */
    real *room;            /* SA_KEY_BLOCK x width, or NULL where nothing needs to be staged */
    ptrdiff_t first, last; /* the keys to stage: all that some panel may see of the block */
    int done;
};

static int needs_staging(const struct sa_attention *a)
{
    return a->kv_dtype != SA_REAL || a->block_table || TERMS == 2;
}

static const char *row_address(const struct sa_attention *a, const struct sa_tile *t, const struct staged *s,
                               ptrdiff_t key)
{
    if (!t->pages) return s->data + key * s->array->row;
    ptrdiff_t page = (ptrdiff_t)t->pages[key / a->page_size];
    return s->data + page * s->array->leading[0] + key % a->page_size * s->array->row;
}

#ifndef SA_BFLOAT16_KERNELS
/* Numbers: key by key, row by row. */
static void stage_rows(const struct sa_attention *a, const struct sa_tile *t, const struct staged *s)
{
    for (ptrdiff_t key = s->first; key < s->last; ++key) {
        real *to = s->room + (key - s->first) * s->width;
        widen_row(row_address(a, t, s, key), s->array->col, s->width, a->kv_dtype, to);
        if (s->scale) {
            real scale = *(const float_any *)(s->scale + key * s->scale_row);
            for (ptrdiff_t i = 0; i < s->width; ++i)
                to[i] *= scale;
        }
    }
}

#else
/* n <= LANES numbers of a key's row; zeros for a key that is not there. */
static vreal row_part(const struct sa_attention *a, const struct sa_tile *t, const struct staged *s, ptrdiff_t key,
                      ptrdiff_t column, ptrdiff_t n)
{
    if (key >= s->last) return vsplat(0.0f);
    vreal part = load_row(row_address(a, t, s, key) + column * s->array->col, s->array->col, n, a->kv_dtype);
    if (s->scale) part *= vsplat(*(const float_any *)(s->scale + key * s->scale_row));
    return part;
}

/* Pairs: of a key's neighbouring dimensions, or, for the values, of the two keys of a step. */
static void stage_rows(const struct sa_attention *a, const struct sa_tile *t, const struct staged *s)
{
    for (ptrdiff_t key = s->first; key < s->last; key += s->keys_per_step)
        for (ptrdiff_t column = 0; column < s->width; column += LANES) {
            ptrdiff_t n = smaller(LANES, s->width - column);
            vreal part = row_part(a, t, s, key, column, n);
            if (s->keys_per_step == 2) {
                vreal pairs = vpair(part, row_part(a, t, s, key + 1, column, n));
                vstore_first(s->room + (key - s->first) / 2 * s->width + column, pairs, n);
            } else {
                vhalf halves = narrow_bfloat16(part);
                real *to = s->room + (key - s->first) * steps(s->width) + column / 2;
                memcpy(to, &halves, (size_t)steps(n) * sizeof(real));
            }
        }
}

#endif

/* The rows of the keys first .. last - 1; of pairs of keys where a step takes two. */
static struct operand staged_rows(const struct sa_attention *a, const struct sa_tile *t, struct staged *s,
                                  ptrdiff_t first, ptrdiff_t last)
{
    int one_stride = !t->pages || first / a->page_size == (last - 1) / a->page_size;
    int as_it_lies = a->kv_dtype == SA_REAL;
    if (TERMS == 2) /* pairs of dimensions, side by side in memory */
        as_it_lies = a->kv_dtype == SA_BFLOAT16 && s->keys_per_step == 1 && s->array->col == 2 && s->width % 2 == 0;
    if (as_it_lies && one_stride)
        return (struct operand){row_address(a, t, s, first), s->array->row, s->array->col * TERMS};
    if (!s->done) stage_rows(a, t, s);
    s->done = 1;
    ptrdiff_t row = (s->keys_per_step == 2 ? s->width : steps(s->width)) * (ptrdiff_t)sizeof(real);
    return (struct operand){(const char *)s->room + (first - s->first) / s->keys_per_step * row, row, sizeof(real)};
}

/* A prefetch may point past the end of an array: it never faults. Pages and rows to be staged are not fetched ahead. */
static struct ahead rows_ahead(const struct sa_attention *a, const struct staged *s, ptrdiff_t key)
{
    int fetch = s->data && s->array->col == (ptrdiff_t)sizeof(real) && !needs_staging(a);
    struct ahead ahead = {fetch ? s->data + key * s->array->row : NULL, s->array->row,
                          fetch ? s->width * s->array->col : 0};
    return ahead;
}
