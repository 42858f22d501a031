# SPDX-License-Identifier: Apache-2.0
"""Problems for the operator, drawn by hypothesis: sizes with tails, dtypes, layouts, options combined."""

import contextlib
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.arrays import LAYOUTS

import selfattn
from selfattn._native import runtime as _runtime

ISAS = st.sampled_from(selfattn.available_isas())
DTYPES = tuple(np.dtype(dtype) for dtype in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16))
LENGTHS = (1, 2, 3, 0, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 97, 193)  # hypothesis shrinks to the first
DIMS = (1, 2, 3, 7, 8, 16, 17, 33, 64, 65)
RAGGED_LENGTHS = (1, 2, 0, 5, 17, 35, 200)
ENOUGH_ROWS = 256  # the error of fewer is luck, ours as NumPy's


class Problem:
    """The arguments of one call of attention."""

    def __init__(self, query: NDArray, key: NDArray, value: NDArray, options: dict[str, Any]) -> None:
        self.query, self.key, self.value, self.options = query, key, value, options

    def __repr__(self) -> str:
        """Shapes and strides say more about a failure than numbers do."""
        arrays = {"query": self.query, "key": self.key, "value": self.value} | self.options
        said = (
            f"{name}={x.dtype.name}{x.shape}@{x.strides}" if isinstance(x, np.ndarray) else f"{name}={x}"
            for name, x in arrays.items()
        )
        return f"Problem({', '.join(said)})"

    @property
    def arrays(self) -> tuple[NDArray, NDArray, NDArray]:
        return self.query, self.key, self.value

    @property
    def scores(self) -> tuple[int, int, int, int]:
        batch, num_heads, q_len, _ = self.query.shape
        return batch, num_heads, q_len, self.key.shape[2]

    def with_masks(self, part: Any) -> dict[str, Any]:
        """The options, of mask and bias only this part of (batch, num_heads, q_len, kv_len)."""
        given = [name for name in ("mask", "bias") if name in self.options]
        return self.options | {name: np.broadcast_to(self.options[name], self.scores)[part] for name in given}


@contextlib.contextmanager
def using(isa: str) -> Iterator[None]:
    """Inside a property, what the fixture `isa` is to a test."""
    before = selfattn.active_isa()
    _runtime.use_isa(isa)
    try:
        yield
    finally:
        _runtime.use_isa(before)


