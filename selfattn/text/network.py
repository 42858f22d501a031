# SPDX-License-Identifier: Apache-2.0
"""The network of a text encoder: token numbers in, token embeddings out, packed all the way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from selfattn._checks import as_cu_seqlens, as_integers
from selfattn.layers import Encoder, EncoderLayer, FeedForward, LayerNorm, MultiHeadSelfAttention
from selfattn.layers.base import Layer, Weights, as_bias, as_weight, protected, same
from selfattn.layers.packed_batch import PackedBatch
from selfattn.runtime import resolve_num_threads
from selfattn.text.checkpoint import Tensors
from selfattn.text.configuration import Configuration
from selfattn.text.pooling import Floats

if TYPE_CHECKING:
    from selfattn.layers.backward import SavedEncoder

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class SavedNetwork:
    """ids and positions (tokens,), and what norm and encoder keep."""

    ids: Ids
    positions: Ids
    norm: Floats
    encoder: tuple[PackedBatch, SavedEncoder]


@dataclass(frozen=True, eq=False, repr=False)
class Network(Layer):
    """encoder(norm(word_table[ids] + type_row + position_table[positions])): a layer as all others are.

    word_table: (vocab_size, d_model). position_table: (max_length, d_model), row 0 is the first position.
    type_row: (d_model,), the token type of a single segment, or None. Everywhere, ids (tokens,) are the
    token numbers of several sequences, one after another; sequence b is ids[cu_seqlens[b]:cu_seqlens[b + 1]].
    """

    word_table: Floats
    position_table: Floats
    type_row: Floats | None
    norm: LayerNorm
    encoder: Encoder

    def __post_init__(self) -> None:
        words, positions = (as_weight(n, getattr(self, n), 2) for n in ("word_table", "position_table"))
        d_model = self.encoder.d_model
        widths = {"word_table": words.shape[1], "position_table": positions.shape[1]}
        same("d_model", **widths, norm=len(self.norm.weight), encoder=d_model)
        type_row = as_bias("type_row", self.type_row, d_model)
        self._set(word_table=words, position_table=positions, type_row=type_row)

    def embed(self, ids: ArrayLike, cu_seqlens: ArrayLike, *, num_threads: int | None = None) -> Floats:
        """The input of the first layer, (tokens, d_model)."""
        rows, positions, _ = self._places(ids, cu_seqlens)
        return self.norm._normed(self._sum(rows, positions), resolve_num_threads(num_threads))

    def __call__(self, ids: ArrayLike, cu_seqlens: ArrayLike, *, num_threads: int | None = None) -> Floats:
        """The embedding of every token, (tokens, d_model) float32.

        Raises TypeError or ValueError for ids that are not token numbers, cu_seqlens that do not bound them,
        and a sequence longer than position_table.
        """
        (rows, positions, bounds), threads = self._places(ids, cu_seqlens), resolve_num_threads(num_threads)
        x = self.norm._normed(self._sum(rows, positions), threads)
        return self.encoder._run(PackedBatch.packed_side_by_side(x, bounds), threads)

    def forward(
        self,
        ids: ArrayLike,
        cu_seqlens: ArrayLike,
        *,
        recompute: bool = False,
        num_threads: int | None = None,
    ) -> tuple[Floats, SavedNetwork]:
        """The result of the call, to the bit, and what `backward` needs; `recompute` as for an Encoder."""
        (rows, positions, bounds), threads = self._places(ids, cu_seqlens), resolve_num_threads(num_threads)
        total = self._sum(rows, positions)
        words = PackedBatch.packed_side_by_side(self.norm._normed(total, threads), bounds)
        y, saved = self.encoder._forward(words, recompute, threads)
        return y, SavedNetwork(rows, positions, total, (words, saved))

    def backward(self, saved: SavedNetwork, grad_y: ArrayLike, *, num_threads: int | None = None) -> Weights:
        """grad_y (tokens, d_model) -> the gradients as `weights()`; token numbers have none."""
        from selfattn.functional import column_sums  # here: only those who learn need them
        from selfattn.layers.embedding import embedding_backward

        grad, of_encoder = self.encoder.backward(saved.encoder, grad_y, num_threads)
        grad, of_norm = self.norm.backward(saved.norm, grad, num_threads=num_threads)
        grads: Weights = {
            "word_table": embedding_backward(grad, saved.ids, len(self.word_table)),
            "position_table": embedding_backward(grad, saved.positions, len(self.position_table)),
            "type_row": column_sums(grad, num_threads=num_threads),
            "norm": of_norm,
            "encoder": of_encoder,
        }
        return {name: grads[name] for name in self.weights()}

    def attention_weights(self, ids: ArrayLike, *, num_threads: int | None = None) -> Floats:
        """Token numbers (length,) of one sequence -> (layers, heads, length, length)."""
        x = self.embed(ids, [0, np.size(ids)], num_threads=num_threads)
        depth = len(self.encoder.layers) - 1  # what the last layer gives is no layer's input
        inputs = self.encoder.hidden_states(x, num_threads=num_threads, depth=depth)
        pairs = zip(self.encoder.layers, inputs, strict=True)
        return np.stack([layer.attention_weights(x, num_threads=num_threads) for layer, x in pairs])

    def _places(self, ids: ArrayLike, cu_seqlens: ArrayLike) -> tuple[Ids, Ids, Ids]:
        """The row of every token in word_table and in position_table, and the bounds of the sequences."""
        rows = as_integers("ids", ids)
        if rows.ndim != 1:
            raise ValueError(f"ids has shape {rows.shape}; it needs (tokens,), sequences side by side")
        bounds = as_cu_seqlens("cu_seqlens", cu_seqlens, len(rows), "the number of tokens")
        lengths, most = np.diff(bounds), len(self.position_table)
        if lengths.max(initial=0) > most:
            b = lengths.argmax()
            raise ValueError(f"sequence {b} has {lengths[b]} tokens; this network has {most} positions")
        if rows.view(np.uint64).max(initial=0) >= len(self.word_table):  # a negative one is a large one
            bad = rows[(rows < 0) | (rows >= len(self.word_table))][0]
            raise ValueError(
                f"ids holds {bad}; the vocabulary has the tokens 0 to {len(self.word_table) - 1}"
            )
        return rows, np.arange(len(rows)) - np.repeat(bounds[:-1], lengths), bounds

    def _sum(self, ids: Ids, positions: Ids) -> Floats:
        x = self.word_table[ids]
        if self.type_row is not None:
            x += self.type_row
        x += self.position_table[positions]
        return x


def in_memory(network: Network) -> Network:
    """The same network, the encoder's weights copied from where they lie, its packed ones shared."""
    from selfattn.train.trees import flatten, unflatten  # here: only those who ask for the weights need them

    weights = network.encoder.weights()
    copies = {name: protected(array.copy(order="K")) for name, array in flatten(weights).items()}
    encoder = network.encoder.replace(unflatten(copies, weights))
    vars(encoder)["_packed"] = network.encoder._packed
    return replace(network, encoder=encoder)


