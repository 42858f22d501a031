"""Encoder layers one after the other, without Python: attention over a group of whole sequences, and between two of
them everything else, row by row."""

# ---- groups of whole sequences go through all the layers, one group after the other ----

cdef int run_groups(const Stack *s, float *x, const int64_t *bounds, ptrdiff_t sequences, ptrdiff_t first_layer,
                    ptrdiff_t end_layer, int threads) noexcept nogil:
    cdef ptrdiff_t first = 0, last, i, most = 0
    cdef int status = SA_OK
    cdef Group g
    while first < sequences:
        last = group_end(bounds, first, sequences, threads)
        most = max(most, bounds[last] - bounds[first])
        first = last
    cdef char *scratch = NULL
    cdef char *memory = allocate(s, most, threads, &g, &scratch)
    cdef int64_t *local = <int64_t *>malloc((sequences + 1) * sizeof(int64_t))
    if memory == NULL or local == NULL:
        status = SA_NO_MEMORY
    first, g.bounds = 0, local
    while first < sequences and status == SA_OK:
        last = group_end(bounds, first, sequences, threads)
        for i in range(last - first + 1):
            local[i] = bounds[first + i] - bounds[first]
        g.x, g.sequences, g.tokens = x + bounds[first] * s.d_model, last - first, local[last - first]
        status = run_layers(s, &g, first_layer, end_layer, scratch, threads)
        first = last
    free(memory)
    free(local)
    return status


cdef ptrdiff_t group_end(const int64_t *bounds, ptrdiff_t first, ptrdiff_t sequences, int threads) noexcept nogil:
    """The sequences first .. end - 1 are as many as fit into a group, or one long sequence."""
    cdef ptrdiff_t end = first + 1
    while end < sequences and bounds[end + 1] - bounds[first] <= GROUP_TOKENS * <ptrdiff_t>threads:
        end += 1
    return end


cdef char *allocate(const Stack *s, ptrdiff_t tokens, int threads, Group *g, char **scratch) noexcept nogil:
    """One piece of memory for the largest group and the blocks of all threads; NULL if there is none."""
    cdef ptrdiff_t qkv = 0, context = 0, i
    for i in range(s.num_layers):
        qkv = max(qkv, lines(tokens * s.layers[i].qkv.width * s.size))
        context = max(context, lines(tokens * s.layers[i].output.depth * s.size))
    cdef ptrdiff_t rows = tokens if few_rows(tokens, threads) else BLOCK_ROWS * <ptrdiff_t>threads
    cdef char *memory = <char *>malloc(64 + qkv + context + block_bytes(s, rows))
    if memory != NULL:
        g.qkv = memory + (64 - <size_t>memory % 64) % 64
        g.context = g.qkv + qkv
        scratch[0] = g.context + context
    return memory


cdef ptrdiff_t hidden_bytes(const Stack *s, ptrdiff_t rows) noexcept nogil:
    cdef ptrdiff_t most = 0, i
    for i in range(s.num_layers):
        most = max(most, s.layers[i].up.width * hidden_size(s, &s.layers[i]))
    return lines(rows * most)


cdef ptrdiff_t block_bytes(const Stack *s, ptrdiff_t rows) noexcept nogil:
    cdef ptrdiff_t gated = 0, i
    for i in range(s.num_layers):
        gated = max(gated, s.layers[i].down.depth if s.layers[i].gated else 0)
    return lines(rows * s.d_model * sizeof(float)) + hidden_bytes(s, rows) + lines(rows * gated * sizeof(float))


cdef Block block_at(const Stack *s, ptrdiff_t rows, char *memory) noexcept nogil:
    cdef Block b
    b.normed = <float *>memory
    b.hidden = memory + lines(rows * s.d_model * sizeof(float))
    b.gated = <float *>(b.hidden + hidden_bytes(s, rows))
    return b


cdef ptrdiff_t lines(ptrdiff_t nbytes) noexcept nogil:
    """In whole cache lines."""
    return (nbytes + 63) // 64 * 64


cdef ptrdiff_t hidden_size(const Stack *s, const Layer *layer) noexcept nogil:
    """The bytes of a number between the two matrices of the feed-forward network: a gate works in float32."""
    return sizeof(float) if layer.gated else s.size


