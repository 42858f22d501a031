"""Layers in depth: attention, feed-forward and norms joined into a layer, layers stacked into an encoder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from selfattn._checks import as_integer
from selfattn._stack import PackedEncoder
from selfattn.layers.base import Array, Layer, join_biases, join_weights
from selfattn.layers.feed_forward import FeedForward
from selfattn.layers.multihead import MultiHeadSelfAttention
from selfattn.layers.norm import LayerNorm, Norm, RMSNorm
from selfattn.layers.ragged import Ragged
from selfattn.runtime import resolve_num_threads

if TYPE_CHECKING:
    import os

    import numpy.typing as npt


@dataclass(frozen=True, eq=False, repr=False)
class EncoderLayer(Layer):
    """Attention, then feed-forward, each with a residual connection and a norm.

    post-norm (the Transformer of 2017):  x = norm1(x + attention(x));  x = norm2(x + feed_forward(x))
    norm_first=True:                      x = x + attention(norm1(x));  x = x + feed_forward(norm2(x))

    norm1 is `attention_norm`, norm2 `feed_forward_norm`. Everything goes from d_model to d_model.
    """

    attention: MultiHeadSelfAttention
    attention_norm: Norm
    feed_forward: FeedForward
    feed_forward_norm: Norm
    norm_first: bool = False

    def __post_init__(self) -> None:
        self._set(norm_first=bool(self.norm_first))
        parts: dict[str, Any] = {
            "attention": MultiHeadSelfAttention,
            "attention_norm": Norm,
            "feed_forward": FeedForward,
            "feed_forward_norm": Norm,
        }
        for name, kind in parts.items():
            part = getattr(self, name)
            if not isinstance(part, kind):
                expected = getattr(kind, "__name__", "LayerNorm or RMSNorm")
                raise TypeError(f"{name} is a {type(part).__name__}; it must be a {expected}")
        widths = {
            "the output of attention": self.attention.d_out,
            "attention_norm": len(self.attention_norm.weight),
            "the input of feed_forward": self.feed_forward.d_model,
            "the output of feed_forward": self.feed_forward.d_out,
            "feed_forward_norm": len(self.feed_forward_norm.weight),
        }
        for name, width in widths.items():
            if width != self.d_model:
                raise ValueError(
                    f"{name} is {width} wide; it must be d_model={self.d_model}, as in attention"
                )

    @classmethod
    def initialize(
        cls,
        d_model: int,
        num_heads: int,
        d_ff: int,
        *,
        num_kv_heads: int | None = None,
        norm_first: bool = False,
        norm: str = "layer",
        activation: str = "gelu",
        gated: bool = False,
        bias: bool = True,
        causal: bool = False,
        rng: np.random.Generator,
    ) -> EncoderLayer:
        """A layer with random weights; `norm` is "layer" or "rms"."""
        if norm not in ("layer", "rms"):
            raise ValueError(f'norm={norm!r} must be "layer" or "rms"')
        ones, zeros = np.ones(d_model, np.float32), np.zeros(d_model, np.float32)
        unit = RMSNorm(ones) if norm == "rms" else LayerNorm(ones, zeros if bias else None)
        attention = MultiHeadSelfAttention.initialize(
            d_model, num_heads, num_kv_heads=num_kv_heads, bias=bias, causal=causal, rng=rng
        )
        feed_forward = FeedForward.initialize(
            d_model, d_ff, activation=activation, gated=gated, bias=bias, rng=rng
        )
        return cls(attention, unit, feed_forward, unit, norm_first)

    @property
    def d_model(self) -> int:
        """The width of a word's vector."""
        return self.attention.d_model

    def __call__(
        self,
        x: npt.ArrayLike,
        *,
        lengths: npt.ArrayLike | None = None,
        cu_seqlens: npt.ArrayLike | None = None,
        num_threads: int | None = None,
    ) -> Array:
        """This layer alone, as an Encoder of depth 1; packs its weights at every call."""
        return Encoder([self])(x, lengths, cu_seqlens, num_threads)

    def attention_weights(
        self,
        x: npt.ArrayLike,
        *,
        lengths: npt.ArrayLike | None = None,
        cu_seqlens: npt.ArrayLike | None = None,
        num_threads: int | None = None,
    ) -> Array:
        """What this layer attends to when its input is x, ([batch,] num_heads, seq_len, seq_len)."""
        return self.attention.attention_weights(
            self.attention_norm(x, num_threads=num_threads) if self.norm_first else x,
            lengths=lengths,
            cu_seqlens=cu_seqlens,
            num_threads=num_threads,
        )

    def for_stack(self) -> dict[str, Any]:
        """This layer as the compiled stack takes it: matrices that meet the same input side by side."""
        heads, network = self.attention, self.feed_forward
        qkv = [heads.query_weight, heads.key_weight, heads.value_weight]
        qkv_bias = [heads.query_bias, heads.key_bias, heads.value_bias]
        up, up_bias = [network.up_weight], [network.up_bias]
        if network.gate_weight is not None:
            up, up_bias = [network.gate_weight, *up], [network.gate_bias, *up_bias]
        # Without an output matrix the heads go side by side into the residual: the identity.
        output = heads.output_weight
        if output is None:
            output = np.eye(self.d_model, dtype=np.float32)
        return {
            "num_heads": heads.num_heads,
            "num_kv_heads": heads.num_kv_heads,
            "head_dim": heads.head_dim,
            "value_dim": heads.value_dim,
            "scale": heads.scale,
            "causal": heads.causal,
            "norm_first": self.norm_first,
            "activation": network.activation,
            "gated": network.gate_weight is not None,
            "qkv_weight": join_weights(qkv),
            "qkv_bias": join_biases(qkv_bias, [w.shape[1] for w in qkv]),
            "output_weight": output,
            "output_bias": heads.output_bias,
            "up_weight": join_weights(up),
            "up_bias": join_biases(up_bias, [w.shape[1] for w in up]),
            "down_weight": network.down_weight,
            "down_bias": network.down_bias,
            "attention_norm": _norm_for_stack(self.attention_norm),
            "feed_forward_norm": _norm_for_stack(self.feed_forward_norm),
        }


