"""The layer loop: a whole stack of encoder layers over packed tokens, without the GIL."""

from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

import numpy as np

from selfattn._kernels cimport (
    SA_CAUSAL_TOP_LEFT, SA_IDENTITY, SA_NOT_CAUSAL, SA_NO_MEMORY, SA_OK,
    active_kernels, activation_code, aligned, data_of, pack, packed_size, product_kernels, raise_status,
    run_attention, run_gate, run_linear, run_norm,
    sa_activation, sa_attention, sa_causal, sa_kernels, sa_linear, sa_norm,
)

cdef struct Linear:
    const float *packed
    const float *bias
    ptrdiff_t depth, width

cdef struct Norm:
    const float *weight
    const float *bias
    double eps
    int rms

cdef struct Layer:
    Linear qkv, output, up, down
    Norm attention_norm, feed_forward_norm
    ptrdiff_t num_heads, num_kv_heads, head_dim, value_dim
    float scale
    sa_causal causal
    int norm_first, gated
    sa_activation activation

# One buffer of activations, for a group of sequences: x is (tokens, d_model), the rest what a layer makes of it.
cdef struct Buffers:
    float *normed     # (tokens, d_model)
    float *qkv        # (tokens, query | key | value)
    float *context    # (tokens, num_heads * value_dim)
    float *hidden     # (tokens, d_ff or gate | up)
    float *gated      # (tokens, d_ff)

WEIGHTS = ("qkv_weight", "output_weight", "up_weight", "down_weight")
cdef ptrdiff_t GROUP_TOKENS = 384  # activations of so many tokens stay in the L2 and L3 caches