# ---- layer by layer: attention over the group, and between two of them row by row ----

cdef int run_layers(const Stack *s, const Group *g, ptrdiff_t first, ptrdiff_t end, char *scratch,
                    int threads) noexcept nogil:
    cdef Passage p
    cdef ptrdiff_t i
    cdef int status = SA_OK
    p.stack, p.group, p.scratch = s, g, scratch
    for i in range(first, end + 1):
        p.done = &s.layers[i - 1] if i > first else NULL
        p.next = &s.layers[i] if i < end else NULL
        if status == SA_OK:
            status = run_rows(&p, threads)
        if status == SA_OK and i < end:
            status = attend(s, &s.layers[i], g, threads)
    return status


cdef int attend(const Stack *s, const Layer *layer, const Group *g, int threads) noexcept nogil:
    """query | key | value -> context"""
    cdef sa_attention a
    memset(&a, 0, sizeof(a))
    a.query.data, a.key.data = g.qkv, g.qkv + layer.num_heads * layer.head_dim * s.size
    a.value.data = a.key.data + layer.num_kv_heads * layer.head_dim * s.size
    a.out.data = g.context
    a.query.row = a.key.row = a.value.row = layer.qkv.width * s.size
    a.out.row = layer.output.depth * s.size
    a.query.head = a.key.head = layer.head_dim * s.size
    a.value.head = a.out.head = layer.value_dim * s.size
    a.query.col = a.key.col = a.value.col = a.out.col = s.size
    a.dtype = a.kv_dtype = SA_BFLOAT16 if s.size == 2 else SA_FLOAT32
    a.bfloat16 = s.size == 2
    a.items, a.num_heads, a.num_kv_heads = g.sequences, layer.num_heads, layer.num_kv_heads
    a.head_dim, a.value_dim = layer.head_dim, layer.value_dim
    a.cu_seqlens_q = a.cu_seqlens_kv = g.bounds
    a.scale, a.causal = layer.scale, layer.causal
    return run_attention(s.kernels, &a, threads)


cdef bint few_rows(ptrdiff_t rows, int threads) noexcept nogil:
    return threads > 1 and rows < FEW_ROWS * <ptrdiff_t>threads


