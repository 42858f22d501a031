# SPDX-License-Identifier: Apache-2.0
"""The layer loop: a whole stack of encoder layers over packed tokens, without the GIL.

The loop below is the mathematics, in its order. Memory, blocks of rows and threads are C (csrc/plan/encoder.h).
"""

from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free

import numpy as np

from selfattn._native.operator cimport set_options
from selfattn._native.runtime cimport (
    SA_OK, activation_of, aligned, data_of, format_of, library, pack, raise_status, sa_dense, sa_encoder, sa_layer,
    sa_micro_batch, sa_norm_weights, sa_rotary_table, sa_rows,
)

# ---- the loop ----


cdef int run_layers(const sa_micro_batch *batch, ptrdiff_t first, ptrdiff_t end) noexcept nogil:
    """Attention over whole sequences; between two attentions, row by row."""
    cdef const sa_layer *layers = batch.encoder.layers
    cdef ptrdiff_t i
    cdef int status = library.for_rows(batch, NULL, &layers[first], between_attentions)
    for i in range(first, end):
        if status == SA_OK:
            status = library.attend(batch, &layers[i])
        if status == SA_OK:
            status = library.for_rows(batch, &layers[i], &layers[i + 1] if i + 1 < end else NULL, between_attentions)
    return status


cdef void between_attentions(sa_rows *r, const sa_layer *done, const sa_layer *next) noexcept nogil:
    if done != NULL:
        if not done.norm_first:
            post_norm(r, done)
        elif done.attention_post_norm.weight == NULL and done.feed_forward_post_norm.weight == NULL:
            pre_norm(r, done)
        else:
            pre_and_post_norm(r, done)
    if next != NULL:
        begin_attention(r, next)


cdef void begin_attention(sa_rows *r, const sa_layer *layer) noexcept nogil:
    """query | key | value = norm1(x) W + b, or x W + b"""
    library.rows_project(r, layer, library.rows_normed(r, &layer.attention_norm, r.x) if layer.norm_first else r.x)


cdef void post_norm(sa_rows *r, const sa_layer *layer) noexcept nogil:
    """x = norm1(x + attention);   x = norm2(x + feed_forward(x))"""
    library.rows_output(r, layer, r.x, r.spare)
    library.rows_norm(r, &layer.attention_norm, r.spare, NULL, r.x)
    library.rows_feed_forward(r, layer, r.x, r.x, r.spare)
    library.rows_norm(r, &layer.feed_forward_norm, r.spare, NULL, r.x)


cdef void pre_norm(sa_rows *r, const sa_layer *layer) noexcept nogil:
    """x = x + attention;   x = x + feed_forward(norm2(x))"""
    library.rows_output(r, layer, r.x, r.x)
    library.rows_feed_forward(r, layer, library.rows_normed(r, &layer.feed_forward_norm, r.x), r.x, r.x)


cdef void pre_and_post_norm(sa_rows *r, const sa_layer *layer) noexcept nogil:
    """x = x + post1(attention);   x = x + post2(feed_forward(norm2(x)))"""
    library.rows_output(r, layer, NULL, r.spare)
    library.rows_norm(r, &layer.attention_post_norm, r.spare, r.x, r.x)
    library.rows_feed_forward(r, layer, library.rows_normed(r, &layer.feed_forward_norm, r.x), NULL, r.spare)
    library.rows_norm(r, &layer.feed_forward_post_norm, r.spare, r.x, r.x)

# ---- the weights, packed ----

cdef tuple WEIGHTS = ("qkv", "output", "up", "down")