cdef class PackedEncoder:
    """A stack of encoder layers, its weights packed once for the active instruction set. Immutable.

    With `bfloat16`, the factors of all products are rounded to it, where the processor multiplies those faster.
    """

    cdef const sa_kernels *kernels
    cdef const sa_kernels *products  # of the linear layers
    cdef bint bfloat16
    cdef Layer *layers
    cdef readonly ptrdiff_t num_layers
    cdef readonly ptrdiff_t d_model
    cdef float *weights       # all packed weights, one after the other: in huge pages where the system has them
    cdef ptrdiff_t weights_used
    cdef list keep_alive

    def __cinit__(self, list layers not None, bint bfloat16=False):
        self.kernels = active_kernels()
        self.bfloat16 = bfloat16
        self.products = product_kernels(bfloat16)
        self.keep_alive = []
        self.num_layers = len(layers)
        self.layers = <Layer *>calloc(max(1, len(layers)), sizeof(Layer))
        if self.layers == NULL:
            raise MemoryError(f"selfattn: no memory for {len(layers)} layers")
        total = sum(packed_size(self.products, c[name]) for c in layers for name in WEIGHTS)
        memory = np.empty(total + 16, np.float32)
        self.keep_alive.append(memory)
        self.weights = <float *>aligned(memory)
        for i, config in enumerate(layers):
            self.set_layer(&self.layers[i], config)
        self.d_model = self.layers[0].qkv.depth if layers else 0

    def __dealloc__(self):
        free(self.layers)

    cdef const float *keep(self, object array) except? NULL:
        if array is None:
            return NULL
        array = np.ascontiguousarray(array, np.float32)
        self.keep_alive.append(array)
        return <const float *>data_of(array)

    cdef Linear linear(self, weight, bias) except *:
        cdef Linear result
        result.packed, result.bias = self.weights + self.weights_used, self.keep(bias)
        pack(self.products, weight, self.weights + self.weights_used)
        self.weights_used += packed_size(self.products, weight)
        result.depth, result.width = weight.shape[0], weight.shape[1]
        return result

    cdef Norm norm(self, tuple config) except *:
        cdef Norm result
        kind, weight, bias, eps = config
        result.weight, result.bias = self.keep(weight), self.keep(bias)
        result.eps, result.rms = eps, kind == "rms"
        return result

    cdef int set_layer(self, Layer *layer, dict c) except -1:
        layer.qkv = self.linear(c["qkv_weight"], c["qkv_bias"])
        layer.output = self.linear(c["output_weight"], c["output_bias"])
        layer.up = self.linear(c["up_weight"], c["up_bias"])
        layer.down = self.linear(c["down_weight"], c["down_bias"])
        layer.attention_norm = self.norm(c["attention_norm"])
        layer.feed_forward_norm = self.norm(c["feed_forward_norm"])
        layer.num_heads, layer.num_kv_heads = c["num_heads"], c["num_kv_heads"]
        layer.head_dim, layer.value_dim = c["head_dim"], c["value_dim"]
        layer.scale = layer.head_dim ** -0.5 if c["scale"] is None else c["scale"]
        layer.causal = SA_CAUSAL_TOP_LEFT if c["causal"] else SA_NOT_CAUSAL
        layer.norm_first, layer.gated = c["norm_first"], c["gated"]
        layer.activation = activation_code(c["activation"])
        return 0

    def run(self, x not None, cu_seqlens not None, int num_threads, ptrdiff_t first=0, last=None):
        """x (tokens, d_model) float32 and cu_seqlens (batch + 1,) int64, both C-contiguous, through the layers
        first .. last - 1 -> a new (tokens, d_model)."""
        cdef ptrdiff_t end = self.num_layers if last is None else last
        cdef ptrdiff_t sequences = len(cu_seqlens) - 1
        cdef int status
        y = np.array(x, np.float32, order="C")
        cdef float *data = <float *>data_of(y)
        cdef const int64_t[::1] bounds = cu_seqlens
        if first < end and sequences > 0 and y.size:
            with nogil:
                status = self.run_groups(data, &bounds[0], sequences, first, end, num_threads)
            raise_status(status)
        return y

    cdef int run_groups(self, float *x, const int64_t *bounds, ptrdiff_t sequences, ptrdiff_t first_layer,
                        ptrdiff_t end_layer, int threads) noexcept nogil:
        """Groups of whole sequences go through all the layers, one group after the other."""
        cdef ptrdiff_t first = 0, last, i, most = 0
        cdef int status = SA_OK
        while first < sequences:
            last = group_end(bounds, first, sequences)
            most = max(most, bounds[last] - bounds[first])
            first = last
        cdef Buffers b
        cdef float *memory = self.allocate(most, &b)
        cdef int64_t *local = <int64_t *>malloc((sequences + 1) * sizeof(int64_t))
        if memory == NULL or local == NULL:
            status = SA_NO_MEMORY
        first = 0
        while first < sequences and status == SA_OK:
            last = group_end(bounds, first, sequences)
            for i in range(last - first + 1):
                local[i] = bounds[first + i] - bounds[first]
            for i in range(first_layer, end_layer):
                if status == SA_OK:
                    status = self.run_layer(&self.layers[i], x + bounds[first] * self.d_model, &b, local,
                                            last - first, threads)
            first = last
        free(memory)
        free(local)
        return status

    cdef float *allocate(self, ptrdiff_t tokens, Buffers *b) noexcept nogil:
        cdef ptrdiff_t i, qkv = 0, context = 0, hidden = 0, gated = 0
        for i in range(self.num_layers):
            qkv = max(qkv, self.layers[i].qkv.width)
            context = max(context, self.layers[i].output.depth)
            hidden = max(hidden, self.layers[i].up.width)
            gated = max(gated, self.layers[i].down.depth if self.layers[i].gated else 0)
        cdef float *memory = <float *>malloc(tokens * (self.d_model + qkv + context + hidden + gated) * sizeof(float))
        if memory != NULL:
            b.normed = memory
            b.qkv = b.normed + tokens * self.d_model
            b.context = b.qkv + tokens * qkv
            b.hidden = b.context + tokens * context
            b.gated = b.hidden + tokens * hidden
        return memory

    cdef int run_layer(self, const Layer *layer, float *x, const Buffers *b, const int64_t *bounds,
                       ptrdiff_t sequences, int threads) noexcept nogil:
        """norm_first: x += attention(norm(x)); x += feed_forward(norm(x)). Otherwise x = norm(x + ...), twice."""
        cdef ptrdiff_t tokens = bounds[sequences]
        cdef float *summed = x if layer.norm_first else b.normed
        cdef const float *read = b.normed if layer.norm_first else x
        cdef int status = SA_OK
        if layer.norm_first:
            status = self.apply_norm(&layer.attention_norm, x, b.normed, tokens, threads)
        if status == SA_OK:
            status = self.apply_attention(layer, read, x, summed, b, bounds, sequences, threads)
        if status == SA_OK:
            status = self.apply_norm(&layer.feed_forward_norm if layer.norm_first else &layer.attention_norm,
                                     summed, b.normed if layer.norm_first else x, tokens, threads)
        if status == SA_OK:
            status = self.apply_feed_forward(layer, read, x, summed, b, tokens, threads)
        if status == SA_OK and not layer.norm_first:
            status = self.apply_norm(&layer.feed_forward_norm, summed, x, tokens, threads)
        return status

    cdef int apply_attention(self, const Layer *layer, const float *read, const float *residual, float *y,
                             const Buffers *b, const int64_t *bounds, ptrdiff_t sequences, int threads) noexcept nogil:
        cdef sa_attention a
        cdef ptrdiff_t row = layer.qkv.width * sizeof(float)
        cdef float *key = b.qkv + layer.num_heads * layer.head_dim
        cdef float *value = key + layer.num_kv_heads * layer.head_dim
        cdef int status = self.apply_linear(&layer.qkv, SA_IDENTITY, read, NULL, b.qkv, bounds[sequences], threads)
        if status != SA_OK:
            return status
        memset(&a, 0, sizeof(a))
        a.query.data, a.key.data, a.value.data = <char *>b.qkv, <char *>key, <char *>value
        a.out.data = <char *>b.context
        a.query.row = a.key.row = a.value.row = row
        a.out.row = layer.output.depth * sizeof(float)
        a.query.head = a.key.head = layer.head_dim * sizeof(float)
        a.value.head = a.out.head = layer.value_dim * sizeof(float)
        a.query.col = a.key.col = a.value.col = a.out.col = sizeof(float)
        a.items, a.num_heads, a.num_kv_heads = sequences, layer.num_heads, layer.num_kv_heads
        a.head_dim, a.value_dim = layer.head_dim, layer.value_dim
        a.cu_seqlens_q = a.cu_seqlens_kv = bounds
        a.scale, a.causal, a.bfloat16 = layer.scale, layer.causal, self.bfloat16
        status = run_attention(self.kernels, &a, threads)
        if status != SA_OK:
            return status
        return self.apply_linear(&layer.output, SA_IDENTITY, b.context, residual, y, bounds[sequences], threads)

    cdef int apply_feed_forward(self, const Layer *layer, const float *read, const float *residual, float *y,
                                const Buffers *b, ptrdiff_t tokens, int threads) noexcept nogil:
        cdef sa_activation activation = SA_IDENTITY if layer.gated else layer.activation
        cdef int status = self.apply_linear(&layer.up, activation, read, NULL, b.hidden, tokens, threads)
        if status == SA_OK and layer.gated:
            status = run_gate(self.kernels, layer.activation, b.hidden, tokens, layer.down.depth, b.gated, threads)
        if status != SA_OK:
            return status
        return self.apply_linear(&layer.down, SA_IDENTITY, b.gated if layer.gated else b.hidden, residual, y, tokens,
                                 threads)

    cdef int apply_linear(self, const Linear *layer, sa_activation activation, const float *x, const float *residual,
                          float *y, ptrdiff_t tokens, int threads) noexcept nogil:
        """y = act(x W + b) + residual; y may be the residual."""
        cdef sa_linear args
        args.x, args.packed, args.bias, args.residual, args.y = x, layer.packed, layer.bias, residual, y
        args.x_stride, args.y_stride, args.residual_stride = layer.depth, layer.width, layer.width
        args.rows, args.depth, args.width, args.activation = tokens, layer.depth, layer.width, activation
        return run_linear(self.products, &args, threads)

    cdef int apply_norm(self, const Norm *norm, const float *x, float *y, ptrdiff_t tokens, int threads) noexcept nogil:
        cdef sa_norm args
        args.x, args.weight, args.bias, args.y = x, norm.weight, norm.bias, y
        args.rows, args.width, args.eps, args.rms = tokens, self.d_model, norm.eps, norm.rms
        return run_norm(self.kernels, &args, threads)


cdef ptrdiff_t group_end(const int64_t *bounds, ptrdiff_t first, ptrdiff_t sequences) noexcept nogil:
    """The sequences first .. end - 1 have at most GROUP_TOKENS tokens together, or are one long sequence."""
    cdef ptrdiff_t end = first + 1
    while end < sequences and bounds[end + 1] - bounds[first] <= GROUP_TOKENS:
        end += 1
    return end
