# SPDX-License-Identifier: Apache-2.0
"""Rotary positions of a layer: tables of the angles that queries and keys turn by, and the turn itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from selfattn._checks import as_integer, as_integers, as_number
from selfattn._native import pointwise as _pointwise
from selfattn.attention.arrays import FLOAT32, Array

if TYPE_CHECKING:
    import numpy.typing as npt

_SHORTEST = 64  # positions of a table


@dataclass(frozen=True)
class RotaryPositions:
    """Rotary positions: pairs of channels of queries and keys turn by angles that grow with the position.

    "RoFormer" (Su et al., 2021), section 3.2.2: pair i turns by position * base^(-2i / rotary_dim), so that
    the dot product of a query and a key depends on their distance alone.

    Args:
        base: a positive number; the frequencies follow from it. They are the same on every machine.
        rotary_dim: the channels of a head that turn, even; the others pass. None turns all of them.
        interleaved: pairs are (2i, 2i + 1), as in GPT-J, not (i, i + rotary_dim / 2), as in GPT-NeoX.
        frequencies: (rotary_dim / 2,) radians per position of each pair, in the place of those of base: for
            scaled rotary positions, "YaRN" (Peng et al., 2023), section 3, among them.
        factor: cosines and sines are multiplied by this positive number: the root of YaRN's attention factor.

    Two of equal arguments are equal, and can be keys of a dict. Tables are kept, and grow with the texts.

    Raises:
        TypeError: an argument of another type.
        ValueError: a number that is out of range, or not as many frequencies as pairs.

    >>> rotary = RotaryPositions(base=10000.0, rotary_dim=4)
    >>> cosines, sines = rotary.tables(head_dim=8, length=3)
    >>> cosines.shape[1], float(sines[2, 0]) == float(np.float32(np.sin(2.0)))
    (2, True)
    """

    base: float = 10000.0
    rotary_dim: int | None = None
    interleaved: bool = False
    frequencies: tuple[float, ...] | None = None
    factor: float = 1.0

    def __post_init__(self) -> None:
        self._set("base", _positive("base", self.base))
        self._set("factor", _positive("factor", self.factor))
        if not isinstance(self.interleaved, bool | np.bool_):
            raise TypeError(f"interleaved={self.interleaved!r} must be True or False")
        self._set("interleaved", bool(self.interleaved))
        if self.rotary_dim is not None:
            self._set("rotary_dim", as_integer("rotary_dim", self.rotary_dim))
            if self.rotary_dim < 2 or self.rotary_dim % 2:
                raise ValueError(f"rotary_dim={self.rotary_dim} must be even and at least 2")
        if self.frequencies is not None:
            self._set("frequencies", _frequencies(self.frequencies))
            if self.rotary_dim is not None:
                self.pairs(self.rotary_dim)
        self._set("_kept", {})

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), astuple(self)  # the tables stay behind

    def pairs(self, head_dim: int) -> int:
        """How many pairs of channels of a head turn; ValueError where a head has no room for them."""
        dim = head_dim if self.rotary_dim is None else self.rotary_dim
        if dim > head_dim:
            raise ValueError(f"rotary_dim={dim} must be at most head_dim={head_dim}")
        if dim % 2:
            raise ValueError(f"head_dim={head_dim} is odd: pass an even rotary_dim, the channels that turn")
        if self.frequencies is not None and len(self.frequencies) != dim // 2:
            raise ValueError(
                f"frequencies has {len(self.frequencies)} numbers; rotary_dim={dim} has {dim // 2} pairs"
            )
        return dim // 2

    def radians(self, head_dim: int) -> Array:
        """By how much each pair turns from one position to the next, (pairs,) float64."""
        pairs = self.pairs(head_dim)
        if self.frequencies is not None:
            return np.array(self.frequencies)
        # A power of libm may differ in its last bit between machines: here are 40 digits, rounded once.
        from decimal import Context, Decimal

        context = Context(prec=40)
        exponents = [context.divide(Decimal(-i), Decimal(pairs)) for i in range(pairs)]
        return np.array([float(context.power(Decimal(self.base), exponent)) for exponent in exponents])

    def tables(self, head_dim: int, length: int) -> tuple[Array, Array]:
        """Cosines and sines times factor, (at least length, pairs) float32 each, read-only.

        Each number is that of the angle position * radians in float64, rounded once.
        """
        kept: dict[int, tuple[Array, Array]] = self._kept  # type: ignore[attr-defined]
        tables = kept.get(head_dim)
        if tables is None or len(tables[0]) < length:
            room = 1 << max(length - 1, _SHORTEST - 1).bit_length()
            tables = _pointwise.rotary_angles(self.radians(head_dim), room, self.factor)
            for table in tables:
                table.flags.writeable = False
            kept[head_dim] = tables  # threads that arrive together replace it by its equal
        return tables

    def turn(self, x: Array, positions: npt.ArrayLike) -> Array:
        """x (tokens, heads, head_dim) float32 at positions (tokens,), from 0 -> the same shape, turned.

        Products and sums round one by one: the bits are those of the compiled layers.
        """
        cosines, sines = self._angles(x, positions)
        return _turned(x, cosines, sines, self.interleaved)

    def turn_back(self, grad: Array, positions: npt.ArrayLike) -> Array:
        """The gradient of x, from that of turn(x, positions): turned the other way."""
        cosines, sines = self._angles(grad, positions)
        return _turned(grad, cosines, -sines, self.interleaved)

    def _angles(self, x: Array, positions: npt.ArrayLike) -> tuple[Array, Array]:
        """Cosines and sines of each token, (tokens, 1, pairs)."""
        if x.ndim != 3 or x.dtype != FLOAT32:
            raise ValueError(
                f"x has shape {x.shape} and dtype {x.dtype}; it must be (tokens, heads, head_dim) float32"
            )
        at = as_integers("positions", positions)
        if at.shape != x.shape[:1]:
            raise ValueError(f"positions has shape {at.shape}; one for each of the tokens is {x.shape[:1]}")
        if at.min(initial=0) < 0:
            raise ValueError(f"positions holds {at.min()}; positions count from 0")
        tables = self.tables(x.shape[2], int(at.max(initial=-1)) + 1)
        cosines, sines = (table[at][:, None] for table in tables)
        return cosines, sines


def _turned(x: Array, cosines: Array, sines: Array, interleaved: bool) -> Array:
    pairs = cosines.shape[-1]
    halves = slice(0, pairs), slice(pairs, 2 * pairs)
    first_at, second_at = (slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)) if interleaved else halves
    first, second, y = x[..., first_at], x[..., second_at], x.copy()
    with np.errstate(invalid="ignore", over="ignore"):  # Inf and NaN are passed on, as by the kernels
        y[..., first_at] = first * cosines - second * sines
        y[..., second_at] = first * sines + second * cosines
    return y


def _positive(name: str, value: Any) -> float:
    number = as_number(name, value, np.dtype(np.float64))
    if number <= 0:
        raise ValueError(f"{name}={value} must be positive and finite")
    return number


def _frequencies(frequencies: Any) -> tuple[float, ...]:
    if isinstance(frequencies, str | bytes) or not isinstance(frequencies, Sequence | np.ndarray):
        raise TypeError(f"frequencies is a {type(frequencies).__name__}; it must be a tuple of numbers")
    return tuple(as_number("frequencies", one, np.dtype(np.float64)) for one in frequencies)
