# SPDX-License-Identifier: Apache-2.0
"""A layer as the compiled loop takes it: matrices that meet the same input are put side by side.

Layers that turn by the same angles share a table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from selfattn.attention.options import AttentionOptions
from selfattn.layers.base import Array, join_biases, join_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from selfattn.layers.encoder_layer import EncoderLayer
    from selfattn.layers.norm import Norm
    from selfattn.layers.rotary import RotaryPositions


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


class Turning(NamedTuple):
    """The rotary positions of heads of that width: what tells one table from another."""

    rotary: RotaryPositions
    head_dim: int


def turnings_of(layers: Sequence[EncoderLayer]) -> list[Turning]:
    """Those of all layers, each once; a layer's table is numbered by its place here."""
    every = [_turning(layer) for layer in layers]
    return list(dict.fromkeys(turning for turning in every if turning is not None))


def tables_for(turnings: Sequence[Turning], cu_seqlens: Array) -> list[tuple[Array, Array]]:
    """Cosines and sines of each, as far as the longest sequence asks for."""
    longest = int((cu_seqlens[1:] - cu_seqlens[:-1]).max(initial=0))
    return [rotary.tables(head_dim, longest) for rotary, head_dim in turnings]


def _turning(layer: EncoderLayer) -> Turning | None:
    heads = layer.attention
    return None if heads.rotary is None else Turning(heads.rotary, heads.head_dim)


def packable(layer: EncoderLayer, turnings: Sequence[Turning]) -> PackableLayer:
    """The layer's weights, put side by side where that is needed and not copied where it is not."""
    heads, network, turning = layer.attention, layer.feed_forward, _turning(layer)
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
        options=heads._options,
        qkv=Dense(*heads._joined()),
        output=Dense(output, heads.output_bias),
        up=Dense(join_weights(up), join_biases(up_bias, [weight.shape[1] for weight in up])),
        down=Dense(network.down_weight, network.down_bias),
        attention_norm=layer.attention_norm,
        feed_forward_norm=layer.feed_forward_norm,
        norm_first=layer.norm_first,
        gated=network.gate_weight is not None,
        activation=network.activation,
        attention_post_norm=layer.attention_post_norm,
        feed_forward_post_norm=layer.feed_forward_post_norm,
        query_norm=heads.query_norm,
        key_norm=heads.key_norm,
        rotary_table=None if turning is None else turnings.index(turning),
        rotary_pairs=0 if turning is None else turning.rotary.pairs(turning.head_dim),
        rotary_interleaved=turning is not None and turning.rotary.interleaved,
    )