cdef class PackedEncoder:
    """A stack of encoder layers, its weights packed once for the active instruction set. Immutable.

    `layers` are PackableLayers of selfattn.layers.packing. `precision` is the format that the factors of all products
    are rounded to, where the processor multiplies those faster; None for float32.
    """

    cdef sa_encoder encoder
    cdef char *packed         # all packed weights, one after the other: in huge pages where the system has them
    cdef size_t packed_bytes
    cdef list keep_alive

    def __cinit__(self, list layers not None, str precision=None):
        cdef sa_encoder *e = &self.encoder
        e.kernels, e.num_layers = library.active(), len(layers)
        e.products = library.kernels_of(e.kernels, format_of(precision))
        self.keep_alive = []
        e.layers = <sa_layer *>calloc(max(1, len(layers)), sizeof(sa_layer))
        if e.layers == NULL:
            raise MemoryError(f"selfattn: no memory for {len(layers)} layers")
        total = sum(self.size_of(getattr(layer, name)) for layer in layers for name in WEIGHTS)
        memory = np.empty(total // 4 + 16, np.float32)
        self.keep_alive.append(memory)
        self.packed = <char *>aligned(memory)
        for i, layer in enumerate(layers):
            self.set_layer(&e.layers[i], layer)
        e.d_model = e.layers[0].qkv.weight.depth if layers else 0

    def __dealloc__(self):
        free(self.encoder.layers)

    @property
    def num_layers(self):
        return self.encoder.num_layers

    @property
    def d_model(self):
        return self.encoder.d_model

    cdef size_of(self, dense):
        return library.packed_bytes(self.encoder.products, dense.weight.shape[0], dense.weight.shape[1])

    cdef const void *keep(self, array, dtype) except? NULL:
        if array is None:
            return NULL
        array = np.ascontiguousarray(array, dtype)
        self.keep_alive.append(array)
        return data_of(array)

    cdef sa_dense dense(self, config) except *:
        cdef sa_dense result
        result.weight.data = self.packed + self.packed_bytes
        result.weight.depth, result.weight.width = config.weight.shape
        result.bias = <const float *>self.keep(config.bias, np.float32)
        pack(self.encoder.products, config.weight, self.packed + self.packed_bytes, 1)
        self.packed_bytes += self.size_of(config)
        return result

    cdef sa_norm_weights norm(self, config) except *:
        cdef sa_norm_weights result
        result.weight = result.bias = NULL
        result.eps, result.rms, result.width = 0.0, False, 0
        if config is not None:
            result.weight = <const float *>self.keep(config.weight, np.float32)
            result.bias = <const float *>self.keep(config.bias, np.float32)
            result.eps, result.rms, result.width = config.eps, config.kind == "rms", len(config.weight)
        return result

    cdef int set_layer(self, sa_layer *layer, c) except -1:
        layer.num_heads, layer.num_kv_heads = c.num_heads, c.num_kv_heads
        layer.head_dim, layer.value_dim = c.head_dim, c.value_dim
        set_options(&layer.attention, c.options, c.head_dim)
        self.keep_alive.append(c.options)
        layer.qkv, layer.output = self.dense(c.qkv), self.dense(c.output)
        layer.up, layer.down = self.dense(c.up), self.dense(c.down)
        layer.query_norm, layer.key_norm = self.norm(c.query_norm), self.norm(c.key_norm)
        layer.attention_norm, layer.attention_post_norm = self.norm(c.attention_norm), self.norm(c.attention_post_norm)
        layer.feed_forward_norm = self.norm(c.feed_forward_norm)
        layer.feed_forward_post_norm = self.norm(c.feed_forward_post_norm)
        layer.rotary_table = -1 if c.rotary_table is None else c.rotary_table
        layer.rotary_pairs, layer.rotary_interleaved = c.rotary_pairs, c.rotary_interleaved
        layer.norm_first, layer.gated = c.norm_first, c.gated
        layer.activation = activation_of(c.activation)
        return 0

    def run(self, x not None, cu_seqlens not None, int num_threads, ptrdiff_t first=0, last=None, tables=()):
        """x (tokens, d_model) float32 and cu_seqlens (batch + 1,) int64, both C-contiguous, through the layers
        first .. last - 1 -> a new (tokens, d_model).

        tables: for each number that a layer has as rotary_table, cosines and sines (positions, pairs), float32.
        """
        cdef ptrdiff_t end = self.encoder.num_layers if last is None else last
        cdef sa_rotary_table *angles = <sa_rotary_table *>calloc(max(1, len(tables)), sizeof(sa_rotary_table))
        if angles == NULL:
            raise MemoryError("selfattn: no memory for rotary tables")
        try:
            for i, (cosines, sines) in enumerate(tables):
                angles[i].cosines, angles[i].sines = <const float *>data_of(cosines), <const float *>data_of(sines)
            y = np.array(x, np.float32, order="C")
            self.run_in_place(y, cu_seqlens, num_threads, first, end, angles)
        finally:
            free(angles)
        return y

    cdef int run_in_place(self, y, cu_seqlens, int num_threads, ptrdiff_t first, ptrdiff_t end,
                          const sa_rotary_table *angles) except -1:
        cdef float *data = <float *>data_of(y)
        cdef const int64_t *bounds = <const int64_t *>data_of(cu_seqlens)
        cdef ptrdiff_t sequences = len(cu_seqlens) - 1
        cdef int status
        if first >= end or sequences <= 0 or not y.size:
            return 0
        with nogil:
            status = library.encoder_run(&self.encoder, data, bounds, sequences, angles, run_layers, first, end,
                                         num_threads)
        return raise_status(status)