cdef int run_rows(Passage *p, int threads) noexcept nogil:
    """Many rows: a thread takes some of them all the way. Few: threads share each step's columns."""
    cdef ptrdiff_t tokens = p.group.tokens, tasks
    cdef Block b
    if few_rows(tokens, threads):
        b = block_at(p.stack, tokens, p.scratch)
        return between_attentions(p, &b, 0, tokens, threads)
    tasks = threads * ((tokens + threads * BLOCK_ROWS - 1) // (threads * BLOCK_ROWS))  # all threads end together
    p.rows_per_task = ((tokens + tasks - 1) // tasks + TILE_ROWS - 1) // TILE_ROWS * TILE_ROWS
    tasks = (tokens + p.rows_per_task - 1) // p.rows_per_task
    return run_tasks(tasks, rows_task, p, threads_worth_waking(multiply_adds(p), threads))


cdef double multiply_adds(const Passage *p) noexcept nogil:
    cdef double of_row = 0
    if p.done != NULL:
        of_row += size_of(&p.done.output) + size_of(&p.done.up) + size_of(&p.done.down)
    if p.next != NULL:
        of_row += size_of(&p.next.qkv)
    return of_row * p.group.tokens


cdef double size_of(const Linear *layer) noexcept nogil:
    return <double>layer.depth * <double>layer.width


cdef int rows_task(void *context, ptrdiff_t index) noexcept nogil:
    cdef const Passage *p = <const Passage *>context
    cdef ptrdiff_t row = index * p.rows_per_task
    cdef char *scratch = p.scratch + slot_of_thread() * block_bytes(p.stack, BLOCK_ROWS)
    cdef Block b = block_at(p.stack, BLOCK_ROWS, scratch)
    return between_attentions(p, &b, row, min(p.rows_per_task, p.group.tokens - row), 1)


cdef int between_attentions(const Passage *p, const Block *b, ptrdiff_t row, ptrdiff_t rows,
                            int threads) noexcept nogil:
    cdef int status = SA_OK
    if p.done != NULL:
        status = leave_attention(p.stack, p.done, p.group, b, row, rows, threads)
    if status == SA_OK and p.next != NULL:
        status = enter_attention(p.stack, p.next, p.group, b, row, rows, threads)
    return status


cdef int enter_attention(const Stack *s, const Layer *layer, const Group *g, const Block *b, ptrdiff_t row,
                         ptrdiff_t rows, int threads) noexcept nogil:
    """x, normed if norm_first -> query | key | value, in one product"""
    cdef const float *read = g.x + row * s.d_model
    cdef int status = SA_OK
    if layer.norm_first:
        status = apply_norm(s, &layer.attention_norm, read, b.normed, rows, threads)
        read = b.normed
    if status == SA_OK:
        status = apply_linear(s, &layer.qkv, SA_IDENTITY, read, sizeof(float), NULL,
                              g.qkv + row * layer.qkv.width * s.size, s.size, rows, threads)
    return status


cdef int leave_attention(const Stack *s, const Layer *layer, const Group *g, const Block *b, ptrdiff_t row,
                         ptrdiff_t rows, int threads) noexcept nogil:
    """norm_first: x += context W + b; x += feed_forward(norm(x)). Otherwise x = norm(x + ...), twice."""
    cdef float *x = g.x + row * s.d_model
    cdef float *summed = x if layer.norm_first else b.normed
    cdef const float *read = b.normed if layer.norm_first else x
    cdef int status = apply_linear(s, &layer.output, SA_IDENTITY, g.context + row * layer.output.depth * s.size,
                                   s.size, x, summed, sizeof(float), rows, threads)
    if status == SA_OK:
        status = apply_norm(s, &layer.feed_forward_norm if layer.norm_first else &layer.attention_norm,
                            summed, b.normed if layer.norm_first else x, rows, threads)
    if status == SA_OK:
        status = apply_feed_forward(s, layer, b, read, x, summed, rows, threads)
    if status == SA_OK and not layer.norm_first:
        status = apply_norm(s, &layer.feed_forward_norm, summed, x, rows, threads)
    return status


cdef int apply_feed_forward(const Stack *s, const Layer *layer, const Block *b, const float *read,
                            const float *residual, float *y, ptrdiff_t rows, int threads) noexcept nogil:
    """y = act(read W + b) W + b + residual, where act may be a gate"""
    cdef sa_activation activation = SA_IDENTITY if layer.gated else layer.activation
    cdef ptrdiff_t size = hidden_size(s, layer)
    cdef const void *hidden = b.hidden
    cdef int status = apply_linear(s, &layer.up, activation, read, sizeof(float), NULL, b.hidden, size, rows, threads)
    if status == SA_OK and layer.gated:
        hidden = b.gated
        status = run_gate(s.kernels, layer.activation, b.hidden, rows, layer.down.depth, b.gated, threads)
    if status == SA_OK:
        status = apply_linear(s, &layer.down, SA_IDENTITY, hidden, size, residual, y, sizeof(float), rows, threads)
    return status


cdef int apply_linear(const Stack *s, const Linear *layer, sa_activation activation, const void *x, ptrdiff_t x_size,
                      const float *residual, void *y, ptrdiff_t y_size, ptrdiff_t rows, int threads) noexcept nogil:
    """y = act(x W + b) + residual; y may be the residual. Sizes are the bytes of a number: 2 for bfloat16."""
    cdef sa_linear args
    args.x, args.packed, args.bias, args.residual, args.y = x, layer.packed, layer.bias, residual, y
    args.x_stride, args.y_stride, args.residual_stride = layer.depth, layer.width, layer.width
    args.rows, args.depth, args.width, args.activation = rows, layer.depth, layer.width, activation
    args.bfloat16_x, args.bfloat16_y = x_size == 2, y_size == 2
    return run_linear(s.products, &args, threads)


cdef int apply_norm(const Stack *s, const Norm *norm, const float *x, float *y, ptrdiff_t rows,
                    int threads) noexcept nogil:
    cdef sa_norm args
    args.x, args.weight, args.bias, args.y = x, norm.weight, norm.bias, y
    args.rows, args.width, args.eps, args.rms = rows, s.d_model, norm.eps, norm.rms
    return run_norm(s.kernels, &args, threads)
