# SPDX-License-Identifier: Apache-2.0
"""Small random layers, encoders and words for the tests of the layers, and the comparison to the last bit."""

import numpy as np

from selfattn.layers import (
    Encoder,
    EncoderLayer,
    FeedForward,
    LayerNorm,
    MultiHeadSelfAttention,
    RMSNorm,
    SelfAttentionCell,
)

D_MODEL, D_FF, HEAD_DIM, VALUE_DIM = 24, 40, 8, 5


def random_cell(rng, bias=True, value_dim=VALUE_DIM):
    shapes = [(D_MODEL, HEAD_DIM), (D_MODEL, HEAD_DIM), (D_MODEL, value_dim)]
    weights = [rng.standard_normal(shape) / 5 for shape in shapes]
    return SelfAttentionCell(*weights, *(rng.standard_normal(shape[1]) if bias else None for shape in shapes))


def grouped(rng, num_heads=6, num_kv_heads=2, **settings):
    widths = (num_heads * HEAD_DIM, num_kv_heads * HEAD_DIM, num_kv_heads * VALUE_DIM)
    return MultiHeadSelfAttention(
        *(rng.standard_normal((D_MODEL, width)) / 5 for width in widths),
        rng.standard_normal((num_heads * VALUE_DIM, D_MODEL)) / 5,
        *(rng.standard_normal(width) for width in widths),
        rng.standard_normal(D_MODEL),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        **settings,
    )


def norm(rng, kind="layer"):
    scale, shift = 1 + rng.standard_normal(D_MODEL) / 5, rng.standard_normal(D_MODEL) / 5
    return RMSNorm(scale) if kind == "rms" else LayerNorm(scale, shift, eps=1e-12)


def layer(rng, norm_first=False, kind="layer", activation="gelu", gated=False, num_kv_heads=2, **settings):
    def weight(*shape):
        return rng.standard_normal(shape) / np.sqrt(shape[0])

    widths = (D_MODEL, num_kv_heads * 6, num_kv_heads * 6)
    attention = MultiHeadSelfAttention(
        *(weight(D_MODEL, width) for width in (*widths, D_MODEL)),
        *(weight(width) for width in (*widths, D_MODEL)),
        num_heads=4,
        num_kv_heads=num_kv_heads,
        **settings,
    )
    gate = (weight(D_MODEL, D_FF), weight(D_FF)) if gated else (None, None)
    biases = (weight(D_FF), weight(D_MODEL))
    network = FeedForward(weight(D_MODEL, D_FF), weight(D_FF, D_MODEL), *biases, *gate, activation)
    return EncoderLayer(attention, norm(rng, kind), network, norm(rng, kind), norm_first)


def encoder(rng, depth=2, final=False, **make):
    return Encoder([layer(rng, **make) for _ in range(depth)], norm(rng) if final else None)


def words(rng, *shape):
    return rng.standard_normal((*shape, D_MODEL)).astype(np.float32)


def same_bits(left, right):
    assert left.shape == right.shape
    np.testing.assert_array_equal(left.view(np.uint32), right.view(np.uint32))
