# SPDX-License-Identifier: Apache-2.0
"""Numbers, lengths and names from callers, one check for each kind: the error names what is wrong."""

from __future__ import annotations

import math
import operator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

if TYPE_CHECKING:  # numpy.typing is slow to import
    import numpy.typing as npt

    Int64 = npt.NDArray[np.int64]

FLOAT32 = np.dtype(np.float32)
_NUMBERS = (int, float, np.integer, np.floating)
Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]
Precision = Literal["bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("bfloat16",)  # rows of sa_formats in csrc/isa/dispatch.c
ACTIVATIONS: tuple[Activation, ...] = ("gelu", "gelu_tanh", "relu", "silu")


def as_integer(name: str, value: Any) -> int:
    """`value` as an int; TypeError naming it for anything but an integer (4.0 and True are none)."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name}={value!r} must be an integer, not a {type(value).__name__}")
    return number


def as_number(name: str, value: Any, dtype: np.dtype[Any] = FLOAT32) -> float:
    """`value` as a float that is finite in `dtype`; TypeError or ValueError naming it for anything else."""
    if type(value) is not float and (isinstance(value, bool) or not isinstance(value, _NUMBERS)):
        raise TypeError(f"{name}={value!r} must be a number, not a {type(value).__name__}")
    largest = largest_of(dtype)
    try:
        number = float(value)
    except OverflowError:  # an integer of some hundred digits
        number = math.inf
    if not -largest <= number <= largest:
        raise ValueError(f"{name}={value} must be finite in {dtype}")
    return number


@lru_cache  # to ask NumPy takes a microsecond
def largest_of(dtype: np.dtype[Any]) -> float:
    """The largest finite number of that dtype."""
    return float(np.finfo(dtype).max)


@lru_cache
def least_of(dtype: np.dtype[Any]) -> float:
    """The least positive normal number of that dtype."""
    return float(np.finfo(dtype).tiny)


def as_eps(eps: Any) -> float:
    """What a norm adds to the variance: a number of at least 0."""
    number = as_number("eps", eps)
    if number < 0:
        raise ValueError(f"eps={eps} must be at least 0")
    return number


def as_activation(activation: Any, *, optional: bool = False) -> Activation | None:
    """One of ACTIVATIONS or, where it is `optional`, None."""
    if activation is None and optional:
        return None
    if activation not in ACTIVATIONS:
        *names, last = [*(f'"{name}"' for name in ACTIVATIONS), *["None"] * optional]
        raise ValueError(f"activation={activation!r} must be {', '.join(names)} or {last}")
    return cast(Activation, activation)


def as_precision(precision: Any, dtype: np.dtype[Any] = FLOAT32) -> Precision | None:
    """The format that the factors of products are rounded to; None for the arrays' own."""
    if precision is None:
        return None
    if precision not in PRECISIONS:
        names = " or ".join(f'"{name}"' for name in PRECISIONS)
        raise ValueError(f"precision={precision!r} must be None or {names}")
    if dtype == np.float64:
        raise ValueError(f'precision="{precision}" with float64 arrays: pass float32 ones, or no precision')
    return cast(Precision, precision)


def as_integers(name: str, x: npt.ArrayLike) -> Int64:
    """Integers in any form, lists too, as an int64 C-contiguous copy: what was checked is what counts."""
    try:
        array = np.asarray(x)
    except ValueError as error:  # nested lists of different lengths
        raise ValueError(f"{name}: {error}") from None
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"{name} has dtype {array.dtype}; it must be integers")
    if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{name} holds {array.max()}, which is beyond int64")
    if array is not x and array.base is None and array.dtype == np.int64:  # made here, of a list
        return array
    return np.array(array, np.int64, order="C")


def as_lengths(
    name: str, lengths: npt.ArrayLike, batch: int, most: int | Int64, limit: str = "kv_len"
) -> Int64:
    """(batch,) lengths from 0 to `most`, which is one number or one for each item; `limit` is its name."""
    checked = as_integers(name, lengths)
    if checked.shape != (batch,) and not (batch == 1 and checked.ndim == 0):
        raise ValueError(f"{name} has shape {checked.shape}; one length for each item is {(batch,)}")
    if not checked.ndim:
        checked = checked.reshape(batch)
    if isinstance(most, int):
        wrong = (checked.view(np.uint64) > most).nonzero()[0]  # a negative one is a large one
    else:
        wrong = ((checked < 0) | (checked > most)).nonzero()[0]
    if wrong.size:
        item = wrong[0]
        bound = np.broadcast_to(most, batch)[item]
        raise ValueError(f"{name}[{item}]={checked[item]} must be between 0 and {limit}={bound}")
    return checked


def as_cu_seqlens(name: str, x: npt.ArrayLike, total: int, packed: str) -> Int64:
    """(sequences + 1,) bounds of sequences side by side, from 0 to `total`, which is what `packed` says."""
    bounds = as_integers(name, x)
    if bounds.ndim != 1 or bounds.size == 0:
        raise ValueError(f"{name} has shape {bounds.shape}; it must be (sequences + 1,), at least (1,)")
    if bounds[0] != 0 or bounds[-1] != total:
        raise ValueError(
            f"{name} begins at {bounds[0]} and ends at {bounds[-1]}; "
            f"it must begin at 0 and end at {packed}, {total}"
        )
    falls = (bounds[1:] < bounds[:-1]).nonzero()[0]
    if falls.size:
        b = falls[0]
        raise ValueError(
            f"{name}[{b + 1}]={bounds[b + 1]} is less than {name}[{b}]={bounds[b]}; it must not decrease"
        )
    return bounds
