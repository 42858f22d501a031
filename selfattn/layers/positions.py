# SPDX-License-Identifier: Apache-2.0
"""Positions: what tells the same word at two places apart.

Attention sums over the words in no particular order, so a word's place has to be written into its vector
(`sinusoidal_positions`, added once), into its queries and keys (`rotary_embedding`), or into the scores
(`alibi_slopes`). Angles are computed in float64 and rounded once, at the end.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from selfattn._checks import as_integer
from selfattn.attention.arrays import Array

if TYPE_CHECKING:
    import numpy.typing as npt


def sinusoidal_positions(
    length: int, d_model: int, *, base: float = 10000.0, dtype: npt.DTypeLike = np.float32
) -> Array:
    """The sinusoidal positional encoding, (length, d_model), to be added to the vectors of the words.

    Channels 2i and 2i+1 of row p hold the sine and the cosine of p / base^(2i / d_model), following
    "Attention Is All You Need" (Vaswani et al. 2017, section 3.5). An odd d_model ends on a sine. Computed in
    float64, then cast to `dtype`. Raises TypeError for a length or d_model that is not an integer, ValueError
    for a negative length, d_model < 1 or a base that is not positive and finite.
    """
    length, d_model = as_integer("length", length), as_integer("d_model", d_model)
    if length < 0 or d_model < 1:
        raise ValueError(f"length={length} must be at least 0 and d_model={d_model} at least 1")
    _check_base(base)
    channel = np.arange(d_model)
    angle = np.arange(length)[:, None] / base ** ((channel - channel % 2) / d_model)  # (length, d_model)
    return np.where(channel % 2 == 0, np.sin(angle), np.cos(angle)).astype(dtype)


def rotary_embedding(
    x: npt.ArrayLike,
    positions: npt.ArrayLike,
    *,
    base: float = 10000.0,
    rotary_dim: int | None = None,
    interleaved: bool = False,
) -> Array:
    """Turns the channel pairs of queries or keys by angles that grow with their position.

    Following RoFormer (Su et al. 2021): pair i of the first `rotary_dim` channels turns by
    position / base^(2i / rotary_dim); the other channels pass through. The dot product of a turned query and
    a turned key then depends on their distance alone. Pairs are (i, i + rotary_dim/2), as in GPT-NeoX and
    Llama, or with `interleaved` (2i, 2i + 1), as in GPT-J: the two conventions of ONNX RotaryEmbedding-23.

    x          (..., seq_len, dim), float; the result has its shape and dtype (float16 turns in float32)
    positions  (seq_len,) for all items alike, or (batch, seq_len) with batch the first axis of x
    rotary_dim even, at most dim; by default dim

    Raises TypeError for an x that is not floating or a rotary_dim that is not an integer, ValueError for
    shapes that don't fit and for a bad base.
    """
    x, positions = np.asarray(x), np.asarray(positions)
    dim = x.shape[-1] if x.ndim else 0
    rotary_dim = dim if rotary_dim is None else as_integer("rotary_dim", rotary_dim)
    _check_rotary(x, positions, rotary_dim)
    _check_base(base)
    if positions.ndim == 2:  # (batch, seq_len) -> (batch, 1, ..., 1, seq_len)
        positions = positions.reshape(positions.shape[0], *(1,) * (x.ndim - 3), positions.shape[1])
    wide = np.asarray(x, dtype=np.result_type(x, np.float32))
    angle = positions[..., None] / base ** (np.arange(0, rotary_dim, 2) / max(rotary_dim, 1))
    cosine, sine = (
        np.cos(angle).astype(wide.dtype),
        np.sin(angle).astype(wide.dtype),
    )  # (..., seq_len, rotary_dim/2)
    half = rotary_dim // 2
    if interleaved:
        first, second = slice(0, rotary_dim, 2), slice(1, rotary_dim, 2)
    else:
        first, second = slice(0, half), slice(half, rotary_dim)
    out = wide.copy()
    out[..., first] = wide[..., first] * cosine - wide[..., second] * sine
    out[..., second] = wide[..., first] * sine + wide[..., second] * cosine
    return out.astype(x.dtype, copy=False)


def alibi_slopes(num_heads: int) -> Array:
    """The slopes of the ALiBi penalty, slope * distance, to be subtracted from scores: (num_heads,) float32.

    Following "Train Short, Test Long" (Press et al. 2022): 2^(-8/n), 2^(-16/n), ..., 2^(-8) when num_heads =
    n is a power of two; otherwise the slopes of the power of two below, then every other slope of the power
    of two above. Raises TypeError for a num_heads that is not an integer, ValueError for one below 1.
    """
    num_heads = as_integer("num_heads", num_heads)
    if num_heads < 1:
        raise ValueError(f"num_heads={num_heads} must be at least 1")
    below = 1 << (num_heads.bit_length() - 1)
    slopes = 2.0 ** (-8 * np.arange(1, below + 1) / below)
    between = 2.0 ** (-4 * np.arange(1, 2 * below, 2) / below)
    return np.concatenate([slopes, between[: num_heads - below]]).astype(np.float32)


def _check_base(base: float) -> None:
    if not (base > 0 and math.isfinite(base)):
        raise ValueError(f"base={base} must be positive and finite")


def _check_rotary(x: Array, positions: Array, rotary_dim: int) -> None:
    if x.ndim < 2:
        raise ValueError(f"x has shape {x.shape}; it needs (..., seq_len, dim)")
    if np.result_type(x, np.float32).kind != "f" or x.dtype.kind in "biu":
        raise TypeError(f"x has dtype {x.dtype}; rotary_embedding turns floating channels")
    if not 0 <= rotary_dim <= x.shape[-1] or rotary_dim % 2:
        raise ValueError(f"rotary_dim={rotary_dim} must be even and between 0 and dim={x.shape[-1]}")
    if positions.dtype.kind not in "iuf":
        raise TypeError(f"positions has dtype {positions.dtype}; it needs numbers")
    if positions.ndim == 2 and x.ndim < 3:
        raise ValueError(f"positions has shape {positions.shape} but x has no batch: its shape is {x.shape}")
    fits = [(x.shape[-2],), (x.shape[0], x.shape[-2])] if x.ndim > 2 else [(x.shape[-2],)]
    if positions.shape not in fits:
        expected = " or ".join(map(str, fits))
        raise ValueError(
            f"positions has shape {positions.shape}; with x of shape {x.shape} it needs {expected}"
        )
