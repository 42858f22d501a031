"""A layer as the compiled loop takes it: matrices that meet the same input are put side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from selfattn.attention.options import AttentionOptions
from selfattn.layers.base import Array, join_biases, join_weights

if TYPE_CHECKING:
    from selfattn.layers.encoder_layer import EncoderLayer
    from selfattn.layers.norm import Norm


class Dense(NamedTuple):
    """y = x @ weight + bias; weight (d_in, d_out)."""

    weight: Array
    bias: Array | None


class PackableLayer(NamedTuple):
    """One to one `struct sa_layer` of csrc/plan/encoder.h."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    value_dim: int
    options: AttentionOptions
    qkv: Dense  # query | key | value
    output: Dense
    up: Dense  # with a gate, gate | up
    down: Dense
    attention_norm: Norm | None
    feed_forward_norm: Norm | None
    norm_first: bool
    gated: bool
    activation: str
    attention_post_norm: Norm | None = None
    feed_forward_post_norm: Norm | None = None
    query_norm: Norm | None = None
    key_norm: Norm | None = None
    rotary_table: int | None = None  # which of the tables of a run
    rotary_pairs: int = 0
    rotary_interleaved: bool = False


def packable(layer: EncoderLayer) -> PackableLayer:
    """The layer's weights, put side by side where that is needed and not copied where it is not."""
    heads, network = layer.attention, layer.feed_forward
    up, up_bias = [network.up_weight], [network.up_bias]
    if network.gate_weight is not None:
        up, up_bias = [network.gate_weight, *up], [network.gate_bias, *up_bias]
    output: Any = heads.output_weight
    if output is None:  # the heads go side by side into the residual: the identity
        output = np.eye(layer.d_model, dtype=np.float32)
    return PackableLayer(
        num_heads=heads.num_heads,
        num_kv_heads=heads.num_kv_heads,
        head_dim=heads.head_dim,
        value_dim=heads.value_dim,
        options=heads._options(heads.causal, heads.scale),
        qkv=Dense(*heads._joined()),
        output=Dense(output, heads.output_bias),
        up=Dense(join_weights(up), join_biases(up_bias, [weight.shape[1] for weight in up])),
        down=Dense(network.down_weight, network.down_bias),
        attention_norm=layer.attention_norm,
        feed_forward_norm=layer.feed_forward_norm,
        norm_first=layer.norm_first,
        gated=network.gate_weight is not None,
        activation=network.activation,
    )