@st.composite
def problems(
    draw: st.DrawFn, *, dtypes: tuple[np.dtype, ...] = DTYPES, positions: bool = True, sinks: bool = True
) -> Problem:
    """Arrays of any layout. Without `positions`, no option depends on where a key stands."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(st.sampled_from(dtypes))
    num_kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    q_len, kv_len = draw(st.sampled_from(LENGTHS)), draw(st.sampled_from(LENGTHS))
    head_dim, value_dim = draw(st.sampled_from(DIMS)), draw(st.sampled_from((*DIMS, 0)))
    num_heads = num_kv_heads * group
    batch = -(-ENOUGH_ROWS // max(num_heads * q_len, 1)) if q_len else draw(st.integers(0, 2))
    shapes = (
        (batch, num_heads, q_len, head_dim),
        (batch, num_kv_heads, kv_len, head_dim),
        (batch, num_kv_heads, kv_len, value_dim),
    )
    arrays = [_lay(draw, rng.standard_normal(shape).astype(dtype)) for shape in shapes]
    options = draw_masks(draw, rng, (batch, num_heads, q_len, kv_len), dtype) | draw_numbers(draw)
    if sinks and draw(st.booleans()):
        options["sinks"] = rng.standard_normal(num_heads)
    if positions:
        options |= draw_positions(draw, q_len, kv_len)
        if draw(st.booleans()):
            options["alibi_slopes"] = rng.random(num_heads) / 4
        if draw(st.booleans()):
            options["kv_lengths"] = rng.integers(0, kv_len + 1, batch)
    return Problem(*arrays, options)


@st.composite
def ragged_problems(draw: st.DrawFn, *, self_attention: bool = False) -> tuple[Problem, NDArray]:
    """A batch of items of different lengths (batch,), with options that mean the same in every form."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(st.sampled_from(DTYPES))
    batch, num_kv_heads, group = draw(st.integers(0, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    q_len, kv_len = draw(st.sampled_from(RAGGED_LENGTHS)), draw(st.sampled_from(RAGGED_LENGTHS))
    q_len = kv_len if self_attention else q_len
    head_dim, value_dim = draw(st.sampled_from(DIMS[:6])), draw(st.sampled_from(DIMS[:6]))
    lengths = np.array([draw(st.integers(0, kv_len)) for _ in range(batch)], np.int64)
    num_heads = num_kv_heads * group
    shapes = (
        (batch, num_heads, q_len, head_dim),
        (batch, num_kv_heads, kv_len, head_dim),
        (batch, num_kv_heads, kv_len, value_dim),
    )
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    options = draw_numbers(draw) | draw_positions(draw, q_len, None)
    if not self_attention:
        options |= draw_masks(draw, rng, (batch, num_heads, q_len, kv_len), dtype)
    elif options["causal"]:
        options["causal"] = True
    if draw(st.booleans()):
        options["sinks"] = rng.standard_normal(num_heads)
    if draw(st.booleans()):
        options["alibi_slopes"] = rng.random(num_heads) / 4
    if not options["causal"]:  # without a diagonal the longest item says where the queries of all items stand
        options = {name: x for name, x in options.items() if name not in ("window", "alibi_slopes")}
    return Problem(*arrays, options), lengths


@st.composite
def leading_shapes(draw: st.DrawFn) -> list[tuple[int, ...]]:
    """Four shapes of up to 4 dimensions (0 and 1 among them) that broadcast together."""
    whole = draw(st.lists(st.sampled_from((1, 2, 3, 0)), max_size=4))
    shapes = []
    for _ in range(4):
        sizes = [draw(st.sampled_from((size, 1))) for size in whole]
        shapes.append(tuple(sizes[draw(st.integers(0, len(whole))) :]))
    return shapes


def draw_masks(
    draw: st.DrawFn, rng: np.random.Generator, scores: tuple[int, ...], dtype: np.dtype
) -> dict[str, NDArray]:
    """mask and bias, or one of them, or none; each of any shape that broadcasts to that of the scores."""
    given: dict[str, NDArray] = {}
    if draw(st.booleans()):
        given["mask"] = _lay(draw, np.asarray(rng.random(_broadcastable(draw, scores)) < draw(_SHARES)))
    if draw(st.booleans()):
        shape = _broadcastable(draw, scores)
        bias = np.where(rng.random(shape) < draw(_SHARES), rng.standard_normal(shape), -np.inf)
        given["bias"] = _lay(draw, bias.astype(draw(st.sampled_from((dtype, np.dtype(np.float32))))))
    return given


def draw_numbers(draw: st.DrawFn) -> dict[str, float]:
    given: dict[str, float] = {}
    if draw(st.booleans()):
        # not 0 (that has tests of its own): all rows of an item would be the same row, and its error luck
        given["scale"] = draw(st.sampled_from((0.01, 0.3, -0.3, 1.0)))
    if draw(st.booleans()):
        given["softcap"] = draw(st.sampled_from((0.5, 2.0, 30.0)))
    return given


def draw_positions(draw: st.DrawFn, q_len: int, kv_len: int | None) -> dict[str, Any]:
    choices: tuple[Any, ...] = (False, "top_left", "bottom_right")
    given: dict[str, Any] = {
        "causal": draw(st.sampled_from((*choices, True) if q_len == kv_len else choices))
    }
    if draw(st.booleans()):
        side = st.sampled_from((None, 0, 1, 2, 5, 16, 70))
        given["window"] = draw(side), draw(side)
    return given


_SHARES = st.sampled_from((0.7, 1.0, 0.1, 0.0))  # of keys that are seen


def _broadcastable(draw: st.DrawFn, scores: tuple[int, ...]) -> tuple[int, ...]:
    sizes = tuple(draw(st.sampled_from((size, 1))) for size in scores)
    return sizes[draw(st.integers(0, 4)) :]


def _lay(draw: st.DrawFn, array: NDArray) -> NDArray:
    return LAYOUTS[draw(st.sampled_from(list(LAYOUTS)))](array) if array.ndim >= 3 else array
