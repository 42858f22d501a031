"""The layer loop: a whole stack of encoder layers over packed tokens, without the GIL."""

from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

import numpy as np

from selfattn._kernels cimport (
    SA_BFLOAT16, SA_CAUSAL_TOP_LEFT, SA_FLOAT32, SA_IDENTITY, SA_NOT_CAUSAL, SA_NO_MEMORY, SA_OK,
    active_kernels, activation_code, aligned, data_of, pack, packed_size, product_kernels, raise_status,
    run_attention, run_gate, run_linear, run_norm, run_tasks, slot_of_thread, threads_worth_waking,
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

# What the loop works with. Where products take pairs of bfloat16, what only they read is bfloat16: `size` is 2, not 4.
cdef struct Stack:
    const sa_kernels *kernels
    const sa_kernels *products  # of the linear layers
    Layer *layers
    ptrdiff_t num_layers, d_model, size

# The activations of a group of whole sequences, of which attention needs all rows at once;
cdef struct Group:
    float *x         # (tokens, d_model): what goes in, and in the end what comes out
    char *qkv        # (tokens, query | key | value)
    char *context    # (tokens, num_heads * value_dim)
    const int64_t *bounds
    ptrdiff_t sequences, tokens

# and of a block of its rows, all else, which stays in the L2 cache of one thread.
cdef struct Block:
    float *normed    # (rows, d_model)
    char *hidden     # (rows, d_ff or gate | up)
    float *gated     # (rows, d_ff)

# The rows' way from the attention that is `done` to the `next` one. NULL: there is none.
cdef struct Passage:
    const Stack *stack
    const Group *group
    const Layer *done
    const Layer *next
    char *scratch              # a Block of BLOCK_ROWS for each thread
    ptrdiff_t rows_per_task

WEIGHTS = ("qkv_weight", "output_weight", "up_weight", "down_weight")
cdef enum:
    GROUP_TOKENS = 384  # of a group, for each thread; more where one sequence is longer
    BLOCK_ROWS = 96     # of a block, at most,
    TILE_ROWS = 6       # and whole tiles of the products where possible
    FEW_ROWS = 48       # with fewer for each thread, threads share the columns of all rows instead


cdef class PackedEncoder:
    """A stack of encoder layers, its weights packed once for the active instruction set. Immutable.

    With `bfloat16`, the factors of all products are rounded to it, where the processor multiplies those faster.
    """

    cdef Stack stack
    cdef float *weights       # all packed weights, one after the other: in huge pages where the system has them
    cdef ptrdiff_t weights_used
    cdef list keep_alive

    def __cinit__(self, list layers not None, bint bfloat16=False):
        cdef Stack *s = &self.stack
        s.kernels, s.products, s.num_layers = active_kernels(), product_kernels(bfloat16), len(layers)
        s.size = sizeof(float) // s.products.terms
        self.keep_alive = []
        s.layers = <Layer *>calloc(max(1, len(layers)), sizeof(Layer))
        if s.layers == NULL:
            raise MemoryError(f"selfattn: no memory for {len(layers)} layers")
        total = sum(packed_size(s.products, c[name]) for c in layers for name in WEIGHTS)
        memory = np.empty(total + 16, np.float32)
        self.keep_alive.append(memory)
        self.weights = <float *>aligned(memory)
        for i, config in enumerate(layers):
            self.set_layer(&s.layers[i], config)
        s.d_model = s.layers[0].qkv.depth if layers else 0

    def __dealloc__(self):
        free(self.stack.layers)

    @property
    def num_layers(self):
        return self.stack.num_layers

    @property
    def d_model(self):
        return self.stack.d_model

    cdef const float *keep(self, object array) except? NULL:
        if array is None:
            return NULL
        array = np.ascontiguousarray(array, np.float32)
        self.keep_alive.append(array)
        return <const float *>data_of(array)

    cdef Linear linear(self, weight, bias) except *:
        cdef Linear result
        result.packed, result.bias = self.weights + self.weights_used, self.keep(bias)
        pack(self.stack.products, weight, self.weights + self.weights_used)
        self.weights_used += packed_size(self.stack.products, weight)
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
        cdef ptrdiff_t end = self.stack.num_layers if last is None else last
        cdef ptrdiff_t sequences = len(cu_seqlens) - 1
        cdef int status
        y = np.array(x, np.float32, order="C")
        cdef float *data = <float *>data_of(y)
        cdef const int64_t[::1] bounds = cu_seqlens
        if first < end and sequences > 0 and y.size:
            with nogil:
                status = run_groups(&self.stack, data, &bounds[0], sequences, first, end, num_threads)
            raise_status(status)
        return y

include "_layer_loop.pxi"
