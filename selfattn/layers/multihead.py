# SPDX-License-Identifier: Apache-2.0
"""Cells side by side: several self-attention cells over the same words, each with a relation of its own.

Beyond what a cell has, the heads take every option of the operator that makes sense in a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from selfattn._checks import as_integer
from selfattn._native import pointwise as _pointwise
from selfattn.attention.arrays import FLOAT32
from selfattn.attention.options import AttentionOptions, Problem, checked
from selfattn.layers.base import (
    Array,
    Weights,
    as_bias,
    as_causal,
    as_scale,
    as_weight,
    initial_weight,
    join_biases,
    join_weights,
    same,
)
from selfattn.layers.cell import SelfAttentionCell
from selfattn.layers.norm import Norm
from selfattn.layers.packed_batch import PackedBatch, positions_of
from selfattn.layers.projections import ROLES, Projections
from selfattn.layers.relative_bias import RelativeBias
from selfattn.layers.rotary import RotaryPositions
from selfattn.runtime import resolve_num_threads

if TYPE_CHECKING:
    from typing import TypedDict, Unpack

    import numpy.typing as npt

    from selfattn.layers.backward import SavedAttention

    class HeadSettings(TypedDict, total=False):
        """The fields of MultiHeadSelfAttention that are neither a matrix nor its width."""

        causal: bool
        scale: float | None
        window: tuple[int | None, int | None] | None
        softcap: float | None
        alibi_slopes: tuple[float, ...] | None
        sinks: Array | None
        rotary: RotaryPositions | None
        query_norm: Norm | None
        key_norm: Norm | None
        relative_bias: RelativeBias | None

    class AttentionSettings(HeadSettings, total=False):
        """What an EncoderLayer's `initialize` passes on: the widths of the heads, too."""

        num_kv_heads: int | None
        head_dim: int | None
        value_dim: int | None


CELL_CANNOT = (
    "window",
    "softcap",
    "alibi_slopes",
    "sinks",
    "rotary",
    "query_norm",
    "key_norm",
    "relative_bias",
)  # the settings that SelfAttentionCell has no argument for