@dataclass(frozen=True, eq=False, repr=False)
class Encoder(Layer):
    """Layers in depth, and a final norm where the model has one (norm_first models do).

    Only real words are computed: padding is taken out first and comes back as zeros. A sentence gives the
    same bits alone, in any batch, padded or packed, on any number of threads.
    """

    layers: Sequence[EncoderLayer]
    final_norm: Norm | None = None

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
        if self.final_norm is None:
            return
        if not isinstance(self.final_norm, Norm):
            kind = type(self.final_norm).__name__
            raise TypeError(f"final_norm is a {kind}; it must be a LayerNorm or RMSNorm, or None")
        if len(self.final_norm.weight) != self.d_model:
            raise ValueError(f"final_norm is {len(self.final_norm.weight)} wide but d_model={self.d_model}")

    def __repr__(self) -> str:
        return f"Encoder({len(self.layers)} layers like {self.layers[0]}, final_norm={self.final_norm})"

    @property
    def d_model(self) -> int:
        """The width of a word's vector."""
        return self.layers[0].d_model

    @cached_property
    def _packed(self) -> PackedEncoder:
        # Packed at the first call. Threads that arrive together may each pack; any of the results will do,
        # and there is no lock that a fork() could catch held.
        return PackedEncoder([layer.for_stack() for layer in self.layers])

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
        words = Ragged.of(x, lengths, cu_seqlens, self.d_model)
        rows = self._packed.run(words.tokens, words.cu_seqlens, resolve_num_threads(num_threads))
        if self.final_norm is not None:
            rows = self.final_norm(rows, num_threads=num_threads)
        return words.restore(rows)

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
        layers[i].attention_weights(states[i]) shows what it attends to.
        """
        depth = len(self.layers) if depth is None else as_integer("depth", depth)
        if not 0 <= depth <= len(self.layers):
            raise ValueError(f"depth={depth} must be between 0 and the {len(self.layers)} layers")
        words = Ragged.of(x, lengths, cu_seqlens, self.d_model)
        threads = resolve_num_threads(num_threads)
        states = [words.tokens.copy()]
        for i in range(depth):
            states.append(self._packed.run(states[-1], words.cu_seqlens, threads, i, i + 1))
        return [words.restore(rows) for rows in states]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one safetensors file: named float32 tensors (layers.0.attention.query_weight, ...) and the
        configuration as JSON in its metadata.
        """
        from selfattn.layers import weights  # here, since few who import the layers read or write files

        weights.save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Encoder:
        """Reads what `save` wrote; ValueError naming the file when it is anything else, or damaged."""
        from selfattn.layers import weights

        return weights.load(path)


def _norm_for_stack(norm: Norm) -> tuple[str, Array, Array | None, float]:
    return norm.kind, norm.weight, norm.bias, norm.eps