def checkpoint_tensors(configuration: Configuration, network: Network) -> Iterator[tuple[str, slice, Floats]]:
    """The inverse of build_network: names of tensors, and what the network has of their rows."""
    first = configuration.max_positions - configuration.max_length
    name_of = configuration.embedding_tensor
    yield name_of("words", "weight"), slice(None), network.word_table
    yield name_of("positions", "weight"), slice(first, None), network.position_table
    if network.type_row is not None:
        yield name_of("token_types", "weight"), slice(1), network.type_row[None]
    for kind in ("weight", "bias"):
        yield name_of("norm", kind), slice(None), getattr(network.norm, kind)
        for index, layer in enumerate(network.encoder.layers):
            for role in configuration.family.layer:
                tensor = _tensor_of(layer, role, kind)
                yield configuration.layer_tensor(index, role, kind), slice(None), tensor


def _tensor_of(layer: EncoderLayer, role: str, kind: str) -> Any:
    """A layer's tensor as checkpoints have it: role as in `Family.layer`, kind "weight" or "bias"."""
    if role in ("attention_norm", "feed_forward_norm"):
        return getattr(getattr(layer, role), kind)
    part = layer.feed_forward if role in ("up", "down") else layer.attention
    return getattr(part, f"{role}_{kind}").T


def build_network(
    configuration: Configuration, tensors: Tensors, precision: Literal["bfloat16"] | None = None
) -> Network:
    """The network of a checkpoint whose tensors were checked against `configuration.shapes()`."""

    def embedding(role: str, kind: str = "weight") -> Floats:
        return tensors[configuration.embedding_tensor(role, kind)]

    layers = [_layer(configuration, tensors, index) for index in range(configuration.num_layers)]
    first = configuration.max_positions - configuration.max_length
    return Network(
        word_table=embedding("words"),
        position_table=embedding("positions")[first:],
        type_row=embedding("token_types")[0] if configuration.token_types else None,
        norm=LayerNorm(embedding("norm"), embedding("norm", "bias"), eps=configuration.layer_norm_eps),
        encoder=Encoder(layers, precision=precision),
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
