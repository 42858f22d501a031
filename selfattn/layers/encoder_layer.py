"""Attention, feed-forward and norms joined into a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from selfattn._stack import PackedEncoder
from selfattn.layers.base import Array, Layer, Weights, join_biases, join_weights
from selfattn.layers.feed_forward import FeedForward
from selfattn.layers.multihead import MultiHeadSelfAttention
from selfattn.layers.norm import LayerNorm, Norm, RMSNorm
from selfattn.layers.packed_batch import PackedBatch
from selfattn.runtime import resolve_num_threads

if TYPE_CHECKING:
    import numpy.typing as npt

    from selfattn.layers.backward import SavedLayer


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
        words = PackedBatch.of(x, lengths, cu_seqlens, self.d_model)
        packed = PackedEncoder([self.for_stack()])
        rows = packed.run(words.tokens, words.cu_seqlens, resolve_num_threads(num_threads))
        return words.restore(rows)

    def forward(
        self,
        x: npt.ArrayLike,
        *,
        lengths: npt.ArrayLike | None = None,
        cu_seqlens: npt.ArrayLike | None = None,
        num_threads: int | None = None,
    ) -> tuple[Array, tuple[PackedBatch, SavedLayer]]:
        """The result of the call, to the bit, and what `backward` needs; x must not change until then."""
        from selfattn.layers import backward  # here: only those who learn need it

        words = PackedBatch.of(x, lengths, cu_seqlens, self.d_model)
        y, saved = backward.encoder_layer_forward(
            self, words.tokens, words.cu_seqlens, resolve_num_threads(num_threads)
        )
        return words.restore(y), (words, saved)

    def backward(
        self,
        saved: tuple[PackedBatch, SavedLayer],
        grad_y: npt.ArrayLike,
        *,
        num_threads: int | None = None,
    ) -> tuple[Array, Weights]:
        """grad_y, as the result -> (grad_x, 0 in the padding; the gradients as `weights()`)."""
        from selfattn.layers import backward  # here: only those who learn need it

        words, layer = saved
        rows = words.take(grad_y, self.d_model)
        grad_x, grads = backward.encoder_layer_backward(self, layer, rows, resolve_num_threads(num_threads))
        return words.restore(grad_x), grads

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
        qkv, qkv_bias = heads._joined()
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
            "qkv_weight": qkv,
            "qkv_bias": qkv_bias,
            "output_weight": output,
            "output_bias": heads.output_bias,
            "up_weight": join_weights(up),
            "up_bias": join_biases(up_bias, [w.shape[1] for w in up]),
            "down_weight": network.down_weight,
            "down_bias": network.down_bias,
            "attention_norm": _norm_for_stack(self.attention_norm),
            "feed_forward_norm": _norm_for_stack(self.feed_forward_norm),
        }


def _norm_for_stack(norm: Norm) -> tuple[str, Array, Array | None, float]:
    return norm.kind, norm.weight, norm.bias, norm.eps