@dataclass(frozen=True, eq=False, repr=False)
class MultiHeadSelfAttention(Projections):
    """Multi-head self-attention ("Attention Is All You Need", section 3.2.2), with grouped key/value heads.

    Args:
        query_weight: (d_model, num_heads * head_dim). Head h owns columns h * head_dim to (h + 1) * head_dim.
        key_weight: (d_model, num_kv_heads * head_dim); query head h reads key/value head h // (num_heads /
            num_kv_heads).
        value_weight: (d_model, num_kv_heads * value_dim).
        output_weight: (num_heads * value_dim, d_out), mixes the heads; None leaves them side by side.
        query_bias, key_bias, value_bias, output_bias: of the width of their outputs, or None.
        causal: a word attends to itself and to those before it.
        scale, window, softcap: as in `selfattn.attention`. window is (left, right) words, None leaves a side
            open.
        alibi_slopes: (num_heads,) numbers, as in `selfattn.attention`: constants, not weights.
        sinks: (num_heads,), a weight: a logit beside the scores of each head.
        rotary: the rotary positions that queries and keys turn to, after their norms.
        query_norm, key_norm: norms of queries and of keys. Of width head_dim they norm each head by itself;
            of width num_heads * head_dim (num_kv_heads * head_dim for keys), all heads of a word together.
        relative_bias: a bias by distance, num_heads wide.

    Weights are kept as read-only float32; results are float32.

    Raises:
        TypeError, ValueError: naming the argument that does not fit the others, or that the operator would
            not take.

    >>> rng = np.random.default_rng(0)
    >>> layer = MultiHeadSelfAttention.initialize(32, 4, num_kv_heads=2, window=(8, 0), causal=True, rng=rng)
    >>> layer(rng.standard_normal((10, 32), dtype=np.float32)).shape
    (10, 32)
    """

    query_weight: Array
    key_weight: Array
    value_weight: Array
    output_weight: Array | None = None
    query_bias: Array | None = None
    key_bias: Array | None = None
    value_bias: Array | None = None
    output_bias: Array | None = None
    _: KW_ONLY
    num_heads: int
    num_kv_heads: int = None  # type: ignore[assignment]  # None: num_heads
    causal: bool = False
    scale: float | None = None
    window: tuple[int | None, int | None] | None = None
    softcap: float | None = None
    alibi_slopes: tuple[float, ...] | None = None
    sinks: Array | None = None
    rotary: RotaryPositions | None = None
    query_norm: Norm | None = None
    key_norm: Norm | None = None
    relative_bias: RelativeBias | None = None

    def __post_init__(self) -> None:
        kv_heads = self.num_heads if self.num_kv_heads is None else self.num_kv_heads
        self._set(num_heads=as_integer("num_heads", self.num_heads))
        self._set(num_kv_heads=as_integer("num_kv_heads", kv_heads))
        self._set(causal=as_causal(self.causal), scale=as_scale(self.scale))
        if self.num_heads < 1 or self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads:
            heads, kv_heads = self.num_heads, self.num_kv_heads
            raise ValueError(f"num_heads={heads} is not a multiple of num_kv_heads={kv_heads}")
        self._set_projections()
        head_dim = _per_head("query_weight", self.query_weight, "num_heads", self.num_heads)
        key_dim = _per_head("key_weight", self.key_weight, "num_kv_heads", self.num_kv_heads)
        same("head_dim", query_weight=head_dim, key_weight=key_dim)
        _per_head("value_weight", self.value_weight, "num_kv_heads", self.num_kv_heads)
        self._check_output()
        self._check_options()

    def _check_output(self) -> None:
        if self.output_weight is None:
            if self.output_bias is not None:
                raise ValueError("output_bias needs an output_weight")
            return
        output = as_weight("output_weight", self.output_weight, 2)
        joined = self.num_heads * self.value_dim
        if len(output) != joined:
            raise ValueError(
                f"output_weight has {len(output)} rows; num_heads={self.num_heads} heads of "
                f"value_dim={self.value_dim} need {joined}"
            )
        offset = as_bias("output_bias", self.output_bias, output.shape[1])
        self._set(output_weight=output, output_bias=offset)

    def _check_options(self) -> None:
        """Checks and keeps what is for the operator, and what comes before it."""
        parts: dict[str, tuple[Any, Any, str]] = {
            "rotary": (self.rotary, RotaryPositions, "RotaryPositions"),
            "query_norm": (self.query_norm, Norm, "LayerNorm or RMSNorm"),
            "key_norm": (self.key_norm, Norm, "LayerNorm or RMSNorm"),
            "relative_bias": (self.relative_bias, RelativeBias, "RelativeBias"),
        }
        for name, (part, kind, expected) in parts.items():
            if part is not None and not isinstance(part, kind):
                raise TypeError(f"{name} is a {type(part).__name__}; it must be a {expected}, or None")
        _check_width("query_norm", self.query_norm, self.head_dim, "num_heads", self.num_heads)
        _check_width("key_norm", self.key_norm, self.head_dim, "num_kv_heads", self.num_kv_heads)
        if self.rotary is not None:
            self.rotary.pairs(self.head_dim)
        if self.sinks is not None:
            self._set(sinks=as_weight("sinks", self.sinks, 1))
        if self.relative_bias is not None and self.relative_bias.num_heads != self.num_heads:
            heads = f"num_heads={self.num_heads}"
            raise ValueError(
                f"relative_bias is of {self.relative_bias.num_heads} heads; it must be of {heads}"
            )
        options = self._options
        slopes = None if options.alibi_slopes is None else tuple(options.alibi_slopes.tolist())
        self._set(window=options.window, softcap=options.softcap, alibi_slopes=slopes)

    @cached_property
    def _options(self) -> AttentionOptions:
        """What the operator is told, checked as its own arguments are."""
        sizes = (self.num_heads, self.num_kv_heads, 0, 0, self.head_dim, self.value_dim)
        return checked(
            Problem(FLOAT32, (), sizes),
            causal=self.causal,
            scale=self.scale,
            window=self.window,
            softcap=self.softcap,
            alibi_slopes=self.alibi_slopes,
            sinks=self.sinks,
            relative_bias=None if self.relative_bias is None else self.relative_bias.by_distance(),
        )

    @classmethod
    def from_cells(
        cls,
        cells: Sequence[SelfAttentionCell],
        output_weight: Array | None = None,
        output_bias: Array | None = None,
        *,
        causal: bool = False,
        scale: float | None = None,
    ) -> MultiHeadSelfAttention:
        """Puts cells side by side, one head each; `.cells` gives them back. All cells need the same d_model,
        head_dim and value_dim. Where only some cells have a bias the others get zeros.
        """
        if not cells:
            raise ValueError("from_cells got 0 cells; it needs at least 1")
        for i, cell in enumerate(cells):
            if not isinstance(cell, SelfAttentionCell):
                raise TypeError(f"cells[{i}] is a {type(cell).__name__}; it must be a SelfAttentionCell")
        for what in ("d_model", "head_dim", "value_dim"):
            same(what, **{f"cells[{i}]": getattr(cell, what) for i, cell in enumerate(cells)})
        joined: dict[str, Any] = {}
        for role in ROLES:
            weights = [getattr(cell, f"{role}_weight") for cell in cells]
            joined[f"{role}_weight"] = join_weights(weights)
            biases = [getattr(cell, f"{role}_bias") for cell in cells]
            joined[f"{role}_bias"] = join_biases(biases, [w.shape[1] for w in weights])
        return cls(
            **joined,
            output_weight=output_weight,
            output_bias=output_bias,
            num_heads=len(cells),
            causal=causal,
            scale=scale,
        )

    @classmethod
    def initialize(
        cls,
        d_model: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        value_dim: int | None = None,
        bias: bool = False,
        rng: np.random.Generator,
        **settings: Unpack[HeadSettings],
    ) -> MultiHeadSelfAttention:
        """Random weights with an output_weight back to d_model and, with `bias`, zero biases; head_dim is by
        default d_model / num_heads. `settings` are the fields causal, scale,
        window, rotary and so on.
        """
        if head_dim is None and (num_heads < 1 or d_model % num_heads):
            raise ValueError(f"d_model={d_model} is not a multiple of num_heads={num_heads}; pass head_dim")
        kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        head_dim = d_model // num_heads if head_dim is None else head_dim
        value_dim = head_dim if value_dim is None else value_dim
        widths = (num_heads * head_dim, kv_heads * head_dim, kv_heads * value_dim)
        shapes = [*((d_model, width) for width in widths), (num_heads * value_dim, d_model)]
        weights = [initial_weight(rng, *shape) for shape in shapes]
        biases = [np.zeros(shape[1], np.float32) if bias else None for shape in shapes]
        return cls(*weights, *biases, num_heads=num_heads, num_kv_heads=kv_heads, **settings)

    def _heads(self) -> tuple[int, int, int]:
        return self.num_heads, self.num_kv_heads, self.num_kv_heads

    @property
    def d_out(self) -> int:
        """The width of the result: the columns of output_weight, or the heads side by side."""
        return self.num_heads * self.value_dim if self.output_weight is None else self.output_weight.shape[1]

    @property
    def cells(self) -> list[SelfAttentionCell]:
        """One cell per query head, on views of these weights; a group's cells share key and value columns.

        causal and scale are arguments of a cell's call. ValueError naming the settings that a cell has no
        argument for.
        """
        beyond = [name for name in CELL_CANNOT if getattr(self, name) is not None]
        if beyond:
            raise ValueError(f"cells have no {', '.join(beyond)}: these heads are no cells side by side")
        group = self.num_heads // self.num_kv_heads

        def columns(role: str, head: int, width: int) -> dict[str, Array | None]:
            own = slice(head * width, (head + 1) * width)
            offset = getattr(self, f"{role}_bias")
            matrix = getattr(self, f"{role}_weight")
            return {f"{role}_weight": matrix[:, own], f"{role}_bias": None if offset is None else offset[own]}

        return [
            SelfAttentionCell(
                **columns("query", head, self.head_dim),  # type: ignore[arg-type]
                **columns("key", head // group, self.head_dim),  # type: ignore[arg-type]
                **columns("value", head // group, self.value_dim),  # type: ignore[arg-type]
            )
            for head in range(self.num_heads)
        ]

    def __call__(
        self,
        x: npt.ArrayLike,
        *,
        lengths: npt.ArrayLike | None = None,
        cu_seqlens: npt.ArrayLike | None = None,
        num_threads: int | None = None,
    ) -> Array:
        """x (..., d_model) -> (..., d_out), float32; x, lengths and cu_seqlens as for a SelfAttentionCell."""
        words = PackedBatch.of(x, lengths, cu_seqlens, self.d_model)
        threads = resolve_num_threads(num_threads)
        joined = self._attend(words, self._options, threads)
        if self.output_weight is not None:
            joined = _pointwise.linear(joined, self.output_weight, self.output_bias, None, threads)
        return words.restore(joined)

    def forward(
        self,
        x: npt.ArrayLike,
        *,
        lengths: npt.ArrayLike | None = None,
        cu_seqlens: npt.ArrayLike | None = None,
        num_threads: int | None = None,
    ) -> tuple[Array, tuple[PackedBatch, SavedAttention]]:
        """The result of the call, to the bit, and what `backward` needs; x must not change until then."""
        from selfattn.layers import backward  # here: only those who learn need it

        words = PackedBatch.of(x, lengths, cu_seqlens, self.d_model)
        y, saved = backward.attention_forward(
            self, words.tokens, words.cu_seqlens, resolve_num_threads(num_threads)
        )
        return words.restore(y), (words, saved)

    def backward(
        self,
        saved: tuple[PackedBatch, SavedAttention],
        grad_y: npt.ArrayLike,
        *,
        num_threads: int | None = None,
    ) -> tuple[Array, Weights]:
        """grad_y (..., d_out) -> (grad_x, 0 in the padding; the gradients of the weights by name)."""
        from selfattn.layers import backward  # here: only those who learn need it

        words, heads = saved
        rows = words.take(grad_y, self.d_out)
        grad_x, grads = backward.attention_backward(self, heads, rows, resolve_num_threads(num_threads))
        return words.restore(grad_x), grads

    def attention_weights(
        self,
        x: npt.ArrayLike,
        *,
        lengths: npt.ArrayLike | None = None,
        cu_seqlens: npt.ArrayLike | None = None,
        num_threads: int | None = None,
    ) -> Array:
        """How much each word attends to each other in each head, ([batch,] num_heads, seq_len, seq_len)."""
        words = PackedBatch.of(x, lengths, cu_seqlens, self.d_model)
        return self._weigh(words, self._options, resolve_num_threads(num_threads))

    def _attending(self, words: PackedBatch, threads: int, roles: tuple[str, ...] = ROLES) -> list[Array]:
        query, key, *value = self._project(words.tokens, threads, roles)
        return [*self._placed(query, key, words.cu_seqlens, threads), *value]

    def _placed(self, query: Array, key: Array, cu_seqlens: Array, threads: int) -> tuple[Array, Array]:
        """Queries and keys normed, and turned to their positions."""
        query, key = _normed(self.query_norm, query, threads), _normed(self.key_norm, key, threads)
        if self.rotary is None:
            return query, key
        positions = positions_of(cu_seqlens)
        return self.rotary.turn(query, positions), self.rotary.turn(key, positions)


def _per_head(name: str, matrix: Array, heads_name: str, heads: int) -> int:
    if matrix.shape[1] % heads:
        raise ValueError(f"{name} has {matrix.shape[1]} columns, not a multiple of {heads_name}={heads}")
    return matrix.shape[1] // heads


def _normed(norm: Norm | None, x: Array, threads: int) -> Array:
    """x (tokens, heads, head_dim), each head normed by itself or all of a word: the norm's width says it."""
    return x if norm is None else norm._normed(x.reshape(-1, len(norm.weight)), threads).reshape(x.shape)


def _check_width(name: str, norm: Norm | None, head_dim: int, heads_name: str, heads: int) -> None:
    if norm is not None and len(norm.weight) not in (head_dim, heads * head_dim):
        raise ValueError(
            f"{name} is {len(norm.weight)} wide; it must be head_dim={head_dim}, for each head by itself, or "
            f"{heads_name} * head_dim={heads * head_dim}, for all heads together"
        )
