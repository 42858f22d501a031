# SPDX-License-Identifier: Apache-2.0
"""Attention, feed-forward and norms joined into a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from selfattn._native.encoder import PackedEncoder
from selfattn.layers.base import Array, Layer, Weights
from selfattn.layers.feed_forward import FeedForward
from selfattn.layers.multihead import MultiHeadSelfAttention
from selfattn.layers.norm import LayerNorm, Norm, RMSNorm
from selfattn.layers.packed_batch import PackedBatch
from selfattn.layers.packing import packable, tables_for, turnings_of
from selfattn.runtime import resolve_num_threads

if TYPE_CHECKING:
    from typing import Unpack

    import numpy.typing as npt

    from selfattn.layers.backward import SavedLayer
    from selfattn.layers.multihead import AttentionSettings

NORMS = ("attention_norm", "feed_forward_norm", "attention_post_norm", "feed_forward_post_norm")


@dataclass(frozen=True, eq=False, repr=False)
class EncoderLayer(Layer):
    """Attention, then feed-forward, each with a residual connection and with norms before, after, or both.

    after:                     x = norm1(x + attention(x));         x = norm2(x + feed_forward(x))
    before (norm_first=True):  x = x + attention(norm1(x));         x = x + feed_forward(norm2(x))
    both (norm_first=True):    x = x + post1(attention(norm1(x)));  x = x + post2(feed_forward(norm2(x)))

    The first is of "Attention Is All You Need" (Vaswani et al., 2017), the second of "On Layer Normalization
    in the Transformer Architecture" (Xiong et al., 2020), the third of "Gemma 2" (Google, 2024), section 2.

    Args:
        attention: its d_out is d_model, and so is that of feed_forward.
        attention_norm, feed_forward_norm: norm1 and norm2, d_model wide. With norm_first each may be None,
            and x passes as it is.
        norm_first: norms before, and not after.
        attention_post_norm, feed_forward_post_norm: post1 and post2, with norm_first only; None for none.

    Raises:
        TypeError: a part of another kind.
        ValueError: widths that differ; a norm that is missing, or one too many.

    >>> rng = np.random.default_rng(0)
    >>> layer = EncoderLayer.initialize(32, 4, 64, norm_first=True, norm="rms", causal=True, rng=rng)
    >>> layer(rng.standard_normal((10, 32), dtype=np.float32)).shape
    (10, 32)
    """

    attention: MultiHeadSelfAttention
    attention_norm: Norm | None
    feed_forward: FeedForward
    feed_forward_norm: Norm | None
    norm_first: bool = False
    attention_post_norm: Norm | None = None
    feed_forward_post_norm: Norm | None = None

    def __post_init__(self) -> None:
        self._set(norm_first=bool(self.norm_first))
        for name, kind in {"attention": MultiHeadSelfAttention, "feed_forward": FeedForward}.items():
            part = getattr(self, name)
            if not isinstance(part, kind):
                raise TypeError(f"{name} is a {type(part).__name__}; it must be a {kind.__name__}")
        widths = {
            "the output of attention": self.attention.d_out,
            "the input of feed_forward": self.feed_forward.d_model,
            "the output of feed_forward": self.feed_forward.d_out,
        }
        for name in NORMS:
            norm = getattr(self, name)
            if norm is not None:
                if not isinstance(norm, Norm):
                    raise TypeError(f"{name} is a {type(norm).__name__}; it must be a LayerNorm or RMSNorm")
                widths[name] = len(norm.weight)
            elif not self.norm_first and not name.endswith("post_norm"):
                raise ValueError(f"{name} is None; only a layer with norm_first goes without")
        for name, width in widths.items():
            if width != self.d_model:
                raise ValueError(
                    f"{name} is {width} wide; it must be d_model={self.d_model}, as in attention"
                )
        if not self.norm_first and (self.attention_post_norm or self.feed_forward_post_norm):
            raise ValueError("attention_post_norm and feed_forward_post_norm need norm_first=True")

    @classmethod
    def initialize(
        cls,
        d_model: int,
        num_heads: int,
        d_ff: int,
        *,
        norm_first: bool = False,
        post_norms: bool = False,
        norm: str = "layer",
        activation: str = "gelu",
        gated: bool = False,
        bias: bool = True,
        rng: np.random.Generator,
        **attention: Unpack[AttentionSettings],
    ) -> EncoderLayer:
        """A layer with random weights; `norm` is "layer" or "rms", and with `post_norms` there are four.

        `attention` are arguments of MultiHeadSelfAttention.initialize: num_kv_heads, head_dim, causal, scale,
        window, rotary and so on.
        """
        if norm not in ("layer", "rms"):
            raise ValueError(f'norm={norm!r} must be "layer" or "rms"')
        ones, zeros = np.ones(d_model, np.float32), np.zeros(d_model, np.float32)
        unit = RMSNorm(ones) if norm == "rms" else LayerNorm(ones, zeros if bias else None)
        heads = MultiHeadSelfAttention.initialize(d_model, num_heads, bias=bias, rng=rng, **attention)
        feed_forward = FeedForward.initialize(
            d_model, d_ff, activation=activation, gated=gated, bias=bias, rng=rng
        )
        post = (unit, unit) if post_norms else (None, None)
        return cls(heads, unit, feed_forward, unit, norm_first, *post)

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
        turnings = turnings_of([self])
        packed, tables = PackedEncoder([packable(self, turnings)]), tables_for(turnings, words.cu_seqlens)
        threads = resolve_num_threads(num_threads)
        return words.restore(packed.run(words.tokens, words.cu_seqlens, threads, tables=tables))

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
        if self.norm_first and self.attention_norm is not None:
            x = self.attention_norm(x, num_threads=num_threads)
        return self.attention.attention_weights(
            x, lengths=lengths, cu_seqlens=cu_seqlens, num_threads=num_threads
        )
