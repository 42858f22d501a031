# SPDX-License-Identifier: Apache-2.0
"""Layers in depth: encoder layers stacked into an encoder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from selfattn._checks import as_integer, as_precision
from selfattn._native.encoder import PackedEncoder
from selfattn.layers.base import Array, Layer, Weights
from selfattn.layers.encoder_layer import EncoderLayer
from selfattn.layers.feed_forward import FeedForward
from selfattn.layers.multihead import MultiHeadSelfAttention
from selfattn.layers.norm import LayerNorm, Norm, RMSNorm
from selfattn.layers.packed_batch import PackedBatch
from selfattn.layers.packing import Turning, packable, tables_for, turnings_of
from selfattn.layers.relative_bias import RelativeBias
from selfattn.layers.rotary import RotaryPositions
from selfattn.runtime import resolve_num_threads

if TYPE_CHECKING:
    import os

    import numpy.typing as npt

    from selfattn.layers.backward import SavedEncoder


@dataclass(frozen=True, eq=False, repr=False)
class Encoder(Layer):
    """Layers in depth, and a final norm where the model has one (norm_first models do).

    Only real words are computed: padding is taken out first and comes back as zeros. A sentence gives the
    same bits alone, in any batch, padded or packed, on any number of threads.

    Layers may differ in all but d_model: windows of their own, rotary positions of two bases. relative_bias
    is added in every layer whose attention has none of its own: one table for all, as in T5 (Raffel et al.,
    2020).

    precision="bfloat16" rounds the factors of every product of matrices to bfloat16 and sums in float32,
    where the processor multiplies those faster; bits are then those of this kind of processor. It concerns
    the call: what is learned (`forward`, `backward`) and `attention_weights` stay in float32.
    """

    layers: Sequence[EncoderLayer]
    final_norm: Norm | None = None
    precision: Literal["bfloat16"] | None = None
    relative_bias: RelativeBias | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.layers, Iterable):
            kind = type(self.layers).__name__
            raise TypeError(
                f"layers is a {kind}; it must be a sequence of EncoderLayer, one alone as [layer]"
            )
        self._set(layers=tuple(self.layers))
        if not self.layers:
            raise ValueError("layers has 0 layers; an Encoder needs at least 1")
        for i, layer in enumerate(self.layers):
            if not isinstance(layer, EncoderLayer):
                raise TypeError(f"layers[{i}] is a {type(layer).__name__}; it must be an EncoderLayer")
            if layer.d_model != self.d_model:
                raise ValueError(f"layers[{i}] has d_model={layer.d_model} but layers[0] has {self.d_model}")
        as_precision(self.precision)
        if self.relative_bias is not None:
            self._check_relative_bias(self.relative_bias)
        if self.final_norm is None:
            return
        if not isinstance(self.final_norm, Norm):
            kind = type(self.final_norm).__name__
            raise TypeError(f"final_norm is a {kind}; it must be a LayerNorm or RMSNorm, or None")
        if len(self.final_norm.weight) != self.d_model:
            raise ValueError(f"final_norm is {len(self.final_norm.weight)} wide but d_model={self.d_model}")

    def _check_relative_bias(self, shared: RelativeBias) -> None:
        if not isinstance(shared, RelativeBias):
            kind = type(shared).__name__
            raise TypeError(f"relative_bias is a {kind}; it must be a RelativeBias, or None")
        for i, layer in enumerate(self.layers):
            heads = layer.attention
            if heads.relative_bias is None and heads.num_heads != shared.num_heads:
                raise ValueError(
                    f"relative_bias is of {shared.num_heads} heads but layers[{i}] has {heads.num_heads}"
                )

    def __repr__(self) -> str:
        last = f"final_norm={self.final_norm}, precision={self.precision}"
        if self.relative_bias is not None:
            last += f", relative_bias={self.relative_bias}"
        return f"Encoder({len(self.layers)} layers like {self.layers[0]}, {last})"

    @property
    def d_model(self) -> int:
        """The width of a word's vector."""
        return self.layers[0].d_model

    @cached_property
    def _packed(self) -> PackedEncoder:
        # Packed at the first call. Threads that arrive together may each pack; any of the results will do,
        # and there is no lock that a fork() could catch held.
        return PackedEncoder([packable(layer, self._turnings) for layer in self._whole], self.precision)

    @cached_property
    def _whole(self) -> tuple[EncoderLayer, ...]:
        """The layers, each with the relative bias that it adds: its own, or the shared one."""
        if self.relative_bias is None:
            return tuple(self.layers)
        return tuple(_with_relative_bias(layer, self.relative_bias) for layer in self.layers)

    @cached_property
    def _turnings(self) -> list[Turning]:
        """The rotary positions of the layers, each once."""
        return turnings_of(self.layers)

    def __call__(
        self,
        x: npt.ArrayLike,
        lengths: npt.ArrayLike | None = None,
        cu_seqlens: npt.ArrayLike | None = None,
        num_threads: int | None = None,
    ) -> Array:
        """x (..., d_model) float32 -> a new array of the same shape.

        x is (seq_len, d_model), (batch, seq_len, d_model) with `lengths` (batch,) when padded (the result is
        0 in the padding), or packed (tokens, d_model) with `cu_seqlens` (batch + 1,): sequence b is rows
        cu_seqlens[b] to cu_seqlens[b + 1]. Zero sequences and zero lengths are legal.
        """
        words = PackedBatch.of(x, lengths, cu_seqlens, self.d_model)
        return words.restore(self._run(words, resolve_num_threads(num_threads)))

    def _run(self, words: PackedBatch, threads: int) -> Array:
        """The words through all layers, (tokens, d_model)."""
        rows = self._run_layers(words.tokens, words.cu_seqlens, threads)
        return rows if self.final_norm is None else self.final_norm._normed(rows, threads)

    def _run_layers(
        self, tokens: Array, cu_seqlens: Array, threads: int, first: int = 0, last: int | None = None
    ) -> Array:
        """Tokens (tokens, d_model) through the layers first .. last - 1, by default all."""
        if not self._turnings:
            return self._packed.run(tokens, cu_seqlens, threads, first, last)
        tables = tables_for(self._turnings, cu_seqlens)
        return self._packed.run(tokens, cu_seqlens, threads, first, last, tables)

    def _forward(self, words: PackedBatch, recompute: bool, threads: int) -> tuple[Array, SavedEncoder]:
        from selfattn.layers import backward  # here: only those who learn need it

        return backward.encoder_forward(self, words.tokens, words.cu_seqlens, recompute, threads)

    def forward(
        self,
        x: npt.ArrayLike,
        lengths: npt.ArrayLike | None = None,
        cu_seqlens: npt.ArrayLike | None = None,
        num_threads: int | None = None,
        *,
        recompute: bool = False,
    ) -> tuple[Array, tuple[PackedBatch, SavedEncoder]]:
        """The result of the call, to the bit, and what `backward` needs; x must not change until then.

        With `recompute` only the input of each layer is kept and `backward` computes the layer again: a third
        more work for a fraction of the memory, and the same bits.
        """
        words = PackedBatch.of(x, lengths, cu_seqlens, self.d_model)
        y, saved = self._forward(words, recompute, resolve_num_threads(num_threads))
        return words.restore(y), (words, saved)

    def backward(
        self,
        saved: tuple[PackedBatch, SavedEncoder],
        grad_y: npt.ArrayLike,
        num_threads: int | None = None,
    ) -> tuple[Array, Weights]:
        """grad_y, as the result -> (grad_x, 0 in the padding; the gradients as `weights()`)."""
        from selfattn.layers import backward  # here: only those who learn need it

        words, stack = saved
        rows = words.take(grad_y, self.d_model)
        grad_x, grads = backward.encoder_backward(self, stack, rows, resolve_num_threads(num_threads))
        return words.restore(grad_x), grads

    def hidden_states(
        self,
        x: npt.ArrayLike,
        lengths: npt.ArrayLike | None = None,
        cu_seqlens: npt.ArrayLike | None = None,
        num_threads: int | None = None,
        *,
        depth: int | None = None,
    ) -> list[Array]:
        """The input and the result after each of the first `depth` layers (by default all of them): depth + 1
        arrays, before any final norm. Element i is what layers[i] sees, so
        layers[i].attention_weights(states[i]) shows what it attends to (with a shared relative_bias,
        `attention_weights` of the encoder does).
        """
        depth = len(self.layers) if depth is None else as_integer("depth", depth)
        if not 0 <= depth <= len(self.layers):
            raise ValueError(f"depth={depth} must be between 0 and the {len(self.layers)} layers")
        words = PackedBatch.of(x, lengths, cu_seqlens, self.d_model)
        threads = resolve_num_threads(num_threads)
        states = [words.tokens.copy()]
        for i in range(depth):
            states.append(self._run_layers(states[-1], words.cu_seqlens, threads, i, i + 1))
        return [words.restore(rows) for rows in states]

    def attention_weights(
        self,
        x: npt.ArrayLike,
        lengths: npt.ArrayLike | None = None,
        cu_seqlens: npt.ArrayLike | None = None,
        num_threads: int | None = None,
        *,
        layer: int,
    ) -> Array:
        """What layers[layer] attends to when its own input is x, a shared relative_bias included:
        ([batch,] num_heads, seq_len, seq_len).
        """
        at = as_integer("layer", layer)
        if not 0 <= at < len(self.layers):
            raise ValueError(f"layer={layer} must be between 0 and {len(self.layers) - 1}")
        how: Any = {"lengths": lengths, "cu_seqlens": cu_seqlens, "num_threads": num_threads}
        return self._whole[at].attention_weights(x, **how)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one safetensors file: named float32 tensors (layers.0.attention.query_weight, ...) and the
        configuration as JSON in its metadata.
        """
        from selfattn.layers import serialization  # here, since few who import the layers read or write files

        serialization.save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Encoder:
        """Reads what `save` wrote; ValueError naming the file when it is anything else, or damaged."""
        from selfattn.layers import serialization

        encoder: Encoder = serialization.load(path, Encoder, PARTS)
        return encoder


PARTS = (
    EncoderLayer,
    MultiHeadSelfAttention,
    FeedForward,
    LayerNorm,
    RMSNorm,
    RelativeBias,
    RotaryPositions,
)  # what a file may hold


def _with_relative_bias(layer: EncoderLayer, shared: RelativeBias) -> EncoderLayer:
    if layer.attention.relative_bias is not None:
        return layer
    return replace(layer, attention=replace(layer.attention, relative_bias=shared))
