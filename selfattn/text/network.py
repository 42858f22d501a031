"""The network of a text encoder: token numbers in, token embeddings out, packed all the way."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from selfattn.layers import Encoder, EncoderLayer, FeedForward, LayerNorm, MultiHeadSelfAttention
from selfattn.text.architectures import Configuration
from selfattn.text.pooling import Floats, Offsets
from selfattn.text.weights import Tensors


@dataclass(frozen=True)
class Network:
    """Embedding tables and the encoder.

    word_table: (vocab_size, d_model). position_table: (max_length, d_model), row 0 is the first position.
    type_row: (d_model,), the token type of a single segment, or None. norm: over the sum of the three.
    """

    word_table: Floats
    position_table: Floats
    type_row: Floats | None
    norm: LayerNorm
    encoder: Encoder

    def embed(self, ids: NDArray[np.int64], cu_seqlens: Offsets, *, num_threads: int | None = None) -> Floats:
        """Packed token numbers (tokens,) -> the input of the first layer (tokens, d_model)."""
        positions = np.arange(len(ids)) - np.repeat(cu_seqlens[:-1], np.diff(cu_seqlens))
        x = self.word_table[ids]
        if self.type_row is not None:
            x += self.type_row
        x += self.position_table[positions]
        return self.norm(x, num_threads=num_threads)

    def __call__(
        self, ids: NDArray[np.int64], cu_seqlens: Offsets, *, num_threads: int | None = None
    ) -> Floats:
        """Packed token numbers (tokens,), cu_seqlens (batch + 1,) -> token embeddings (tokens, d_model)."""
        x = self.embed(ids, cu_seqlens, num_threads=num_threads)
        return self.encoder(x, cu_seqlens=cu_seqlens, num_threads=num_threads)

    def attention_weights(self, ids: NDArray[np.int64], *, num_threads: int | None = None) -> Floats:
        """Token numbers (length,) of one sequence -> (layers, heads, length, length)."""
        x = self.embed(ids, np.array([0, len(ids)]), num_threads=num_threads)
        depth = len(self.encoder.layers) - 1  # what the last layer gives is no layer's input
        inputs = self.encoder.hidden_states(x, num_threads=num_threads, depth=depth)
        pairs = zip(self.encoder.layers, inputs, strict=True)
        return np.stack([layer.attention_weights(x, num_threads=num_threads) for layer, x in pairs])


def build_network(configuration: Configuration, tensors: Tensors) -> Network:
    """The network of a checkpoint whose tensors were checked against `configuration.shapes()`."""
    eps = configuration.layer_norm_eps
    types = tensors.get("embeddings.token_type_embeddings.weight")
    first = configuration.max_positions - configuration.max_length
    return Network(
        word_table=tensors["embeddings.word_embeddings.weight"],
        position_table=tensors["embeddings.position_embeddings.weight"][first:],
        type_row=None if types is None else types[0],
        norm=LayerNorm(tensors["embeddings.LayerNorm.weight"], tensors["embeddings.LayerNorm.bias"], eps=eps),
        encoder=Encoder([_layer(configuration, tensors, index) for index in range(configuration.num_layers)]),
    )


def _layer(configuration: Configuration, tensors: Tensors, index: int) -> EncoderLayer:
    def weight(role: str) -> Floats:  # checkpoints hold (d_out, d_in), the layers take (d_in, d_out)
        return tensors[configuration.layer_tensor(index, role, "weight")].T

    def bias(role: str) -> Floats:
        return tensors[configuration.layer_tensor(index, role, "bias")]

    attention = MultiHeadSelfAttention(
        weight("query"),
        weight("key"),
        weight("value"),
        weight("output"),
        query_bias=bias("query"),
        key_bias=bias("key"),
        value_bias=bias("value"),
        output_bias=bias("output"),
        num_heads=configuration.num_heads,
    )
    feed_forward = FeedForward(
        weight("up"),
        weight("down"),
        up_bias=bias("up"),
        down_bias=bias("down"),
        activation=configuration.activation,
    )
    attention_norm, feed_forward_norm = (
        LayerNorm(weight(role), bias(role), eps=configuration.layer_norm_eps)
        for role in ("attention_norm", "feed_forward_norm")
    )
    return EncoderLayer(attention, attention_norm, feed_forward, feed_forward_norm)
